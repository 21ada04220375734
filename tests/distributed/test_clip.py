"""The two orders of clipping and averaging on two processes, against the formulas written out."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("clip_worker.py")
LIMIT = 0.3


def clipped(gradients):
    """Scale gradients to the limit, as torch does."""
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    return [g * min(1.0, LIMIT / (norm.item() + 1e-6)) for g in gradients]


def test_orders_of_clipping(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(WORKER)]
    run = subprocess.run(
        [*command, str(tmp_path / "out"), str(LIMIT)],
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result = load_file(tmp_path / "out")
    per_process = [[result["own.0"][rank], result["own.1"][rank]] for rank in (0, 1)]
    mean_of_clipped = [torch.stack(pair).mean(0) for pair in zip(*map(clipped, per_process), strict=True)]
    clipped_mean = clipped([torch.stack(pair).mean(0) for pair in zip(*per_process, strict=True)])
    for i in (0, 1):
        torch.testing.assert_close(result[f"per_rank.{i}"], mean_of_clipped[i])
        torch.testing.assert_close(result[f"global.{i}"], clipped_mean[i])
    assert (mean_of_clipped[0] - clipped_mean[0]).abs().max() > 1e-3, "the two orders must differ here"
