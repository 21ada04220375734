"""Real runs of the published recipes, shrunk until they take seconds."""

import json
import signal

from pgolf import run as stages
from pgolf.job import Job
from pgolf.place import Place
from pgolf.recipe import load_recipe, with_overrides
from pgolf.siblings import ROOT
from pgolf.workdir import open_run

SHRUNK = """
--training.iterations 3 --training.no-compile --training.precision fp32 --training.sequence-length 16
--training.span-sequences 4 --training.spans-per-step 1 --training.micro-batch-sequences 4
--training.fine-tune.epochs 1 --training.fine-tune.tokens 800
--model.vocab-size 300 --model.hidden-size 32 --model.intermediate-size 64 --model.num-blocks 6
--model.num-attention-heads 4 --model.num-key-value-heads 2 --model.rotary-dims 4 --model.rotary-length 16
--model.max-position-embeddings 16 --model.xsa-layers 1
--quantization.small-tensor-elements 64 --quantization.no-fill-budget --quantization.gptq.precision fp32
--quantization.gptq.calibration.batches 2 --quantization.gptq.calibration.batch-sequences 4
--evaluation.window 16 --evaluation.stride 16 --evaluation.no-compile --evaluation.precision fp32
"""
TABLES = "--model.bigram-buckets 32 --model.bigram-dim 8 --model.value-embed-layers 1 --model.value-embed-dim 8"


def write_documents(folder):
    folder.mkdir()
    texts = [" ".join("badegilomunaperisotu"[(i * i + n) % 19 :][:2] for i in range(150)) for n in range(6)]
    for split, part in (("train", texts[:4]), ("validation", texts[4:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))


def shrunk(name, text):
    recipe = load_recipe(ROOT / "recipes" / f"{name}.py")
    recipe = with_overrides(recipe, (SHRUNK + (TABLES if recipe.model.bigram_buckets else "")).split())
    parts = f"corpus.source:local-folder --corpus.source.path {text} corpus.tokenizer:train-bpe"
    return with_overrides(recipe, [*parts.split(), "--corpus.tokenizer.vocab-size", "300"])


def finish_shrunk(name, home):
    """Go the whole road with the shrunk recipe of that name, on the text in ``home``; returns the run."""
    kept = signal.getsignal(signal.SIGTERM)
    recipe = shrunk(name, home / "text")
    job, run = Job(recipe, Place(home)), open_run(home, None, recipe)
    try:
        for stage in (stages.train, stages.export, stages.score_artifact):
            stage(job, run)
        stages.record(job)
    finally:
        signal.signal(signal.SIGTERM, kept)  # training takes it for itself
    return run
