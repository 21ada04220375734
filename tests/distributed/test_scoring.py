"""One artifact's nats are the same for any number of windows in a batch and any number of processes."""

import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

WORKER = Path(__file__).with_name("scoring_worker.py")
# Asked: 1e-6 nats a token in float32 on the CPU, for each target. Measured: 0, rows of a product do not depend on how
# many there are here; another machine's kernels may sum a row of another batch in another order.
LIMIT = 1e-6


def scored(processes, out):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    run = subprocess.run(
        [*command, str(WORKER), str(out)],
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return {f"{processes} processes, batch {b}": n for b, n in load_file(out / f"nats-{processes}.safetensors").items()}


def test_batches_and_processes_change_no_score(tmp_path):
    found = scored(1, tmp_path) | scored(2, tmp_path)
    assert len(found) == 6
    first = found["1 processes, batch 1"]
    assert len(first) == 1500 and first.std() > 0.1
    for name, nats in found.items():
        assert (nats - first).abs().max().item() < LIMIT, name
