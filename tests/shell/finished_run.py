"""A finished run from synthetic numbers, built by the functions that build real ones."""

import json
from dataclasses import asdict, replace

import torch
from safetensors.torch import save_file

from evaluation.config import EvaluationConfig
from evaluation.ledger import Ledger
from evaluation.windows import ValidationTokens
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import with_track
from pgolf.artifact import code_bytes, write_artifact
from pgolf.corpus.build import CorpusConfig, TrainBpe
from pgolf.corpus.embedded import EmbeddedProse
from pgolf.corpus.splits import file_sha256
from pgolf.recipe import ModelConfig, Recipe
from pgolf.record import TARGET_BYTES
from pgolf.stages import passes
from pgolf.track import mark_checkpoint
from pgolf.workdir import building, open_run, write_manifest, write_text
from quantization.compress import compress
from quantization.config import QuantizationConfig
from training.config import TrainingConfig

WINDOW, TARGETS, BYTES, CHUNK = 16, 16 * 60 + 5, 2400, 160
CORPUS = {"corpus.json": "c" * 64}
SECONDS = {"compile": 1.0, "step": 12.5}
FACTS = {
    "train": {"tokens": 5000, "documents": 9},
    "validation": {
        "tokens": TARGETS + 1,
        "documents": 2,
        "utf8_bytes": BYTES + 5,
        "counted_bytes": BYTES,
        "free_blanks": 1,
        "normalisation_bytes": 5,
        "lost_bytes": 7,
        "gained_bytes": 3,
        "documents_changed": 1,
    },
    "train_documents_dropped_as_validation_duplicates": 0,
    "train_fingerprint": "0123456789abcdef",
}


def tiny_recipe(**changes):
    recipe = Recipe(
        name="tiny",
        corpus=CorpusConfig(EmbeddedProse(), TrainBpe(vocab_size=264)),
        model=ModelConfig(
            vocab_size=264,
            hidden_size=32,
            intermediate_size=64,
            num_blocks=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rotary_dims=4,
            rotary_length=WINDOW,
            max_position_embeddings=WINDOW,
            xsa_layers=[1],
            bigram_buckets=32,
            bigram_dim=8,
            value_embed_layers=[1],
            value_embed_dim=8,
        ),
        training=TrainingConfig(sequence_length=WINDOW, iterations=30),
        quantization=QuantizationConfig(small_tensor_elements=64, codec_level=3),
        evaluation=EvaluationConfig(window=WINDOW, stride=4),
    )
    return replace(recipe, **changes)


def write_checkpoint(recipe, run, facts):
    torch.manual_seed(recipe.training.seed)
    model = PGolfForCausalLM(recipe.model_config())
    with building(run.checkpoint) as folder:
        model.save_pretrained(folder)
        mark_checkpoint(folder / "model.safetensors", recipe.track)
        metrics = {"train_loss": 3.0, "steps": 30, "validation_loss": 3.1, "validation_bpb": 1.8}
        write_text(folder / "metrics.json", json.dumps(metrics))
        stream = {"steps": 30, "tokens": 30 * recipe.training.step_tokens}
        write_manifest(folder, "training", recipe, CORPUS, SECONDS, corpus=facts, stream=stream)
    done = [s / 30 for s in range(1, 31)]
    steps = [
        {"event": "step", "step": round(30 * d), "train_loss": 4 - d, "lr_scale": 1 - d, "seconds": d * SECONDS["step"]}
        for d in done
    ]
    events = [
        *steps,
        {"event": "validation", "step": 30, "validation_loss": 3.1, "validation_bpb": 1.8},
        {"event": "finished", "step": 30, "seconds": SECONDS},
    ]
    run.log.write_text("".join(json.dumps(event) + "\n" for event in events))
    return model


def write_artifact_folder(recipe, run, model):
    artifact = compress(model, recipe.quantization, recipe.budget.artifact_bytes)
    artifact = replace(artifact, frame=with_track(artifact.frame, recipe.track))
    with building(run.artifact) as folder:
        write_artifact(folder, model, artifact, run.checkpoint)
        code = code_bytes(folder)
        sizes = {"total_bytes": code + (folder / "model.safetensors").stat().st_size, "code_bytes": code}
        write_text(folder / "bytes.json", json.dumps({**sizes, "groups": [asdict(line) for line in artifact.ledger]}))
        inputs = {"checkpoint/model.safetensors": file_sha256(run.checkpoint / "model.safetensors")}
        write_manifest(folder, "quantization", recipe, inputs, {"export": 0.5}, **sizes)


def post(nats, chunk):
    """The ledger of one scoring: whole, or in chunks that are learnt from after they are scored."""
    ledger = Ledger(ValidationTokens(torch.arange(TARGETS + 1)))
    for number, part in enumerate(nats.split(chunk)):
        ledger.post(ledger.scored, part, f"after {number}")
        if ledger.scored < TARGETS:
            ledger.update(ledger.posted(ledger.scored - len(part), len(part)), f"after {number + 1}")
    return ledger


def write_scores(recipe, run):
    adapted = "adapted" in passes(recipe.evaluation)
    nats = 1.5 + torch.rand(TARGETS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target_bytes = torch.full((TARGETS,), BYTES // TARGETS, dtype=torch.int16)
    target_bytes[: BYTES % TARGETS] += 1
    by_name = {"plain": nats, "sliding": nats - 1 / TARGETS} | ({"adapted": nats * 0.99} if adapted else {})
    ledgers = {name: post(values, CHUNK if name == "adapted" else TARGETS) for name, values in by_name.items()}
    scores = {}
    for name, values in by_name.items():
        total = float(values.sum())
        bits = total / 0.6931471805599453 / BYTES
        scores[name] = {"bits_per_byte": bits, "nats_per_token": total / TARGETS, "targets": TARGETS, "bytes": BYTES}
        scores[name] |= {"nats": total, "window": WINDOW, "stride": WINDOW if name == "plain" else 4}
    with building(run.scores) as folder:
        save_file({**by_name, TARGET_BYTES: target_bytes}, folder / "nats.safetensors")
        for name, ledger in ledgers.items():
            write_text(folder / f"ledger.{name}.jsonl", "".join(json.dumps(e) + "\n" for e in ledger.events))
        seconds = {"plain": 1.0, "sliding": 4.0} | ({"adapted": 9.0} if adapted else {})
        write_text(folder / "scores.json", json.dumps({"scores": scores, "seconds": seconds}))
        inputs = {"artifact/model.safetensors": file_sha256(run.artifact / "model.safetensors"), **CORPUS}
        write_manifest(folder, "evaluation", recipe, inputs, seconds)


def finish(root, recipe, facts=FACTS):
    run = open_run(root, None, recipe)
    write_artifact_folder(recipe, run, write_checkpoint(recipe, run, facts))
    write_scores(recipe, run)
    return run
