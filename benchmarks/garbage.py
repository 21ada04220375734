"""How often Python's cyclic collector looks at all objects alive while batches are drawn, and for how long.

    python benchmarks/garbage.py --out FILE [--order sequential] [--left-alone] [--steps N]

Reads the 384 windows of a step from a shard of random tokens, as training does, with all that training imports alive.
No model is compiled: a run has more objects than this, so full collections are rarer there and longer.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import tyro

from modeling_pgolf.modeling_pgolf import PGolfForCausalLM  # noqa: F401, for the objects that it brings
from pgolf.corpus.shards import open_split, shard_name, write_shard
from training.batches import TrainTokens
from training.config import TrainingConfig
from training.garbage import collected_once
from training.loop import fit  # noqa: F401, for the objects that it brings
from training.orders import open_batches
from training.read_ahead import ReadAhead


@dataclass(frozen=True)
class Arguments:
    """out: the JSON file to write. left_alone: keep what is alive at the start out of the collector's sight."""

    out: Path
    order: Literal["sequential", "coprime", "shuffled"] = "shuffled"
    left_alone: bool = False
    steps: int = 3000


class FullCollections:
    """Seconds of every collection of the oldest generation since it was made."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        gc.callbacks.append(self)

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        """Time one collection."""
        if phase == "start":
            self.since = time.perf_counter()
        elif info["generation"] == 2:
            self.seconds.append(time.perf_counter() - self.since)


def drawn(arguments: Arguments, folder: Path) -> dict[str, Any]:
    """Draw the steps; returns what the collector did meanwhile."""
    config = TrainingConfig(order=arguments.order, sequence_length=256)
    ahead = ReadAhead(open_batches(TrainTokens(open_split(folder, "train")), config), pinned=False)
    gc.collect()
    alive = len(gc.get_objects())
    with collected_once() if arguments.left_alone else nullcontext():
        full = FullCollections()
        for _ in range(arguments.steps):
            ahead.next_step()
            ahead.start()
        gc.callbacks.remove(full)
    ahead.close()
    facts = {"order": arguments.order, "left_alone": arguments.left_alone, "steps": arguments.steps}
    longest = 1000 * max(full.seconds, default=0.0)
    return {**facts, "objects": alive, "full_collections": len(full.seconds), "longest_ms": longest}


def main() -> None:
    """Write the facts as JSON, and print them."""
    arguments = tyro.cli(Arguments)
    with tempfile.TemporaryDirectory() as folder:
        tokens = np.random.default_rng(0).integers(0, 1024, 1_000_000).astype(np.uint16)
        write_shard(Path(folder) / shard_name("train", 0), tokens)
        facts = drawn(arguments, Path(folder))
    arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
