"""A column of a published script's run, again: what the raw weights score on the way, step by step.

    python benchmarks/column.py RECIPE --out FILE [--banks] [--root DIR] [overrides]

``--banks`` starts from the weights that a script of PR 549's line draws for the seed. Those keep their matrices in
banks, so no constructor of a layer draws before them: the token table twice, then block by block q, k, v and up.
Source: PR 549, PR 1423; SPEC-8192 1.8.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import tyro
from accelerate.utils import set_seed

from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from pgolf.job import open_job_corpus, parse_job, validation_tokens
from pgolf.processes import join_processes
from pgolf.run import events_to, plain_score
from training.batches import TrainTokens
from training.loop import fit


@dataclass(frozen=True)
class Arguments:
    """out: the file of events to write, one JSON object a line. banks: start like a script with banks."""

    out: Path
    banks: bool = False


@torch.no_grad()
def start_like_banks(model: PGolfForCausalLM, seed: int) -> None:
    """Give ``model`` the initial weights of a script with banks; everything that is not random keeps its values."""
    set_seed(seed)
    table = model.model.embed_tokens.weight
    torch.nn.init.normal_(table)  # by the constructor of the table
    torch.nn.init.normal_(table, std=model.config.embed_init_std)
    for block in model.model.layers:
        attention, feed_forward = block.self_attn, block.mlp
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj, feed_forward.up_proj):
            torch.nn.init.orthogonal_(layer.weight)


def main() -> None:
    """Train by the recipe and log every event."""
    arguments, rest = tyro.cli(Arguments, args=sys.argv[2:], return_unknown_args=True, add_help=False)
    job = parse_job(Path(sys.argv[1]), rest)
    recipe, accelerator = job.recipe, join_processes()
    corpus = open_job_corpus(job)
    set_seed(recipe.training.seed)
    model, tokens = PGolfForCausalLM(recipe.model_config()), validation_tokens(corpus)
    if arguments.banks:
        start_like_banks(model, recipe.training.seed)

    def plain(current: PGolfForCausalLM) -> dict[str, float]:
        return plain_score(current, tokens, corpus, recipe, accelerator)

    def show(event: dict[str, Any]) -> None:
        if event["event"] != "step" or event["step"] % 50 == 0:
            print(json.dumps(event), flush=True)

    log = events_to(arguments.out, show)

    fit(model, TrainTokens(corpus.train), recipe.training, accelerator, validate=plain, log=log)
    log({"event": "published", **plain(model)})


if __name__ == "__main__":
    main()
