"""The ``pgolf`` command: one verb a stage, and the tools around them.

``pgolf run RECIPE`` is the whole road. A stage verb prints and runs the launch command that it stands for, so what
works here works from a script.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg, subcommand

from .hub_verbs import Pull, Push, Verify, pull_record, push_record, verify_record
from .place import Place
from .refusals import TellRefusals

RECIPE_HELP = (
    "a recipe file; behind it any of its fields can be overridden, like --training.iterations 100, and "
    "pgolf VERB RECIPE --help lists them"
)


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe, or all of them, as help shows it; ``parse_job`` reads options and overrides."""

    recipe: Annotated[Positional[str], arg(metavar="RECIPE", help=RECIPE_HELP)]
    place: Annotated[Place, arg(name="")]


@dataclass(frozen=True)
class Diff:
    """The fields in which two recipes differ."""

    one: Annotated[Positional[Path], arg(metavar="RECIPE")]
    """a recipe file, or the recipe.json of a run"""
    other: Annotated[Positional[Path], arg(metavar="RECIPE")]
    """another"""


@dataclass(frozen=True)
class Convert:
    """A checkpoint of a reference script becomes a Hugging Face folder."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """its state dict, .safetensors or .pt"""
    system: str
    """the pull request it is from: 414, 445, 549, 691, 1019, 1364 or fork; 1285, 1394, 1413, 1423, 1477 or 1493"""
    out: Path
    """the folder to write"""
    settings: Path | None = None
    """its hyper-parameters where they are not the published ones, a JSON object of lower-case names"""


@dataclass(frozen=True)
class Audit:
    """Facts of a record folder, and the verdicts of a named policy on them; nothing is rerun."""

    record: Annotated[Positional[Path], arg(metavar="RECORD")]
    """the folder of a record of pgolf or of the challenge"""
    policy: str = "strict"
    """strict, readme or precedent"""


@dataclass(frozen=True)
class Compare:
    """Compare two systems by the record folders of their seeds, with Welch's test."""

    base: tuple[Path, ...]
    """record folders of the system to beat, one a seed; two seeds at least for a test"""
    candidate: tuple[Path, ...]
    """record folders of the new system, likewise"""
    scoring: str = "sliding"
    """which of their scores: plain, sliding or adapted"""


@dataclass(frozen=True)
class Bundle:
    """Write the challenge's train_gpt.py of a record folder or of a recipe: it trains, exports and scores."""

    source: Annotated[Positional[Path], arg(metavar="SOURCE")]
    """a record folder, whose weights are counted too, or a recipe file"""
    out: Path = Path("train_gpt.py")
    """the file to write"""


@dataclass(frozen=True)
class Leaderboard:
    """Rank records by their own files."""

    records: Annotated[Positional[tuple[str, ...]], arg(metavar="RECORD...")]
    """record folders, repositories of the Hub (USER/NAME), or a collection's name"""
    out: Path = Path("leaderboard.html")
    """the page to write; it needs nothing but itself"""


@dataclass(frozen=True)
class Doctor:
    """Check the installation: versions, sibling packages, GPUs, the compiler."""


VERBS: dict[str, tuple[Any, str]] = {
    "run": (Stage, "All stages: corpus, train, export, score, record."),
    "corpus": (Stage, "Build the recipe's token shards, tokenizer and byte table."),
    "train": (Stage, "Train; resumes from the newest state of the run."),
    "export": (Stage, "Compress the checkpoint into one file."),
    "score": (Stage, "Score the artifact, plainly, by sliding windows, and adapted where the recipe says so."),
    "record": (Stage, "Collect everything into a folder that can be published."),
    "audit": (Audit, "Say what a record's own files prove, and judge it by a policy; status 1 on FAIL."),
    "push": (Push, "Publish a record on the Hub, with the audit's verdicts on its card."),
    "pull": (Pull, "Fetch a record from the Hub."),
    "verify": (
        Verify,
        "Check a record that somebody else made, and score a part of it again; status 0 where all of it passes, 1 "
        "where something fails, 3 where something was not shown.",
    ),
    "compare": (Compare, "Compare two systems over their seeds, by both rules of the challenge."),
    "leaderboard": (Leaderboard, "Rank records in one page, with the evidence for each."),
    "bundle": (Bundle, "Write the challenge's single file for a record or a recipe."),
    "diff": (Diff, "Show the fields in which two recipes differ."),
    "convert": (Convert, "Turn a reference checkpoint into a Hugging Face folder."),
    "doctor": (Doctor, "Check the installation."),
}
STAGE_VERBS = tuple(verb for verb, (kind, _) in VERBS.items() if kind is Stage)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; exits with status 1 and one line on what pgolf refuses."""
    with TellRefusals():
        run_verb(sys.argv[1:] if argv is None else argv)


def run_verb(arguments: list[str]) -> None:
    """Parse the verb and do it."""
    if len(arguments) > 1 and arguments[0] in STAGE_VERBS and not arguments[1].startswith("-"):
        run_stage(arguments[0], arguments[1], arguments[2:])
        return
    kinds = [Annotated[kind, subcommand(name=verb, description=text)] for verb, (kind, text) in VERBS.items()]
    commands: Any = functools.reduce(operator.or_, kinds)
    command: Any = tyro.cli(commands, args=arguments, prog="pgolf")
    if isinstance(command, Stage):  # with the recipe behind the options, where the usage line has it
        rest = arguments[1:]
        rest.remove(command.recipe)
        run_stage(arguments[0], command.recipe, rest)
    else:
        DOERS[type(command)](command)


def run_stage(verb: str, recipe: str, rest: list[str]) -> None:
    """Do one stage, or all of them; what is wrong with them is refused before anything is launched."""
    # Imported here: torch and transformers take seconds, and help and diff do without them.
    from . import job as jobs
    from . import run
    from .launch import DOORS, process_count, run_and_wait
    from .readiness import check_ready
    from .workdir import open_run

    job = jobs.parse_job(Path(recipe), rest)
    if verb == "corpus":
        print(jobs.open_job_corpus(job).folder)
    elif verb == "record":
        run.record(job)
    else:
        stages = list(DOORS) if verb == "run" else [verb]
        check_ready(job, stages[0], process_count())
        if verb == "run":
            jobs.open_job_corpus(job)
        open_run(job.place.root, job.place.run, job.recipe)  # last: what was refused leaves no folder behind
        for stage in stages:
            run_and_wait(stage, [recipe, *rest])
        if verb == "run":
            run.record(job)


def show_diff(command: Diff) -> None:
    """Print the fields in which two recipes differ."""
    from .recipe import differences, load_recipe

    for name, one, other in differences(load_recipe(command.one), load_recipe(command.other)):
        print(f"{name}: {one!r} -> {other!r}")


def convert_checkpoint(command: Convert) -> None:
    """Convert a reference checkpoint."""
    from .convert import convert, read_settings

    settings = read_settings(command.settings) if command.settings else {}
    convert(command.checkpoint, command.system, settings, command.out)
    print(f"wrote {command.out}; AutoModelForCausalLM.from_pretrained reads it with trust_remote_code=True")


def audit_record(command: Audit) -> None:
    """Print facts and verdicts of a record; exits with status 1 on FAIL."""
    from .audit.folders import audit_folder
    from .audit.policy import as_text, judge, load_policy, overall

    policy = load_policy(command.policy)
    facts, hardware = audit_folder(command.record)
    verdicts = judge(facts, policy, hardware)
    print(as_text(verdicts, policy))
    if overall(verdicts) == "FAIL":
        sys.exit(1)


def compare_records(command: Compare) -> None:
    """Print the comparison of two systems."""
    from .compare import as_text, check_apart, compare, read_seeds

    check_apart(command.base, command.candidate)
    base = read_seeds(command.base, "base", command.scoring)
    candidate = read_seeds(command.candidate, "candidate", command.scoring)
    print(as_text(base, candidate, compare(base, candidate)))


def write_leaderboard(command: Leaderboard) -> None:
    """Write the page and say how many records it ranks."""
    from .leaderboard import write_page

    print(write_page(command.records, command.out))


def write_single_file(command: Bundle) -> None:
    """Write the bundle and print what of the budget it takes."""
    from .bundle import write_bundle

    print(write_bundle(command.source, command.out))


def examine_installation(command: Doctor) -> None:
    """Print the doctor's table."""
    from .doctor import examine

    examine()


DOERS: dict[type, Callable[[Any], None]] = {
    Audit: audit_record,
    Bundle: write_single_file,
    Compare: compare_records,
    Push: push_record,
    Pull: pull_record,
    Verify: verify_record,
    Diff: show_diff,
    Convert: convert_checkpoint,
    Doctor: examine_installation,
    Leaderboard: write_leaderboard,
}


if __name__ == "__main__":
    main()
