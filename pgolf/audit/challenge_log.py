"""The log of a challenge run, in the spellings that its scripts print.

Each figure is read from a line of its own form and nothing else: where no line has it, it is None. Scores before the
model is serialised are those of weights that are not shipped, so they are kept apart.
Source: the logs of openai/parameter-golf, ``records/*/*.log``; SPEC-11L 6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

# Some logs carry the second of each line in front of it.
SECOND = re.compile(r"^\d{10}\.\d+ ", re.M)
SCORE = re.compile(r"^([A-Za-z][^=|{}]*?) ?val_loss[:=] ?(\d+\.\d+) val_bpb[:=] ?(\d+\.\d+)(?![\d.])")
MODEL = re.compile(r"^Serialized model ([^:{]+): (\d+) bytes", re.M)
SERIALIZED = re.compile(r"^Serialized model\b[^:{]*: \d+ bytes", re.M)
TOTAL = re.compile(r"^Total submission size [^:{]+: (\d+) bytes", re.M)
CODE = re.compile(r"^Code size[^:{]*: (\d+) bytes", re.M)
STOPPED = re.compile(r"^stopping_early: .*?train_time: ?(\d+)ms", re.M)
LAST_STEP = re.compile(r"^step:(\d+)/(\d+) .*?train_time:(\d+)ms", re.M)
EVALUATED = re.compile(r"eval_time: ?(\d+)ms")
EVALUATED_ALL = re.compile(r"^total_eval_time: ?([\d.]+)s", re.M)
SEED = re.compile(r"^ *seed: ?(\d+)$", re.M)
SEED_IN_NAME = re.compile(r"seed[_-]?(\d+)")
TARGETS = re.compile(r"^(?:val_tokens: |val_loader:.* tokens:)(\d+)$", re.M)
TRAIN_SHARDS = re.compile(r"^(?:train_loader:.* )?train_shards: ?(\d+)$", re.M)
VOCABULARY = re.compile(r"^(?: *vocab_size: |val_bpb:enabled .*fineweb_)(\d+)", re.M)
EVALUATED_LENGTH = re.compile(r"\beval_seq_len[:=] ?(\d+)")
TRAINED_LENGTH = re.compile(r"\b(?:train_)?seq_len[:=] ?(\d+)")
WINDOWS = re.compile(r"\btotal_windows=(\d+) stride=(\d+)")
GPU = re.compile(r"^\| +(\d+) +(NVIDIA [\w ]+?) {2,}", re.M)


@dataclass(frozen=True)
class LoggedScore:
    """One line with loss and score, as printed: nats per token and bits per byte."""

    name: str
    loss: Decimal
    bits: Decimal


@dataclass(frozen=True)
class RunLog:
    """What one log says; None or empty where it has no such line.

    scores, before: of the serialised model, and of the weights before it. totals: bytes with code, as printed.
    train_seconds: of training alone. eval_seconds: of each evaluation of the serialised model. windows: how many of
    which stride a sliding evaluation had. sequence: tokens of a window. gpus: the machine's, by name.
    """

    name: str
    text: str
    seed: int | None
    scores: list[LoggedScore]
    before: list[LoggedScore]
    model_bytes: int | None
    code_bytes: list[int]
    total_bytes: int | None
    train_seconds: float | None
    eval_seconds: list[float]
    targets: int | None
    train_shards: int | None
    vocabulary: int | None
    sequence: int | None
    windows: tuple[int, int] | None
    gpus: list[str]


def read_logs(folder: Path) -> list[RunLog]:
    """Read the logs of a record: every text file that prints a score; of two that say the same, one."""
    found: dict[tuple[object, ...], RunLog] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".log", ".txt") and p.is_file()):
        log = read_log(path.name, SECOND.sub("", path.read_text(encoding="utf-8", errors="replace")))
        if log.scores or log.before:
            found.setdefault((log.seed, *log.scores), log)
    return list(found.values())


def read_log(name: str, text: str) -> RunLog:
    """Read one log."""
    # The first one: later lines belong to the compressed model, and to a second serialisation of the same weights.
    cut = match.start() if (match := SERIALIZED.search(text)) else 0
    named = SEED_IN_NAME.search(name)
    seed = last(SEED, text)
    return RunLog(
        name=name,
        text=text,
        seed=int(named[1]) if seed is None and named else seed,
        scores=list(scores(text[cut:].splitlines())),
        before=list(scores(text[:cut].splitlines())),
        model_bytes=int(found[-1][1]) if (found := MODEL.findall(text)) else None,
        code_bytes=[int(size) for size in CODE.findall(text)],
        total_bytes=last(TOTAL, text),
        train_seconds=train_seconds(text),
        eval_seconds=[int(milliseconds) / 1000 for milliseconds in EVALUATED.findall(text[cut:])]
        or [float(seconds) for seconds in EVALUATED_ALL.findall(text[cut:])],
        targets=last(TARGETS, text),
        train_shards=last(TRAIN_SHARDS, text),
        vocabulary=last(VOCABULARY, text),
        sequence=last(EVALUATED_LENGTH, text) or last(TRAINED_LENGTH, text),
        windows=(int(found[-1][0]), int(found[-1][1])) if (found := WINDOWS.findall(text)) else None,
        gpus=[name for _, name in sorted(set(GPU.findall(text)))],
    )


def scores(lines: Iterable[str]) -> Iterator[LoggedScore]:
    """Yield the scores of whole evaluations; periodic ones, which name a step, are left out."""
    for line in lines:
        match = SCORE.match(line)
        if match and not line.startswith("step:"):
            yield LoggedScore(match[1].strip(), Decimal(match[2]), Decimal(match[3]))


def train_seconds(text: str) -> float | None:
    """Return the seconds of training: where the clock stopped it, else those of the last step of all."""
    stopped = last(STOPPED, text)
    if stopped is not None:
        return stopped / 1000
    steps = [match for match in LAST_STEP.findall(text) if match[0] == match[1]]
    return int(steps[-1][2]) / 1000 if steps else None


def last(pattern: re.Pattern[str], text: str) -> int | None:
    """Return the last number of that form."""
    found = pattern.findall(text)
    return int(found[-1]) if found else None
