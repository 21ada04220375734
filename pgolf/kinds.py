"""Kinds: parts of a recipe that come in several kinds, or that a recipe may do without, and how one is chosen.

``training.qat:qat-config`` among the overrides puts that kind, with its defaults, in the part's place; ``:none`` leaves
the part out. Which kinds there are is read off the types of the fields, so a kind is named nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, get_args, get_type_hints

import tyro

from modeling_pgolf.errors import RecipeError

# What can only be meant as a choice, unless it is the value of an option.
LIKE_A_CHOICE = re.compile(r"[\w.-]+:[\w-]+")
# Inside a word of CamelCase, before a capital that begins another.
WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# A kind of a part: the class, or None for a part that may be left out.
Kind: TypeAlias = "type | None"


def kinds_of(recipe_type: type, prefix: str = "") -> Iterator[tuple[str, dict[str, Kind]]]:
    """Yield the parts of a type of recipe that come in several kinds: dotted name, and the kinds by their words."""
    for name, hint in get_type_hints(recipe_type).items():
        members: list[Any] = [member for member in get_args(hint) or (hint,) if dataclasses.is_dataclass(member)]
        if len(get_args(hint)) > 1 and members:
            kinds: dict[str, Kind] = {in_words(member): member for member in members}
            yield prefix + name, kinds | ({"none": None} if type(None) in get_args(hint) else {})
        for member in members:
            yield from kinds_of(member, f"{prefix}{name}.")


def in_words(kind: type) -> str:
    """Return the name of a class in words, as it is chosen by."""
    return WORDS.sub("-", kind.__name__).lower()


def choices_of(recipe_type: type) -> dict[str, tuple[str, Kind]]:
    """Return every choice by what is written for it, like ``training.qat:qat-config``: the part and its kind."""
    return {
        f"{part.replace('_', '-')}:{words}": (part, kind)
        for part, kinds in kinds_of(recipe_type)
        for words, kind in kinds.items()
    }


def choose(recipe: Any, arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """Take the choices out of ``arguments``; returns the recipe with those kinds in place, and the rest.

    Fields of a kind that have no default are marked missing, for tyro to ask for. Of two choices for one part the last
    one counts. Raises RecipeError for a choice that there is not, with the nearest one, and for a field of a part that
    is left out.
    """
    known, chosen, rest = choices_of(type(recipe)), dict[str, Kind](), list[str]()
    for place, argument in enumerate(arguments):
        written = argument.replace("_", "-").lower()
        if written in known:
            part, kind = known[written]
            chosen[part] = kind
        elif LIKE_A_CHOICE.fullmatch(argument) and not (place and arguments[place - 1].startswith("--")):
            near = difflib.get_close_matches(written, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise RecipeError(f"asked for {argument}, which is no part and kind of a recipe{hint}")
        else:
            rest.append(argument)
    homes: dict[str, dict[str, Kind]] = {}
    for part, kind in chosen.items():
        home, _, name = part.rpartition(".")
        homes.setdefault(home, {})[name] = kind
    for home in sorted(homes, key=len):  # outer parts first: inner ones belong to them
        recipe = with_parts(recipe, home.split("."), homes[home], home)
    refuse_fields_of_nothing(recipe, rest)
    return recipe, rest


def refuse_fields_of_nothing(recipe: Any, arguments: Sequence[str]) -> None:
    """Raise RecipeError on the first option that is a field of a part that ``recipe`` leaves out."""
    for part, kinds in kinds_of(type(recipe)):
        option = f"--{part.replace('_', '-')}."
        found = next((a for a in arguments if a.replace("_", "-").startswith(option)), None)
        if found is not None and value_at(recipe, part.split(".")) is None:
            choice = f"{part.replace('_', '-')}:{next(iter(kinds))}"
            raise RecipeError(
                f"{found.partition('=')[0]} belongs to {part}, which is left out; choose it with {choice}"
            )


def value_at(whole: Any, way: Sequence[str]) -> Any:
    """Return what lies at the end of ``way``; None where a part on the way is left out or of another kind."""
    for name in way:
        whole = None if whole is None else vars(whole).get(name)
    return whole


def with_parts(whole: Any, way: Sequence[str], kinds: dict[str, Kind], home: str) -> Any:
    """Return ``whole`` with fresh kinds in the fields of what lies at the end of ``way``, all at once.

    Raises RecipeError where ``home``, the whole way, leads to a part that is left out.
    """
    if whole is None:
        raise RecipeError(f"{home}.{next(iter(kinds))} belongs to {home}, which is left out; choose a kind of it too")
    if way:
        inner = vars(whole)[way[0]]
        return dataclasses.replace(whole, **{way[0]: with_parts(inner, way[1:], kinds, home)})
    return dataclasses.replace(whole, **{name: kind and with_defaults(kind) for name, kind in kinds.items()})


def with_defaults(kind: type) -> Any:
    """Build a kind with its defaults, and with what tyro takes for missing where it has none."""
    required = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    return kind(**dict.fromkeys(required, tyro.MISSING))
