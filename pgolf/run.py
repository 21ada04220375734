"""The stages in their order, each from a folder to a folder.

Here the shell's knowledge (paths, corpora, recipes) meets the stages' functions; the mathematics is four hops from
the command line. Every stage refuses inputs that do not chain and leaves a manifest.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from evaluation.adaptation.frozen import FrozenConfig
from evaluation.config import EvaluationConfig
from evaluation.ledger import Ledger, Score
from evaluation.scorer import score
from evaluation.windows import ValidationTokens
from modeling_pgolf.errors import RecipeError
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import read_track
from training.batches import TrainTokens
from training.loop import fit
from training.orders import stream_facts

from .artifact import WEIGHTS
from .checkpoint import FolderCheckpoints
from .corpus.build import Corpus
from .corpus.recount import check_counted
from .corpus.splits import file_sha256
from .corpus.stream import TextStream
from .exporting import export_checkpoint
from .fine_tune_text import fine_tune_facts, fine_tune_text
from .job import Job, open_job_corpus, parse_job, training_tokens, validation_tokens
from .occupied import occupied
from .processes import join_processes, leave_first_the_word, leave_process_group
from .recipe import Recipe
from .record import TARGET_BYTES, write_record
from .refusals import TellRefusals
from .reuse import reused
from .stages import as_text, passes, stage_table
from .track import check_track, mark_checkpoint
from .trackers import start_trackers
from .workdir import RECIPE, RunFolder, building, check_outputs, open_run, run_folder, write_manifest, write_text


def train(job: Job, run: RunFolder) -> None:
    """Train the recipe's model; writes ``checkpoint/`` and ``log.jsonl``."""
    recipe, trackers = job.recipe, job.place.trackers
    accelerator = join_processes(log_with=list(trackers) or None, project_dir=run.path)
    corpus = shared_corpus(job, accelerator)
    set_seed(recipe.training.seed)
    model = PGolfForCausalLM(recipe.model_config())
    tokens = validation_tokens(corpus)

    def validate(current: PreTrainedModel) -> dict[str, float]:
        return plain_score(current, tokens, corpus, recipe, accelerator)

    main = accelerator.is_main_process
    states = FolderCheckpoints(run.states, recipe.training.keep_checkpoints, writer=main)
    tokens_read, fine_tuned = training_tokens(job, corpus), fine_tune_text(recipe, corpus)
    stream = stream_facts(tokens_read, recipe.training, accelerator.num_processes) if main else {}
    with asked_to_stop() as stop:
        trained = fit(
            model,
            tokens_read,
            recipe.training,
            accelerator,
            validate=validate,
            checkpoints=states,
            log=events_to(
                run.log if main else None, start_trackers(accelerator, recipe, run.path) if trackers else None
            ),
            stop=stop,
            fine_tune_tokens=fine_tuned,
        )
    final = validate(model)
    if main:
        with building(run.checkpoint) as folder:
            model.save_pretrained(folder)
            mark_checkpoint(folder / WEIGHTS, recipe.track)
            corpus.tokenizer.save_pretrained(folder)
            write_text(
                folder / "metrics.json", json.dumps({"train_loss": trained.train_loss, "steps": trained.steps, **final})
            )
            read = {"steps": trained.steps, "tokens": trained.steps * recipe.training.step_tokens}
            facts: dict[str, Any] = {"corpus": corpus.facts, "stream": stream | read}
            if recipe.training.replay:
                facts["replay"] = trained.replay
            if recipe.training.fine_tune and fine_tuned:
                facts["fine_tune"] = fine_tune_facts(recipe, fine_tuned)
            write_manifest(folder, "training", recipe, corpus_hashes(corpus), trained.seconds, **facts)
        states.clear()
    accelerator.wait_for_everyone()  # the next stage may follow in these processes
    for tracker in accelerator.trackers:  # not end_training: a bundle goes on in this process group
        tracker.finish()


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Give a question that says yes once this process got SIGTERM, as schedulers send it before they kill, or Ctrl-C.

    A second Ctrl-C ends it at once.
    """
    asked = threading.Event()
    # In a background job of a script Ctrl-C is ignored, and stays so.
    kinds = [kind for kind in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(kind) != signal.SIG_IGN]

    def ask(number: int, frame: Any) -> None:
        asked.set()
        if signal.SIGINT in kinds:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = [signal.signal(kind, ask) for kind in kinds]
    try:
        yield asked.is_set
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


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
    result = counted_score(score(model, tokens, config, accelerator, "validate"), corpus)
    return {"validation_loss": result.nats_per_token, "validation_bpb": result.bits_per_byte}


def counted_score(ledger: Ledger, corpus: Corpus) -> Score:
    """Sum a ledger up; raises CorpusError where it divides by other bytes than the corpus was recounted to."""
    result = ledger.score(corpus.bytes)
    check_counted(result.bytes, corpus.facts)
    return result


def events_to(path: Path | None, track: Callable[[dict[str, Any]], None] | None) -> Callable[[dict[str, Any]], None]:
    """Return a log that appends one JSON object a line to ``path``, flushed at once, and shows it to trackers."""

    def write(event: dict[str, Any]) -> None:
        if track is not None:
            track(event)
        if path is not None:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"time": time.time(), **event}) + "\n")

    return write


def corpus_hashes(corpus: Corpus) -> dict[str, str]:
    """Return the SHA-256 of what identifies a corpus."""
    return {"corpus.json": file_sha256(corpus.folder / "corpus.json")}


def export(job: Job, run: RunFolder, script_bytes: int = 0) -> None:
    """Compress the checkpoint to ``artifact/``, all processes together; raises BudgetError where it is over the limit.

    script_bytes: of a bundle, to be left free beside the weights where they are more than the artifact's own code.
    """
    accelerator = join_processes()

    def tokens() -> TrainTokens | TextStream:
        return training_tokens(job, shared_corpus(job, accelerator))

    export_checkpoint(job.recipe, run, accelerator, tokens, script_bytes)


def shared_corpus(job: Job, accelerator: Accelerator) -> Corpus:
    """Open the corpus on every process; the main one builds it where it is missing."""
    with accelerator.main_process_first():
        return open_job_corpus(job)


def score_artifact(job: Job, run: RunFolder) -> None:
    """Score the artifact, and nothing else, plainly and by sliding windows; writes ``scores/``."""
    recipe = job.recipe
    manifest = check_outputs(run.artifact)
    check_track(recipe.track, run.artifact, read_track(run.artifact / WEIGHTS))
    accelerator = join_processes()
    corpus = shared_corpus(job, accelerator)
    model = load_artifact(run.artifact).to(accelerator.device)
    tokens = validation_tokens(corpus)
    results, ledgers, seconds = {}, {}, {}
    for name, config in passes(recipe.evaluation).items():
        started = time.perf_counter()
        ledger = score(model, tokens, config, accelerator, name, recipe.budget.evaluation_seconds)
        seconds[name] = time.perf_counter() - started
        results[name] = describe_score(counted_score(ledger, corpus), config)
        ledgers[name] = ledger
    if accelerator.is_main_process:
        with building(run.scores) as folder:
            nats = {name: ledger.nats for name, ledger in ledgers.items()}
            save_file({**nats, TARGET_BYTES: corpus.bytes.of_targets(tokens.ids).short()}, folder / "nats.safetensors")
            for name, ledger in ledgers.items():
                write_text(folder / f"ledger.{name}.jsonl", "".join(json.dumps(e) + "\n" for e in ledger.events))
            write_text(folder / "scores.json", json.dumps({"scores": results, "seconds": seconds}, indent=2) + "\n")
            artifact = {f"artifact/{name}": sha for name, sha in manifest["outputs"].items()}
            write_manifest(folder, "evaluation", recipe, {**artifact, **corpus_hashes(corpus)}, seconds)
        print("BPB: " + ", ".join(f"{result['bits_per_byte']:.4f} {name}" for name, result in results.items()))


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
    run = run_folder(job.place.root, job.place.run, job.recipe)
    if not (run.path / RECIPE).is_file():
        raise RecipeError(f"{run.path} holds no run: none of its stages has started; pgolf run RECIPE makes them all")
    folder = write_record(job.recipe, run)
    print(as_text(stage_table(job.recipe, run)))
    print(f"record: {folder}")


STAGES: dict[str, Callable[[Job, RunFolder], None]] = {"train": train, "export": export, "score": score_artifact}


def door(stage: str, arguments: list[str]) -> None:
    """Run one stage from the command line: ``RECIPE``, then options of ``Place`` and overrides.

    Every process of a launch comes through it; exits with status 1 and one line where the stage is refused.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with TellRefusals(before_telling=leave_first_the_word):
        if not arguments or arguments[0].startswith("-"):
            raise RecipeError(f"the {stage} stage needs a recipe file as its first argument, like recipes/demo.py")
        job = parse_job(Path(arguments[0]), arguments[1:])
        run = open_run(job.place.root, job.place.run, job.recipe)
        with occupied(run.path):
            if not reused(job, run, stage):
                STAGES[stage](job, run)
            leave_process_group()
