"""The verbs about the Hub: push, pull and verify.

Their arguments, and what they print; the work is in ``hub`` and ``verify``, which are imported when it is done: the
client and transformers take seconds.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

# Of ``pgolf verify``, by its overall verdict; 2 is what a misspelt command line gives.
STATUS = {"PASS": 0, "FAIL": 1, "UNKNOWN": 3}


@dataclass(frozen=True)
class Push:
    """Publish a record on the Hub, in one commit."""

    record: Annotated[Positional[Path], arg(metavar="RECORD")]
    """the record's folder"""
    repo: str
    """USER/NAME, or NAME for your own user"""
    private: bool = False
    """in a private repository"""
    ranked: bool = False
    """as rankable, which demands everything that a record's own files can show"""
    even_though_it_fails: bool = False
    """despite a failed audit, which the card then begins with"""
    policy: str = "strict"
    """of the audit: strict, readme or precedent"""


@dataclass(frozen=True)
class Pull:
    """Fetch a record from the Hub and compare every file with its hashes."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """USER/NAME or USER/NAME@REVISION"""
    out: Path | None = None
    """a new folder; records/USER/NAME without it"""


@dataclass(frozen=True)
class Asked:
    """What to verify with."""

    corpus: Path | None = None
    """the built corpus of its recipe; without it the recipe's is built below ROOT"""
    root: Path = Path()
    """the folder whose corpora/ gets the corpus"""
    blocks: int = 8
    """how many to draw for each scoring; half as many again are chosen where a false claim would show"""
    seed: int | None = None
    """of the draw, to repeat one; without it one that nobody knew"""
    chunks: int = 0
    """how many of each scoring that adapts to score and learn from again, from the first on"""
    trust_code: bool = False
    """run the record's code although it is not this pgolf's"""
    policy: str = "strict"
    """of the audit: strict, readme or precedent"""


@dataclass(frozen=True)
class Verify:
    """Check a record, from the Hub or on disk: hashes, sizes, stamp, weights, and scores of blocks drawn at random."""

    record: Annotated[Positional[str], arg(metavar="RECORD")]
    """USER/NAME, USER/NAME@REVISION or a folder"""
    asked: Annotated[Asked, arg(name="")] = Asked()


def push_record(command: Push) -> None:
    """Publish a record and print where it is."""
    from huggingface_hub import HfApi

    from .hub import Terms, push
    from .publication import judge_record

    terms = Terms(command.private, command.ranked, command.even_though_it_fails)
    published = push(command.record, command.repo, judge_record(command.record, command.policy), terms, HfApi())
    print(f"published {published.repository} at commit {published.commit}")
    print(f"check it: pgolf verify {published.repository}@{published.commit}")


def pull_record(command: Pull) -> None:
    """Fetch a record and print where it lies."""
    from huggingface_hub import HfApi

    from .hub import pull

    folder = command.out or Path("records") / command.name.partition("@")[0]
    print(f"fetched commit {pull(command.name, folder, HfApi()).commit} into {folder}")


def verify_record(command: Verify) -> None:
    """Print what a record proves; exits with a status of STATUS."""
    from huggingface_hub import HfApi

    from .hub import pull
    from .verify import as_text, overall, verify

    with tempfile.TemporaryDirectory() as place:
        record = Path(command.record)
        if not record.is_dir():
            record = Path(place) / "record"
            print(f"commit {pull(command.record, record, HfApi()).commit}")
        findings = verify(record, command.asked)
    print(as_text(findings))
    if status := STATUS[overall(findings)]:
        sys.exit(status)
