"""Two processes killed at twenty random moments end with the same bits, with shards and with a stream."""

import json
import random
import subprocess
import sys
from pathlib import Path

from pgolf.corpus.build import CorpusConfig, TrainBpe, build_corpus
from pgolf.corpus.local import LocalFolder
from pgolf.corpus.stream import StreamConfig

WORKER = Path(__file__).with_name("kill_worker.py")


def test_two_processes_killed_anywhere_end_with_the_same_bits(tmp_path):
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 7))) for _ in range(60)]
    (tmp_path / "web").mkdir()
    for name, documents in (("train-0", 30), ("train-1", 40), ("validation", 4)):
        lines = (json.dumps({"text": f"{name} {i} {' '.join(draw.choices(words, k=20))}"}) for i in range(documents))
        (tmp_path / "web" / f"{name}.jsonl").write_text("\n".join(lines))
    source = LocalFolder(str(tmp_path / "web"))
    corpus = build_corpus(CorpusConfig(source, TrainBpe(270), streaming=StreamConfig()), tmp_path / "corpus")

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(WORKER)]
    run = subprocess.run(
        [*command, str(tmp_path), source.path, str(corpus.folder)],
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    starts = json.loads((tmp_path / "starts.json").read_text())
    for kind in ("shards", "stream"):
        assert len(starts[kind]) == 4 * (5 + 1) and len(set(starts[kind])) >= 4
