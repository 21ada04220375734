"""Decisions: what a recipe settles about our code before it runs.

The run's configurations are those of the recorded recipe, so a test of their fields has one outcome, and a kind of
part that neither the recipe holds nor the code makes (``ScoreFirstConfig`` of a run that does not adapt) has no
instance. What a program makes itself is found with the code that it needs. Source: Bacon and Sweeney, 1996 (rapid type
analysis).
"""

from __future__ import annotations

import ast
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from modeling_pgolf.configuration_pgolf import PGolfConfig

from .job import Job
from .place import Place

# The value of an expression that the recipe does not settle.
OPEN = object()


@dataclass(frozen=True)
class Decisions:
    """What is known of the parts of a recipe, by the names of their classes.

    parts: the recipe's own, OPEN where it has several of a class. classes: of parts that a recipe may have. choices:
    those that a field may hold instead of another or of None. options: of a field that takes one of a few texts,
    those that the recipe did not take. made: names that the code calls. given: texts that it hands to functions.
    replaced: fields that it gives other values.
    """

    parts: dict[str, Any]
    classes: frozenset[str]
    choices: frozenset[str]
    options: dict[str, frozenset[str]]
    made: frozenset[str] = frozenset()
    given: frozenset[str] = frozenset()
    replaced: frozenset[str] = frozenset()

    @property
    def absent(self) -> frozenset[str]:
        """Classes of which there is no instance."""
        return self.choices - self.parts.keys() - self.made

    def part(self, name: str) -> Any:
        """Return the only instance of a class; OPEN where there may be another."""
        return OPEN if name in self.made else self.parts.get(name, OPEN)

    def never(self, name: str, text: str) -> bool:
        """Say whether what is called like a field never is ``text``: an option of the field that nobody takes."""
        return text in self.options.get(name, ()) and text not in self.given

    def with_code(self, statements: Sequence[ast.stmt]) -> Decisions:
        """Return what is left of the decisions beside code that makes, gives and replaces things itself."""
        calls = [node for node in self._run(statements) if isinstance(node, ast.Call)]
        made = {maker.id for call in calls for maker in _made(call) if isinstance(maker, ast.Name)}
        given = {text for node in self._run(statements) for text in _texts(node)}
        options = {text for texts in self.options.values() for text in texts}
        replaced = {k.arg for c in calls if ast.unparse(c.func).endswith("replace") for k in c.keywords if k.arg}
        replaced |= {name for node in self._run(statements) for name in _set_on_others(node)}
        return replace(
            self,
            made=self.made | (made & self.classes),
            given=self.given | (given & options),
            replaced=self.replaced | replaced,
        )

    def _run(self, statements: Sequence[ast.stmt]) -> Iterator[ast.AST]:
        """Walk through code, the defaults of a recipe's parts left out: the recipe has them or something else there."""
        for statement in statements:
            if not isinstance(statement, ast.ClassDef) or statement.name not in self.classes:
                yield from ast.walk(statement)
            else:
                for inner in statement.body:
                    yield from () if isinstance(inner, ast.AnnAssign) else ast.walk(inner)


def _made(call: ast.Call) -> list[ast.expr]:
    """Return what a call calls, or hands over by keyword, as a field's factory is; calls of variables stay unseen."""
    return [call.func, *(keyword.value for keyword in call.keywords)]


def _set_on_others(node: ast.AST) -> Iterator[str]:
    """Yield the attribute that a statement sets on an object other than its own."""
    match node:
        case ast.Attribute(value=owner, attr=name, ctx=ast.Store()) if ast.unparse(owner) != "self":
            yield name


def _texts(node: ast.AST) -> Iterator[str]:
    """Yield the texts that a call or a parameter's default hands to a function."""
    match node:
        case ast.Call(args=values, keywords=keywords):
            given = [*values, *(keyword.value for keyword in keywords)]
        case ast.arguments(defaults=defaults, kw_defaults=others):
            given = [*defaults, *(other for other in others if other)]
        case _:
            given = []
    for value in given:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value


def recipe_decisions(recipe: Any) -> Decisions:
    """Return what a recipe settles."""
    parts: dict[str, Any] = {}
    for part in _held(recipe):
        name = type(part).__name__
        parts[name] = part if name not in parts else OPEN
    # All models of a run are of the recipe's architecture: what is built from it, and what is read from the artifact.
    parts[PGolfConfig.__name__] = recipe.model
    parts[Job.__name__] = Job(recipe, Place())  # a bundle has no command line
    classes: set[str] = set()
    choices: set[str] = set()
    texts: dict[str, set[str]] = {}
    waiting = [type(recipe)]
    while waiting:
        kind = waiting.pop()
        if kind.__name__ in classes:
            continue
        classes.add(kind.__name__)
        for name, hint in typing.get_type_hints(kind).items():
            members = [member for member in _members(hint) if is_dataclass(member) and isinstance(member, type)]
            choices |= {member.__name__ for member in members if len(_members(hint)) > 1}
            waiting += members
            if typing.get_origin(hint) is typing.Literal:
                texts.setdefault(name, set()).update(map(str, typing.get_args(hint)))
    taken = {name: {vars(part).get(name) for part in _held(recipe)} for name in texts}
    options = {name: frozenset(texts[name] - taken[name]) for name in texts}
    return Decisions(parts, frozenset(classes), frozenset(choices), options)


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the classes that a type hint allows."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _held(value: Any) -> Iterator[Any]:
    if is_dataclass(value):
        yield value
        for field in fields(value):
            yield from _held(vars(value)[field.name])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _held(item)
