"""Which reader a folder needs: pgolf records bring hashes and ledgers, those of the challenge logs and a script."""

from __future__ import annotations

from pathlib import Path

from modeling_pgolf.errors import FormatError

from ..workdir import MANIFEST
from .challenge import read_challenge
from .facts import Fact
from .records import read_record
from .shipped_code import SCRIPT


def audit_folder(folder: Path) -> tuple[list[Fact], str | dict[str, str]]:
    """Read the facts of a record and its hardware, by rule where it may differ.

    Raises FormatError where the folder is a record of neither kind, or a damaged one.
    """
    ours, theirs = (MANIFEST, "scores.json"), ("submission.json", SCRIPT)
    if all((folder / name).is_file() for name in ours):
        return read_record(folder)
    if all((folder / name).is_file() for name in theirs):
        return read_challenge(folder)
    raise FormatError(
        f"{folder} is no record: a pgolf record has {' and '.join(ours)}, one of the challenge {' and '.join(theirs)}"
    )
