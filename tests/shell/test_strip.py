"""What a bundle's packer does to source: text nobody reads goes, settled tests keep one branch, names become short."""

import ast
import re
from dataclasses import replace

import pytest
from finished_run import tiny_recipe

from pgolf.decisions import recipe_decisions
from pgolf.short_names import shorten
from pgolf.siblings import ROOT
from pgolf.specialisation import Specialise
from pgolf.strip import as_source, stripped


@pytest.mark.parametrize("name", ["modeling_pgolf/modeling_pgolf.py", "pgolf/run.py", "pgolf/corpus/tokenizer.py"])
def test_source_is_written_as_it_is_meant(name):
    body = stripped(ast.parse((ROOT / name).read_text()), read=())
    assert ast.dump(ast.parse(as_source(body))) == ast.dump(ast.Module(body, []))


def specialised(source, **changes):
    recipe = tiny_recipe(**changes)
    tree = Specialise(recipe_decisions(recipe)).visit(ast.parse(source))
    return ast.unparse(ast.fix_missing_locations(tree))


UNREAD = """
def told(asked):
    words = "many" if asked > 1 else "one"
    count, kept = 0, 0
    left = 0
    for number in range(asked):
        count += number
        left += 1
        here = lambda: number
        made = list(range(number))
    class Inner:
        word = "kept"
    if asked < 0:
        raise ValueError(f"{words} {count} {left} {made} {here}")
    return count, Inner.word
"""


def test_what_nobody_reads_is_left_out_and_nothing_else():
    text = as_source(stripped(ast.parse(UNREAD), read=()))
    assert "words" not in text and "here" not in text, "words of an error whose text is gone"
    assert "made = list" in text, "a call may do something"
    names = {}
    exec(text, names)
    assert names["told"](4) == (6, "kept")
    with pytest.raises(ValueError):
        names["told"](-1)


KNOWN = """
def checked(values):
    assert values is not None, "said by the types"
    for value in values:
        if value < 0:
            words = "negative"
            raise ValueError(words)
        elif value > 9:
            assert value < 99
        else:
            "nothing"
    try:
        assert values
    finally:
        pass
    return sum(values)
"""


def test_what_is_known_anyway_is_left_out_at_every_depth():
    text = as_source(stripped(ast.parse(KNOWN), read=()))
    assert "assert" not in text and "words" not in text
    assert text.count("pass") == 3, "one for each block that would be empty"
    names = {}
    exec(text, names)
    assert names["checked"]([3, 12, 100]) == 115
    with pytest.raises(ValueError):
        names["checked"]([-1])


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("config.qat is not None", False),
        ("config.ema", True),
        ("config.replay or config.qat", False),
        ("config.qat is not None and config.qat.bits < 3", False),
        ("config.seconds is not None and config.seconds < 3", False),
        ("not config.qat and config.order == 'sequential'", True),
        ("config.iterations > 29", True),
        ("isinstance(anything, ReplayConfig)", False),
        ("table_dtype == 'bf16'", False),
    ],
)
def test_settled_tests_leave_one_branch(source, left):
    text = specialised(f"def f(config: TrainingConfig, anything, table_dtype):\n    return 1 if {source} else 2")
    assert text.endswith(f"return {1 if left else 2}")


def test_what_a_model_is_built_without_is_settled():
    """An attribute that the architecture settles decides the tests that read it; one that is set again does not."""
    source = (
        "class Model:\n"
        "    def __init__(self, config: PGolfConfig):\n"
        "        self.lanes = Lanes() if config.lanes else None\n"
        "        self.gate = Gate() if config.lanes else None\n"
        "    def forward(self):\n"
        "        self.gate = 3\n"
        "        return (1 if self.lanes else 2, 3 if self.gate else 4)\n"
    )
    text = specialised(source)
    assert "self.lanes = None" in text and "return (2, 3 if self.gate else 4)" in text
    merged = specialised(source, model=replace(tiny_recipe().model, lanes="merged", lanes_from=10))
    assert "self.lanes = Lanes()" in merged and "1 if self.lanes" in merged


@pytest.mark.parametrize(
    "source",
    [
        "def f(config):\n    return 1 if config.qat else 2",
        "def f(config: TrainingConfig, other):\n    config = other\n    return 1 if config.qat else 2",
        "def f(config: TrainingConfig, others):\n    return [1 if config.qat else 2 for config in others]",
        "def f(config: TrainingConfig):\n    return 1 if config.step_tokens else 2",
        "def f(codec):\n    return 1 if codec == 'zstd' else 2",
    ],
)
def test_what_is_not_settled_stays(source):
    assert "1 if" in specialised(source)


def test_what_the_code_makes_or_replaces_is_open_again():
    recipe = tiny_recipe()
    pair = "(1 if config.qat else 2, 3 if isinstance(any, QatConfig) else 4)"
    source = f"def f(config: TrainingConfig, any):\n    return {pair}"
    decisions = recipe_decisions(recipe)
    for code, expected in (
        ("replace(recipe.training, qat=1)", ("1 if", "4)")),
        ("QatConfig()", ("(2", "3 if")),
        ("TrainingConfig()", ("1 if", "4)")),
        ("config.qat = None", ("1 if", "4)")),
        ("self.qat = None", ("(2", "4)")),
    ):
        left = decisions.with_code(ast.parse(code).body)
        text = ast.unparse(Specialise(left).visit(ast.parse(source)))
        assert all(part in text for part in expected), (code, text)


NAMES = """
import math
SCALE = 3
def total(values, SCALE_UP=1):
    score_of = [total for total in values]
    def inner(step, *, by=2):
        nonlocal_free = step * by
        return nonlocal_free + len(score_of)
    try:
        chosen = max(values, key=lambda value: -value)
    except ValueError as reason:
        return str(reason)
    return sum(score_of) * SCALE + inner(chosen, by=SCALE_UP) + twice(chosen)
def twice(number):
    if number > 3:
        return math.floor(total([1], SCALE_UP=number))
    return 2 * number
def scaled(values):
    hidden = [SCALE for SCALE in values]
    return sum(hidden) * SCALE
class Counter:
    def __init__(self, first):
        self.first = first
    def up(self, amount):
        return twice(self.first + amount) + SCALE
result = (total([5, 4, 9]), total([]), twice(7), scaled([1, 2]), Counter(2).up(amount=4))
"""


def test_short_names_compute_the_same():
    body = ast.parse(NAMES).body
    shorten([body], lambda statement: False, kept="result")
    text = as_source(body)
    long, short = {}, {}
    exec(NAMES, long)
    exec(text, short)
    assert short["result"] == long["result"]
    for name in ("score_of", "nonlocal_free", "chosen", "twice", "scaled", "hidden"):
        assert name not in text, name
    assert re.search(r"def up\(self, amount\)", text) and "SCALE_UP" in text, "passed by name"
