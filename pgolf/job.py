"""A job: a recipe with the place of its run, and the data that both name.

A job is refused before anything is written: where an override is wrong, a model contradicts itself or has too few
token ids, or a package that its export or its trackers need is missing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from evaluation.windows import ValidationTokens
from modeling_pgolf.byte_codecs import require
from modeling_pgolf.errors import RecipeError
from training.batches import TrainTokens

from .corpus.build import Corpus, SentencePieceModel, TrainBpe, build_corpus, describe
from .corpus.fineweb import ChallengeShards
from .corpus.local import LocalFolder
from .corpus.shards import WatchedShard
from .corpus.stream import TextStream
from .limits import check_limits
from .place import Place
from .recipe import Recipe, check_name, load_recipe, with_overrides
from .trackers import require_trackers

# Parts of a corpus that are files of this machine.
ON_DISK = (LocalFolder, SentencePieceModel)


@dataclass(frozen=True)
class Job:
    """A recipe with the place of its run."""

    recipe: Recipe
    place: Place


def parse_job(recipe_file: Path, arguments: list[str]) -> Job:
    """Read a recipe and apply dotted overrides to it; the options of ``Place`` say where it runs.

    Raises what the parts of pgolf have against the job, EnvironmentMismatch for packages that it lacks.
    """
    place, rest = tyro.cli(Place, args=arguments, return_unknown_args=True, add_help=False)
    recipe = with_overrides(load_recipe(recipe_file), rest)
    for name in (recipe.name, *filter(None, (place.run, place.reuse))):
        check_name(name)
    check_limits(recipe)
    recipe.model_config()  # raises where the model contradicts itself
    if isinstance(recipe.corpus.tokenizer, TrainBpe):
        check_vocabulary(recipe.corpus.tokenizer.vocab_size, recipe)
    require(recipe.quantization.codec)
    require_trackers(place.trackers)
    return Job(recipe, place)


def check_vocabulary(tokens: int, recipe: Recipe) -> None:
    """Raise RecipeError where the model has too few token ids for a tokenizer of so many."""
    if tokens > recipe.model.vocab_size:
        raise RecipeError(
            f"the tokenizer has {tokens} tokens, model.vocab_size is {recipe.model.vocab_size}: raise it to {tokens}, "
            "or choose a smaller tokenizer"
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
    check_vocabulary(len(corpus.tokenizer), job.recipe)
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
