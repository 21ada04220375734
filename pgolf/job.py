"""A job: a recipe with the place of its run, and the data that both name.

A job is refused before anything is written: where an override is wrong, a model contradicts itself, or a package that
its export needs is missing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from evaluation.windows import ValidationTokens
from modeling_pgolf.byte_codecs import require
from modeling_pgolf.errors import RecipeError
from training.batches import TrainTokens

from .corpus.build import Corpus, SentencePieceModel, build_corpus, describe
from .corpus.fineweb import ChallengeShards
from .corpus.local import LocalFolder
from .corpus.shards import WatchedShard
from .corpus.stream import TextStream
from .recipe import Recipe, check_name, flat, load_recipe, with_overrides
from .trackers import Tracker

# Parts of a corpus that are files of this machine.
ON_DISK = (LocalFolder, SentencePieceModel)
# Fields that count something every run has.
COUNTS = (
    "training.iterations",
    "training.sequence_length",
    "training.span_sequences",
    "training.spans_per_step",
    "training.micro_batch_sequences",
    "evaluation.window",
    "evaluation.stride",
    "evaluation.batch_windows",
)


@dataclass(frozen=True)
class Place:
    """Where a run lives, ``ROOT/runs/RUN`` and ``ROOT/corpora``, and which trackers may watch it.

    reuse: another run below ROOT, whose checkpoint, and artifact where that is the same too, need not be made again.
    """

    root: Path = Path()
    run: str | None = None
    reuse: str | None = None
    trackers: tuple[Tracker, ...] = ()


@dataclass(frozen=True)
class Job:
    """A recipe with the place of its run."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    place: Annotated[Place, tyro.conf.arg(name="")]


def parse_job(recipe_file: Path, arguments: list[str]) -> Job:
    """Read a recipe and apply ``--root``, ``--run``, ``--reuse`` and dotted overrides to it."""
    place, rest = tyro.cli(Place, args=arguments, return_unknown_args=True, add_help=False)
    recipe = with_overrides(load_recipe(recipe_file), rest)
    for name in (recipe.name, *filter(None, (place.run, place.reuse))):
        check_name(name)
    check_counts(recipe)
    recipe.model_config()  # raises where the model contradicts itself
    require(recipe.quantization.codec)
    return Job(recipe, place)


def check_counts(recipe: Recipe) -> None:
    """Raise RecipeError where a run would have nothing to do, or no way to do it."""
    values = flat(asdict(recipe))
    for name in COUNTS:
        if values[name] < 1:
            raise RecipeError(f"{name} must be at least 1, found {values[name]}")
    if recipe.evaluation.stride > recipe.evaluation.window:
        raise RecipeError(
            f"evaluation.stride must be at most the window of {recipe.evaluation.window}, "
            f"found {recipe.evaluation.stride}: targets between the windows would never be scored"
        )


def corpus_folder(job: Job) -> Path:
    """Return the folder of the recipe's corpus, named by what it is made of and where its files lie."""
    corpus = job.recipe.corpus
    places = [str(Path(part.path).resolve()) for part in (corpus.source, corpus.tokenizer) if isinstance(part, ON_DISK)]
    text = json.dumps([describe(corpus), places], sort_keys=True)
    return job.place.root / "corpora" / hashlib.sha256(text.encode()).hexdigest()[:12]


def open_job_corpus(job: Job) -> Corpus:
    """Build the recipe's corpus, or open it; raises RecipeError where the model has too few token ids for it."""
    corpus = build_corpus(job.recipe.corpus, corpus_folder(job))
    if len(corpus.tokenizer) > job.recipe.model.vocab_size:
        raise RecipeError(
            f"the tokenizer has {len(corpus.tokenizer)} tokens, model.vocab_size is {job.recipe.model.vocab_size}"
        )
    return corpus


def validation_tokens(corpus: Corpus) -> ValidationTokens:
    """Return the validation stream of a corpus."""
    parts = [torch.from_numpy(shard.astype("int64")) for shard in corpus.validation]
    return ValidationTokens(torch.cat(parts))


def training_tokens(job: Job, corpus: Corpus) -> TrainTokens | TextStream:
    """Return what a run of this job trains on: the shards of its corpus, or text that is tokenised as it is read."""
    source, streaming = job.recipe.corpus.source, job.recipe.corpus.streaming
    if streaming is not None and not isinstance(source, ChallengeShards):
        return TextStream(source, corpus.folder, streaming)
    shards = [WatchedShard(shard) for shard in corpus.train]
    return TrainTokens(shards, [shard.name for shard in shards])
