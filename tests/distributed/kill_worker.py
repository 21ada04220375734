"""Run by torchrun: kill runs of several processes again and again at random moments, and compare every bit."""

import json
import random
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from killing import CONFIG, Killed, killed_in_call, random_tokens, resumed_step, train

from pgolf.corpus.local import LocalFolder
from pgolf.corpus.stream import StreamConfig, TextStream
from pgolf.processes import leave_process_group
from training.batches import TrainTokens

# What all processes call alike; in other files some calls are the main process's alone.
ALIKE = tuple(f"training/{name}.py" for name in ("trainer", "batches", "streamed", "averaging", "swa", "qat", "replay"))
RUNS, KILLS = 4, 5


def compare(tokens, folder: Path) -> list[int]:
    """Kill each of some runs a few times before it may end; returns the steps from which they went on."""
    main = Accelerator(cpu=True).is_main_process
    with killed_in_call(None, ALIKE) as calls:
        weights, _ = train(tokens, CONFIG, folder / "whole", main)
    assert len(set(gather_object([calls[0]]))) == 1, "the processes do not call alike: choose other places"
    draw, starts = random.Random(folder.name), []
    for run in range(RUNS):
        for _ in range(KILLS):
            starts.append(kill(tokens, folder / str(run), main, draw.randint(1, calls[0] // 2)))
        again, events = train(tokens, CONFIG, folder / str(run), main)
        starts.append(resumed_step(events))
        for name, tensor in weights.items():
            assert torch.equal(tensor, again[name]), f"run {run}: {name}"
    return starts


def kill(tokens, folder: Path, main: bool, call: int) -> int:
    """Start a run, or go on with it, and die in its call of that number, or earlier where it would be over before.

    Returns the step of its newest state then.
    """
    try:
        with killed_in_call(call, ALIKE):
            train(tokens, CONFIG, folder, main)
    except Killed:
        torch.distributed.barrier()  # a killed run is dead in every process before it is started again
    else:
        return kill(tokens, folder, main, call // 2)
    return max([0, *(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))])


def main(out: Path, text: str, corpus: Path) -> None:
    accelerator = Accelerator(cpu=True)
    config = StreamConfig(lanes=4, shuffle_documents=3, workers=0)
    starts = {
        "shards": compare(TrainTokens([random_tokens()]), out / "shards"),
        "stream": compare(TextStream(LocalFolder(text), corpus, config), out / "stream"),
    }
    if accelerator.is_main_process:
        (out / "starts.json").write_text(json.dumps(starts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    leave_process_group()
