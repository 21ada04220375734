"""Run by torchrun: clip and average gradients that differ between processes; the first process writes the outcome."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.nn import Parameter

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pgolf.processes import leave_process_group
from training.gradients import CLIPS


def main(out: Path, limit: float) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(accelerator.process_index)
    parameters = [Parameter(torch.zeros(4, 3)), Parameter(torch.zeros(5)), Parameter(torch.zeros(2))]
    own = [torch.randn_like(p) * (1 + accelerator.process_index) for p in parameters]
    result = {}
    for order, clip in CLIPS.items():
        for p, gradient in zip(parameters, own, strict=True):
            # DDP has averaged before the global clip; before the per-rank one nothing has.
            p.grad = accelerator.reduce(gradient, "mean") if order == "global" else gradient.clone()
        parameters[2].grad = None
        clip(accelerator, parameters, limit)
        result |= {f"{order}.{i}": p.grad for i, p in enumerate(parameters[:2])}
    whole = {f"own.{i}": accelerator.gather(gradient[None]) for i, gradient in enumerate(own[:2])}
    if accelerator.is_main_process:
        save_file({**result, **whole}, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
    leave_process_group()
