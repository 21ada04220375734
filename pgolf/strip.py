"""Strip: source that computes the same with nothing in it for a reader.

Comments, docstrings, texts of errors, annotations of functions, blocks for type checkers go, and assertions, as with
``python -O``. Annotations of classes stay where something reads them: pydantic those of a recipe's parts, transformers
those of a module without postponed evaluation. Nesting costs one blank.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Collection

from modeling_pgolf import errors

INDENT = re.compile(r"^(?: {4})+", re.MULTILINE)
ERRORS = frozenset(n for n, v in (vars(builtins) | vars(errors)).items() if isinstance(v, type) and n.endswith("Error"))


def stripped(tree: ast.Module, read: Collection[str]) -> list[ast.stmt]:
    """Return the statements of a module without what only readers need; changes ``tree``.

    read: names of classes whose annotations are evaluated although their evaluation is postponed.
    """
    postponed = any(_postpones(s) for s in tree.body)
    module: ast.Module = Strip(read, postponed).visit(tree)
    for node in ast.walk(module):
        for name, block in ast.iter_fields(node):
            if name in ("body", "orelse", "finalbody") and isinstance(block, list):  # not those of an expression
                block[:] = _doing(block) or ([ast.Pass()] if block and name != "orelse" else [])
    return module.body


def as_source(statements: list[ast.stmt]) -> str:
    """Write statements as source, one blank a level."""
    text = ast.unparse(ast.fix_missing_locations(ast.Module(statements, [])))
    return INDENT.sub(lambda found: " " * (len(found[0]) // 4), text) + "\n"


class Strip(ast.NodeTransformer):
    """Takes one module's texts, annotations and type-only blocks."""

    def __init__(self, read: Collection[str], postponed: bool) -> None:
        self.read, self.postponed = read, postponed
        self.owner: str | None = None

    def visit_Module(self, node: ast.Module) -> ast.AST:
        """Strip a module; postponed evaluation goes with the last annotation that means anything."""
        self.generic_visit(node)
        told = [
            s for s in ast.walk(node) if isinstance(s, ast.AnnAssign) and not isinstance(s.annotation, ast.Constant)
        ]
        node.body = [s for s in node.body if told or not _postpones(s)]
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """Leave out what the code knows already."""
        return ast.Pass()

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Strip a class; its fields are told by their annotations."""
        outside, self.owner = self.owner, node.name
        self.generic_visit(node)
        self.owner = outside
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Strip a function of its docstring and its types."""
        outside, self.owner = self.owner, None
        self.generic_visit(node)
        self.owner = outside
        node.returns = None
        Unread(node).generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """Strip a parameter of its type."""
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Make an annotated assignment a plain one; in a class, keep the annotation or put a sign in its place."""
        self.generic_visit(node)
        if self.owner is None:
            return ast.Pass() if node.value is None else ast.Assign([node.target], node.value, lineno=node.lineno)
        if self.postponed and self.owner not in self.read and "ClassVar" not in ast.unparse(node.annotation):
            node.annotation = ast.Constant(0)
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """Keep what runs of a block that only type checkers take."""
        self.generic_visit(node)
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse or ast.Pass()
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Strip an error of its text: its type and its place stay."""
        match node.exc:
            case ast.Call(func=ast.Name(id=name)) if name in ERRORS:
                node.exc.args, node.exc.keywords = [], []
        return self.generic_visit(node)


class Unread(ast.NodeTransformer):
    """Takes what a function assigns and nobody reads, as the words of an error whose text is gone; calls stay."""

    def __init__(self, function: ast.FunctionDef) -> None:
        nodes = list(ast.walk(function))
        read = [n for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Store)]
        counted = [n.target for n in nodes if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)]
        shared = [name for n in nodes if isinstance(n, ast.Nonlocal | ast.Global) for name in n.names]
        self.read = {n.id for n in (*read, *counted)} | set(shared)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """Leave out an assignment to one name that is not read, unless its value does something."""
        match node.targets:
            case [ast.Name(id=name)] if name not in self.read and not _does_something(node.value):
                return ast.Pass()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Leave a class alone: its names are read from outside."""
        return node


def _does_something(value: ast.expr) -> bool:
    return any(isinstance(n, ast.Call | ast.Await | ast.Yield | ast.YieldFrom | ast.NamedExpr) for n in ast.walk(value))


def _doing(body: list[ast.stmt]) -> list[ast.stmt]:
    """Leave out statements that do nothing: texts and ellipses, and pass beside others."""
    return [s for s in body if not isinstance(s, ast.Pass) and not _is_constant(s)]


def _postpones(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _is_constant(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
