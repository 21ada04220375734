"""Run by torchrun: train a tiny model, score it with adaptation, and let the first process write what came out."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evaluation.adaptation.score_first import ScoreFirstConfig
from evaluation.config import EvaluationConfig
from evaluation.scorer import score
from evaluation.windows import ValidationTokens
from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.checkpoint import FolderCheckpoints
from pgolf.processes import leave_process_group
from training.batches import TrainTokens
from training.config import QatConfig, ReplayConfig, TrainingConfig
from training.loop import fit


def main(out: Path, stop_after: int | str, replay_spans: int, fields: dict) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = PGolfForCausalLM(
        PGolfConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=96,
            num_blocks=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            rotary_dims=4,
            rotary_length=16,
            xsa_layers=[1, 2],
            value_embed_layers=[2],
            value_embed_dim=12,
            bigram_buckets=31,
            bigram_dim=8,
        )
    )
    stream = np.random.default_rng(0).integers(0, 64, 4000).astype(np.uint16)
    config = TrainingConfig(
        iterations=8,
        seconds=None,
        sequence_length=16,
        span_sequences=2,
        spans_per_step=4,
        micro_batch_sequences=2,
        warmdown_steps=4,
        qat=QatConfig(below_scale=0.6, more_elements_than=0),
        replay=ReplayConfig(below_scale=0.6, spans=replay_spans, epochs=1) if replay_spans else None,
        precision="fp32",
        compile=False,
        log_every=1,
        **fields,
    )
    out.mkdir(exist_ok=True)
    states = FolderCheckpoints(out / "states", keep=2, writer=accelerator.is_main_process)

    def log(event: dict) -> None:
        if stop_after in (event.get("step"), event["event"]):
            sys.exit(0)

    fit(model, TrainTokens([stream]), config, accelerator, checkpoints=states, log=log)
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    rule = ScoreFirstConfig(chunk_tokens=64, epochs=1, lr=0.02, rows=4)
    evaluation = EvaluationConfig(16, 4, rule, batch_windows=4, compile=False, precision="fp32")
    ledger = score(model, ValidationTokens(torch.from_numpy(stream[:300].astype("int64"))), evaluation, accelerator)
    if accelerator.is_main_process:
        save_file({**trained, "nats": ledger.nats}, out / f"result-{accelerator.num_processes}.safetensors")


if __name__ == "__main__":
    with suppress(SystemExit):
        main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    leave_process_group()
    names = [Path(f"/proc/self/task/{thread}/comm").read_text() for thread in os.listdir("/proc/self/task")]
    # One that outlives the group aborts the process now and then: see leave_process_group.
    assert not [name for name in names if "gloo" in name], "a thread of the process group is left"
