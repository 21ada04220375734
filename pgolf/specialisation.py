"""Specialisation: one module of ours without what a recipe's decisions rule out.

Tests that are settled leave the branch that is taken, a table read with a settled key leaves the entry. A name's part
is known where it is a parameter annotated by the part's class, or a variable or an attribute that is assigned once,
from something known.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any

from .decisions import OPEN, Decisions

COMPARISONS: dict[type[ast.cmpop], Any] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Holder:
    """An object of which only the fields that hold parts are known."""

    fields: dict[str, Any]


class Specialise(ast.NodeTransformer):
    """Goes through one module."""

    def __init__(self, decisions: Decisions) -> None:
        self.decisions = decisions
        self.holders: dict[str, Holder] = {}
        self.tables: dict[str, dict[Any, ast.expr]] = {}
        self.names: dict[str, Any] = {}
        self.attributes: dict[str, Any] = {}
        self.part: Any = OPEN

    def visit_Module(self, node: ast.Module) -> ast.AST:
        """Note the module's tables and the classes that hold parts, then go through it."""
        for statement in node.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys, values=values)):
                    self._note_table(name, keys, values)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict(keys=keys, values=values)):
                    self._note_table(name, keys, values)
                case ast.ClassDef(name=name, body=body) if name not in self.decisions.classes:
                    hints = [inner for inner in body if isinstance(inner, ast.AnnAssign)]
                    self.holders[name] = Holder({ast.unparse(h.target): self._part_of(h.annotation) for h in hints})
        return self.generic_visit(node)

    def _note_table(self, name: str, keys: list[ast.expr | None], values: list[ast.expr]) -> None:
        entries = {key.value: value for key, value in zip(keys, values, strict=True) if isinstance(key, ast.Constant)}
        if len(entries) == len(keys):
            self.tables[name] = entries

    def _part_of(self, hint: ast.expr | None) -> Any:
        """Return what is known of something with this annotation."""
        match hint:
            case ast.Name(id=name):
                return self.holders.get(name, self.decisions.part(name))
            case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *_])):
                return self._part_of(inner)
        return OPEN

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Empty a class without instances, go through any other."""
        if node.name in self.decisions.absent:
            node.body, node.decorator_list, node.bases = [ast.Pass()], [], []
            return node
        outside = self.attributes, self.part
        self.attributes, self.part = self._attributes(node), self.decisions.part(node.name)
        self.generic_visit(node)
        self.attributes, self.part = outside
        return node

    def _attributes(self, node: ast.ClassDef) -> dict[str, Any]:
        """Return the attributes that ``__init__`` sets to something known and nothing sets again."""
        stored = [n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and not isinstance(n.ctx, ast.Load)]
        known = {}
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                outside, self.names = self.names, self._parameters(method)
                for target, value in _assignments(method):
                    if isinstance(target, ast.Attribute) and stored.count(target.attr) == 1:
                        known[target.attr] = self.value(value)
                self.names = outside
        return known

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Go through a function with what its parameters and variables are known to be."""
        outside, self.names = self.names, self._parameters(node)
        bound = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)]
        for target, value in _assignments(node):
            if isinstance(target, ast.Name) and bound.count(target.id) == 1:
                self.names[target.id] = self.value(value)
        self.generic_visit(node)
        self.names = outside
        node.body = _until_left(node.body)
        return node

    def _parameters(self, node: ast.FunctionDef) -> dict[str, Any]:
        """Return the parameters that are known; a name that is bound again inside is open."""
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        inner = [n for statement in node.body for n in ast.walk(statement)]
        again = {n.id for n in inner if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        again |= {n.arg for n in inner if isinstance(n, ast.arg)}
        known = {argument.arg: self._part_of(argument.annotation) for argument in arguments}
        if arguments and arguments[0].arg == "self":
            known["self"] = self.part
        return {name: part for name, part in known.items() if name not in again}

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Take classes without instances out of a field's annotation."""
        self.generic_visit(node)
        node.annotation = self._present(node.annotation)
        return node

    def _present(self, hint: ast.expr) -> ast.expr:
        if not isinstance(hint, ast.BinOp):
            return hint
        hint.left, hint.right = self._present(hint.left), self._present(hint.right)
        for one, other in ((hint.left, hint.right), (hint.right, hint.left)):
            if isinstance(one, ast.Name) and one.id in self.decisions.absent:
                return other
        return hint

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """Take the entry of a table whose key is settled."""
        self.generic_visit(node)
        match node:
            case ast.Subscript(value=ast.Name(id=name), slice=key) if name in self.tables:
                return self.tables[name].get(self.value(key), node)
        return node

    def visit_If(self, node: ast.If) -> Any:
        """Keep the branch that is taken."""
        answer = self.value(node.test)
        self.generic_visit(node)
        if answer is OPEN:
            node.body, node.orelse = _until_left(node.body), _until_left(node.orelse)
            return node
        return (node.body if answer else node.orelse) or ast.Pass()

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        """Keep the value that is taken."""
        answer = self.value(node.test)
        self.generic_visit(node)
        return node if answer is OPEN else node.body if answer else node.orelse

    def value(self, expression: ast.expr) -> Any:
        """Return what an expression comes to; OPEN where the recipe does not settle it."""
        match expression:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self.names.get(name, OPEN)
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if name in self.attributes:
                return self.attributes[name]
            case ast.Attribute(value=whole, attr=name):
                return self._field(self.value(whole), name)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                value = self.value(operand)
                return OPEN if value is OPEN else not value
            case ast.BoolOp(op=kind, values=parts):
                return _joined((self.value(part) for part in parts), isinstance(kind, ast.And))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                answer = self.value(test)
                return OPEN if answer is OPEN else self.value(body if answer else orelse)
            case ast.Compare(left=ast.Name(id=name), ops=[kind], comparators=[ast.Constant(value=str() as text)]):
                never = self.decisions.never(name, text) and isinstance(kind, ast.Eq | ast.NotEq)
                return isinstance(kind, ast.NotEq) if never else OPEN
            case ast.Compare(left=left, ops=[kind], comparators=[right]) if type(kind) in COMPARISONS:
                one, other = self.value(left), self.value(right)
                return OPEN if OPEN in (one, other) else COMPARISONS[type(kind)](one, other)
            case ast.Call(func=ast.Name(id="isinstance"), args=[value, ast.Name(id=name)]):
                return self._is_instance(self.value(value), name)
        return OPEN

    def _field(self, part: Any, name: str) -> Any:
        if isinstance(part, Holder):
            return part.fields.get(name, OPEN)
        known = is_dataclass(part) and name in vars(part) and name not in self.decisions.replaced
        return vars(part)[name] if known else OPEN

    def _is_instance(self, value: Any, name: str) -> Any:
        if name in self.decisions.absent:
            return False
        known = is_dataclass(value) and not isinstance(value, Holder) and name in self.decisions.classes
        return type(value).__name__ == name if known else OPEN


def _joined(values: Iterable[Any], both: bool) -> Any:
    """Return what ``and`` (both) or ``or`` makes of values, of which some are open; as in Python the first decides."""
    answer: Any = both
    for value in values:
        if value is OPEN:
            answer = OPEN
        elif bool(value) != both:
            return not both
    return answer


def _assignments(function: ast.FunctionDef) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield each target with its value, pairwise where several are assigned at once."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                yield from zip(targets, values, strict=False)
            case ast.Assign(targets=[target], value=value):
                yield target, value


def _until_left(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements of a block up to the first that leaves it."""
    for number, statement in enumerate(body):
        if isinstance(statement, ast.Return | ast.Raise):
            return body[: number + 1]
    return body
