"""Short names: identifiers that only our own code reads, as letters.

Variables of functions, parameters that nobody passes by name, functions and constants of modules. A name that is ever
an attribute, a keyword, a text or somebody else's may be read where this file cannot see, and stays; so do the names
of classes, by which parts of a recipe are told apart.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import keyword
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

Body = list[ast.stmt]
# What binds names by text instead of by a Name: functions with one of these inside keep their names.
OPAQUE = (ast.Global, ast.Nonlocal, ast.ClassDef, ast.Match)


def shorten(modules: Sequence[Body], is_ours: Callable[[ast.ImportFrom], bool], kept: str) -> None:
    """Shorten the names in modules that are used together, ``kept`` alone by others; changes their statements."""
    nodes = [node for body in modules for statement in body for node in ast.walk(statement)]
    passed = {name for node in nodes for name in _passed_by_name(node)}
    for body in modules:
        outer = set().union(*map(bound, body)) | vars(builtins).keys()
        for function in _functions(body):
            shorten_variables(function, outer)
        for owner in body:
            if not isinstance(owner, ast.ClassDef) or (not owner.bases and owner.name not in passed):
                for function in _functions([owner]):
                    shorten_parameters(function, passed)
    read = {name for node in nodes for name in _read_elsewhere(node, is_ours)}
    shorten_globals(modules, read | passed | vars(builtins).keys() | {kept})


def bound(statement: ast.AST) -> set[str]:
    """Return the names that a top-level statement binds."""
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.ImportFrom(module="__future__"):
            return set()
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {alias.asname or alias.name.split(".")[0] for alias in names}
        case ast.Name(id=name, ctx=ast.Store()):
            return {name}
    return set().union(*map(bound, ast.iter_child_nodes(statement)))


def _functions(body: Body) -> Iterator[ast.FunctionDef]:
    """Yield the functions of a module and the methods of its classes."""
    for statement in body:
        for inner in statement.body if isinstance(statement, ast.ClassDef) else [statement]:
            if isinstance(inner, ast.FunctionDef):
                yield inner


def shorten_variables(function: ast.FunctionDef, outer: Collection[str]) -> None:
    """Call the variables of a function, those of functions inside it included, by letters.

    What shares a name of ``outer``, those of the module, keeps it: a loop inside an expression hides such a name there
    and nowhere else in the function.
    """
    inside = [node for statement in function.body for node in ast.walk(statement)]
    stored = [n.id for n in inside if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)]
    _rename(
        function, [name for name in stored if name not in outer and name not in _bound_by_text([function, *inside])]
    )


def shorten_parameters(function: ast.FunctionDef, passed: Collection[str]) -> None:
    """Call the parameters of a function by letters, those that are ``passed`` by name somewhere left out."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    inside = [node for statement in function.body for node in ast.walk(statement)]
    again = _bound_by_text(inside)
    names = [a.arg for a in arguments if a.arg not in passed and a.arg not in again and a.arg not in ("self", "cls")]
    short = {} if function.name in passed else _rename(function, names)
    for argument in arguments:
        argument.arg = short.get(argument.arg, argument.arg)


def _rename(function: ast.FunctionDef, wanted: Iterable[str]) -> dict[str, str]:
    """Replace names inside a function by letters that it does not use; returns what became what."""
    inside = [node for statement in function.body for node in ast.walk(statement)]
    if any(isinstance(node, OPAQUE) for node in inside):
        return {}
    names = [node for node in inside if isinstance(node, ast.Name)]
    taken = {node.id for node in names} | _bound_by_text([function, *inside])
    letters = (letter for letter in short_words() if letter not in taken)
    short = {name: next(letters) for name in dict.fromkeys(wanted) if len(name) > 1}
    for node in names:
        node.id = short.get(node.id, node.id)
    return short


def _bound_by_text(nodes: Iterable[ast.AST]) -> set[str]:
    """Return parameters, functions, imports and caught errors: what a name may stand for beside a variable."""
    found: set[str] = set()
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name, args=arguments):
                found |= {name} | {n.arg for n in ast.walk(arguments) if isinstance(n, ast.arg)}
            case ast.arg(arg=name) | ast.ExceptHandler(name=str() as name):
                found.add(name)
            case ast.alias(name=name, asname=other):
                found.add(other or name.split(".")[0])
    return found


def shorten_globals(modules: Sequence[Body], read: Collection[str]) -> None:
    """Call what modules bind by letters in all of them, what is ``read`` otherwise left out."""
    named = [s for body in modules for s in body if isinstance(s, ast.FunctionDef | ast.Assign)]
    names = [name for statement in named for name in sorted(bound(statement))]
    nodes = [node for body in modules for statement in body for node in ast.walk(statement)]
    taken = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.arg for n in nodes if isinstance(n, ast.arg)}
    letters = (letter for letter in short_words(2) if letter not in taken and letter not in read)
    short = {name: next(letters) for name in dict.fromkeys(names) if name not in read and len(name) > 2}
    for node in nodes:
        match node:
            case ast.Name(id=name):
                node.id = short.get(name, name)
            case ast.FunctionDef(name=name) | ast.alias(name=name):
                node.name = short.get(name, name)


def _passed_by_name(node: ast.AST) -> Iterator[str]:
    """Yield keywords, and the names in a call with ``**``, whose keywords nobody sees."""
    match node:
        case ast.keyword(arg=str() as name):
            yield name
        case ast.Call(keywords=keywords) if any(given.arg is None for given in keywords):
            yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name))
            yield from (n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute))


def _read_elsewhere(node: ast.AST, is_ours: Callable[[ast.ImportFrom], bool]) -> Iterator[str]:
    """Yield the names that a node reads as text, or that are not names of our modules alone."""
    match node:
        case ast.Attribute(attr=name) | ast.Constant(value=str() as name) | ast.arg(arg=name):
            yield name
        case ast.ClassDef(name=name, body=body):
            yield name
            yield from (inner.name for inner in body if isinstance(inner, ast.FunctionDef))
            yield from (name for inner in body for name in bound(inner))
        case ast.FunctionDef(body=body):
            yield from (name for inner in body for name in bound(inner))
        case ast.Import() | ast.ExceptHandler():
            yield from _bound_by_text(ast.walk(node))
        case ast.ImportFrom() if not is_ours(node):
            yield from _bound_by_text(ast.walk(node))


def short_words(length: int = 1) -> Iterator[str]:
    """Yield words of ``length`` letters, then of one more, and so on."""
    for count in itertools.count(length):
        for letters in itertools.product(string.ascii_letters, repeat=count):
            name = "".join(letters)
            if not keyword.iskeyword(name):
                yield name
