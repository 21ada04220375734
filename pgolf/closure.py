"""Closure: the statements of our modules that an entry needs, found by following names, and where they go.

A module is its top-level statements. One is needed when a needed statement reads a name that it binds, here or
through an import; calls at top level are needed with their module. What the recipe rules out is left out first,
which may end the need for whole modules. The model package keeps its place, because an artifact carries its files;
all other modules come to lie in one package under short names.
"""

from __future__ import annotations

import ast
import importlib.util
import symtable
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modeling_pgolf.errors import EnvironmentMismatch

from .decisions import Decisions
from .short_names import bound, short_words, shorten
from .siblings import ROOT, SIBLINGS
from .specialisation import Specialise
from .strip import as_source, stripped

HOME, MODEL = "pgolf", "modeling_pgolf"
OURS = (*SIBLINGS, HOME)
# Statements that bind names and do nothing else: they can be left out when nobody reads the names.
BINDING = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


@dataclass
class Module:
    """One module of ours: its statements, an import split to one a name; which are needed, which bind a name."""

    name: str
    path: Path
    statements: list[ast.stmt]
    needed: set[int] = field(default_factory=set)
    bindings: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, statement in enumerate(self.statements):
            for name in bound(statement):
                self.bindings.setdefault(name, []).append(number)

    def origin(self, statement: ast.ImportFrom) -> str:
        """Return the full name of the module that a statement of this one imports from."""
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        return importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)

    @property
    def kept(self) -> list[ast.stmt]:
        """The needed statements in their order."""
        return [self.statements[number] for number in sorted(self.needed)]


def sources(entry: str, name: str, decisions: Decisions) -> dict[str, str]:
    """Return path to stripped source of all that ``name`` of module ``entry`` needs under these decisions.

    What the needed code makes and replaces itself is open again, so the search is repeated until that is all known.
    """
    while True:
        closure = Closure(decisions)
        closure.need(entry, name)
        kept = [statement for module in closure.modules.values() for statement in module.kept]
        left = decisions.with_code(kept)
        if left == decisions:
            return closure.sources(entry, name)
        decisions = left


class Closure:
    """The modules that were reached, and a list of names still to follow."""

    def __init__(self, decisions: Decisions) -> None:
        self.decisions = decisions
        self.modules: dict[str, Module] = {}
        self._names: list[tuple[str, str]] = []

    def need(self, module: str, name: str) -> None:
        """Mark all that ``name`` of ``module`` needs."""
        self._names.append((module, name))
        while self._names:
            home, wanted = self._names.pop()
            reached = self._reach(home)
            self._mark(reached, reached.bindings.get(wanted, []))

    def sources(self, entry: str, name: str) -> dict[str, str]:
        """Return path to source of every reached module and of the packages; ``name`` of ``entry`` stays as it is."""
        homes = homes_of(sorted(self.modules.keys() - {entry})) | {entry: entry}
        modules = [self.modules[module] for module in sorted(self.modules)]
        bodies = [module.kept for module in modules]
        shorten(bodies, is_ours, name)
        files = {f"{package}/__init__.py": "" for package in (HOME, MODEL)}
        for module, body in zip(modules, bodies, strict=True):
            for node in [node for statement in body for node in ast.walk(statement)]:
                if isinstance(node, ast.ImportFrom) and is_ours(node):
                    node.module, node.level = _seen_from(homes[module.name], homes[module.origin(node)])
            files[homes[module.name].replace(".", "/") + ".py"] = as_source(_joined(body))
        return files

    def _reach(self, name: str) -> Module:
        """Open a module; what it does when imported is needed."""
        if name not in self.modules:
            module = self.modules[name] = open_module(name, self.decisions)
            self._mark(module, [number for number, statement in enumerate(module.statements) if acts(statement)])
        return self.modules[name]

    def _mark(self, module: Module, numbers: list[int]) -> None:
        for number in numbers:
            if number not in module.needed:
                module.needed.add(number)
                statement = module.statements[number]
                self._names += [(module.name, name) for name in globals_read(symbols_of(statement))]
                for node in ast.walk(statement):
                    if isinstance(node, ast.ImportFrom) and is_ours(node):
                        self._import(module.origin(node), [alias.name for alias in node.names])

    def _import(self, origin: str, names: list[str]) -> None:
        """Note the names that a needed statement imports from us."""
        for name in names:
            if name not in self._reach(origin).bindings:
                raise EnvironmentMismatch(f"our own code asks for {name} of {origin}, which has no such name")
            self._names.append((origin, name))


def homes_of(modules: list[str]) -> dict[str, str]:
    """Return the name that each module gets."""
    letters = (name for name in short_words() if name.islower())
    return {name: name if name.startswith(MODEL) else f"{HOME}.{next(letters)}" for name in modules}


def _seen_from(place: str, other: str) -> tuple[str, int]:
    """Return how a module is named in an import, and the dots before it."""
    one, two = place.rpartition("."), other.rpartition(".")
    return (two[2], 1) if one[0] == two[0] else (other, 0)


def open_module(name: str, decisions: Decisions) -> Module:
    """Parse a module of ours, folded and stripped, every import one name."""
    path = ROOT.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        raise EnvironmentMismatch(f"our own code asks for {name}, and there is no {path.name} of it in {path.parent}")
    tree: ast.Module = Specialise(decisions).visit(ast.parse(path.read_text(encoding="utf-8")))
    statements = stripped(tree, read=decisions.classes)
    return Module(name, path, [single for statement in statements for single in _singles(statement)])


def symbols_of(statement: ast.stmt) -> symtable.SymbolTable:
    """Return Python's own account of the names in a statement."""
    return symtable.symtable(ast.unparse(ast.fix_missing_locations(statement)), "", "exec")


def globals_read(table: symtable.SymbolTable) -> Iterator[str]:
    """Yield the names of the module that a statement reads, in the functions inside it too."""
    outermost = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (outermost or symbol.is_global()):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from globals_read(inner)


def is_ours(statement: ast.ImportFrom) -> bool:
    """Say whether an import is from one of our packages."""
    return statement.level > 0 or (statement.module or "").split(".")[0] in OURS


def acts(statement: ast.stmt) -> bool:
    """Say whether a top-level statement does more than bind names that somebody may read."""
    return not isinstance(statement, BINDING) or not bound(statement)


def _singles(statement: ast.stmt) -> list[ast.stmt]:
    if isinstance(statement, ast.ImportFrom):
        return [ast.ImportFrom(statement.module, [alias], statement.level) for alias in statement.names]
    if isinstance(statement, ast.Import):
        return [ast.Import([alias]) for alias in statement.names]
    return [statement]


def _joined(statements: list[ast.stmt]) -> list[ast.stmt]:
    """Put imports from one module into one statement again."""
    joined: list[ast.stmt] = []
    for statement in statements:
        last = joined[-1] if joined else None
        if (
            isinstance(statement, ast.ImportFrom)
            and isinstance(last, ast.ImportFrom)
            and (statement.module, statement.level) == (last.module, last.level)
        ):
            joined[-1] = ast.ImportFrom(last.module, [*last.names, *statement.names], last.level)
        else:
            joined.append(statement)
    return joined
