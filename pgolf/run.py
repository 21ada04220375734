"""The stages in their order, each from a folder to a folder.

Here the shell's knowledge (paths, corpora, recipes) meets the stages' functions; the mathematics is four hops from
the command line. Every stage refuses inputs that do not chain and leaves a manifest.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from evaluation.adaptation.frozen import FrozenConfig
from evaluation.config import EvaluationConfig
from evaluation.ledger import Score
from evaluation.scorer import score
from evaluation.windows import ValidationTokens
from modeling_pgolf.errors import PGolfError, RecipeError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import write_frame_file
from quantization.budget import check_budget
from quantization.compress import compress
from training.batches import TrainTokens, stream_facts
from training.loop import fit

from .artifact import OUTER_BYTES, WEIGHTS, code_bytes, write_loader
from .checkpoint import FolderCheckpoints
from .corpus.build import Corpus, SentencePieceModel, build_corpus, describe
from .corpus.local import LocalFolder
from .corpus.splits import file_sha256
from .recipe import Recipe, load_recipe, with_overrides
from .record import write_record
from .stages import as_text, stage_table
from .workdir import RunFolder, building, check_outputs, open_run, write_manifest, write_text

# Parts of a corpus that are files of this machine.
ON_DISK = (LocalFolder, SentencePieceModel)


@dataclass(frozen=True)
class Place:
    """Where a run lives: ``ROOT/runs/RUN`` and ``ROOT/corpora``."""

    root: Path = Path()
    run: str | None = None


@dataclass(frozen=True)
class Job:
    """A recipe with the place of its run."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    place: Annotated[Place, tyro.conf.arg(name="")]


def parse_job(recipe_file: Path, arguments: list[str]) -> Job:
    """Read a recipe and apply ``--root``, ``--run`` and dotted overrides to it."""
    place, rest = tyro.cli(Place, args=arguments, return_unknown_args=True, add_help=False)
    recipe = with_overrides(load_recipe(recipe_file), rest)
    recipe.model_config()  # a model that contradicts itself is refused before anything is written
    return Job(recipe, place)


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


def train(job: Job, run: RunFolder) -> None:
    """Train the recipe's model; writes ``checkpoint/`` and ``log.jsonl``."""
    recipe = job.recipe
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    with accelerator.main_process_first():
        corpus = open_job_corpus(job)
    set_seed(recipe.training.seed)
    model = PGolfForCausalLM(recipe.model_config())
    tokens = validation_tokens(corpus)

    def validate(current: PreTrainedModel) -> dict[str, float]:
        return plain_score(current, tokens, corpus, recipe, accelerator)

    main = accelerator.is_main_process
    states = FolderCheckpoints(run.states, recipe.training.keep_checkpoints, writer=main)
    train_tokens = TrainTokens(corpus.train)
    trained = fit(
        model,
        train_tokens,
        recipe.training,
        accelerator,
        validate=validate,
        checkpoints=states,
        log=line_writer(run.log) if main else lambda event: None,
        stop=asked_to_stop(),
    )
    final = validate(model)
    if main:
        with building(run.checkpoint) as folder:
            model.save_pretrained(folder)
            corpus.tokenizer.save_pretrained(folder)
            write_text(
                folder / "metrics.json", json.dumps({"train_loss": trained.train_loss, "steps": trained.steps, **final})
            )
            stream = stream_facts(train_tokens, recipe.training, trained.steps)
            facts = {"corpus": corpus.facts, "stream": stream}
            write_manifest(folder, "training", recipe, corpus_hashes(corpus), trained.seconds, **facts)


def asked_to_stop() -> Callable[[], bool]:
    """Return a question that says yes once this process got SIGTERM, as schedulers send it before they kill."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    return asked.is_set


def plain_score(
    model: PreTrainedModel, tokens: ValidationTokens, corpus: Corpus, recipe: Recipe, accelerator: Accelerator
) -> dict[str, float]:
    """Score a model in memory on disjoint windows of the training length."""
    length = recipe.training.sequence_length
    config = replace(
        recipe.evaluation,
        window=length,
        stride=length,
        adaptation=FrozenConfig(),
        compile=False,
        precision=recipe.training.precision,
    )
    result = score(model, tokens, config, accelerator, "validate").score(corpus.bytes)
    return {"validation_loss": result.nats_per_token, "validation_bpb": result.bits_per_byte}


def line_writer(path: Path) -> Callable[[dict[str, Any]], None]:
    """Return a log that appends one JSON object a line, flushed at once."""

    def write(event: dict[str, Any]) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")

    return write


def corpus_hashes(corpus: Corpus) -> dict[str, str]:
    """Return the SHA-256 of what identifies a corpus."""
    return {"corpus.json": file_sha256(corpus.folder / "corpus.json")}


def export(job: Job, run: RunFolder) -> None:
    """Compress the checkpoint to ``artifact/``; raises BudgetError where it is over the limit."""
    recipe = job.recipe
    check_outputs(run.checkpoint)
    started = time.perf_counter()
    model = PGolfForCausalLM.from_pretrained(run.checkpoint)
    with building(run.artifact) as folder:
        write_loader(folder, model, run.checkpoint)
        code = code_bytes(folder)
        artifact = compress(model, recipe.quantization, recipe.budget.artifact_bytes - code - OUTER_BYTES)
        write_frame_file(folder / WEIGHTS, artifact.frame)
        total = check_budget((folder / WEIGHTS).stat().st_size, code, recipe.budget.artifact_bytes)
        sizes = {"total_bytes": total, "code_bytes": code, "matrix_scale_floor": artifact.matrix_scale_floor}
        ledger = [asdict(line) for line in artifact.ledger]
        write_text(folder / "bytes.json", json.dumps({**sizes, "groups": ledger}, indent=2) + "\n")
        inputs = {"checkpoint/model.safetensors": file_sha256(run.checkpoint / "model.safetensors")}
        write_manifest(folder, "quantization", recipe, inputs, {"export": time.perf_counter() - started}, **sizes)
    print(f"artifact: {total:,} bytes of {recipe.budget.artifact_bytes:,} ({code:,} of them code)")


def score_artifact(job: Job, run: RunFolder) -> None:
    """Score the artifact, and nothing else, plainly and by sliding windows; writes ``scores/``."""
    recipe = job.recipe
    manifest = check_outputs(run.artifact)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    corpus = open_job_corpus(job)
    model = load_artifact(run.artifact).to(accelerator.device)
    tokens = validation_tokens(corpus)
    results, ledgers, seconds = {}, {}, {}
    for name, config in passes(recipe.evaluation).items():
        started = time.perf_counter()
        ledger = score(model, tokens, config, accelerator, name, recipe.budget.evaluation_seconds)
        seconds[name] = time.perf_counter() - started
        results[name] = describe_score(ledger.score(corpus.bytes), config)
        ledgers[name] = ledger
    if accelerator.is_main_process:
        with building(run.scores) as folder:
            save_file({name: ledger.nats for name, ledger in ledgers.items()}, folder / "nats.safetensors")
            for name, ledger in ledgers.items():
                write_text(folder / f"ledger.{name}.jsonl", "".join(json.dumps(e) + "\n" for e in ledger.events))
            write_text(folder / "scores.json", json.dumps({"scores": results, "seconds": seconds}, indent=2) + "\n")
            artifact = {f"artifact/{name}": sha for name, sha in manifest["outputs"].items()}
            write_manifest(folder, "evaluation", recipe, {**artifact, **corpus_hashes(corpus)}, seconds)
        print("BPB: " + ", ".join(f"{result['bits_per_byte']:.4f} {name}" for name, result in results.items()))


def passes(config: EvaluationConfig) -> dict[str, EvaluationConfig]:
    """Name the scorings of a run: plain, sliding, and adapted where a rule is configured. Adapting comes last."""
    frozen = replace(config, adaptation=FrozenConfig())
    named = {"plain": replace(frozen, stride=config.window), "sliding": frozen}
    return named if config == frozen else {**named, "adapted": config}


def load_artifact(folder: Path) -> PreTrainedModel:
    """Load an artifact exactly as a stranger would, by the code that it carries."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    return model


def describe_score(result: Score, config: EvaluationConfig) -> dict[str, Any]:
    """Return a score as plain values."""
    return {
        "bits_per_byte": result.bits_per_byte,
        "nats_per_token": result.nats_per_token,
        "targets": result.targets,
        "bytes": result.bytes,
        "nats": result.nats,
        "window": config.window,
        "stride": config.stride,
    }


def record(job: Job) -> None:
    """Collect the run into ``record/`` and print the stage table and where the record lies."""
    run = open_run(job.place.root, job.place.run, job.recipe)
    folder = write_record(job.recipe, run)
    print(as_text(stage_table(job.recipe, run)))
    print(f"record: {folder}")


STAGES: dict[str, Callable[[Job, RunFolder], None]] = {"train": train, "export": export, "score": score_artifact}


def door(stage: str, arguments: list[str]) -> None:
    """Run one stage from the command line: ``RECIPE [--root DIR] [--run NAME] [overrides]``."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        if not arguments or arguments[0].startswith("-"):
            raise RecipeError(f"the {stage} stage needs a recipe file as its first argument, like recipes/demo.py")
        job = parse_job(Path(arguments[0]), arguments[1:])
        STAGES[stage](job, open_run(job.place.root, job.place.run, job.recipe))
    except PGolfError as error:
        print(f"pgolf: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
