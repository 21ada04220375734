"""Through processes of their own, as users go: the command line, and a stranger who loads by name.

This file is also what those processes run. The stranger gets ``python -P`` in a foreign directory, and an import hook
that forbids our packages; that is why nothing of ours is imported at its head.
"""

import importlib.abc
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = ("modeling_pgolf", "training", "quantization", "evaluation", "pgolf")
PROMPT = "bade gilo muna"


def test_a_record_goes_round_and_a_stranger_plays_with_it(finished_run, hub, tmp_path):
    told = start(tmp_path, hub, "player", str(finished_run.record), str(finished_run.path.parents[1]))
    assert "published user/tiny at commit" in told and "fetched commit" in told
    lines = told.partition("pulled as it was published\n")[2].splitlines()
    rows = {line[8:25].strip(): line[:8].strip() for line in lines if line.startswith(("PASS", "FAIL", "UNKNOWN"))}
    assert set(rows) >= {"files", "hash chain", "sizes", "stamp", "audit", "weights", "code", "scores, plain"}
    assert set(rows.values()) == {"PASS"}, told
    expected = answers(finished_run.record)
    verdict = json.loads(start(tmp_path, hub, "stranger"))
    assert verdict.pop("our packages imported") == []
    assert verdict == expected


def start(folder, hub, *arguments):
    """Run this file in a process that knows the Hub by its documented settings; returns what it printed."""
    from endpoints import TOKEN

    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "home")}
    environment |= {"OMP_NUM_THREADS": "1"} | ({"HF_TOKEN": TOKEN} if arguments[0] == "player" else {})
    command = [sys.executable, "-P", __file__, *arguments]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    return run.stdout


def player(record, root):
    """Publish, fetch and verify by the command line, in one process: importing it all takes seconds."""
    sys.path.insert(0, str(ROOT))
    from pgolf.cli import main

    main(["push", record, "--repo", "tiny"])
    main(["pull", "user/tiny"])
    fetched = {p.name: p.read_bytes() for p in Path("records/user/tiny").iterdir() if p.is_file()}
    kept = {p.name: p.read_bytes() for p in Path(record).iterdir() if p.is_file()}
    if {name for name in fetched if fetched[name] != kept.get(name)} == {"README.md", "manifest.json", "audit.json"}:
        print("pulled as it was published")
    main(["verify", "user/tiny@main", "--root", root])


class Forbidden(importlib.abc.MetaPathFinder):
    """Refuses our packages under their own names."""

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in OURS:
            raise ImportError(f"{name} is not to be had here")


def stranger():
    """Load the record by its name alone."""
    sys.meta_path.insert(0, Forbidden())
    print(json.dumps(answers("user/tiny") | {"our packages imported": [name for name in OURS if name in sys.modules]}))


def answers(name):
    """What the Auto classes and the pipeline make of a prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits
    written = pipeline("text-generation", model=name, trust_remote_code=True)(
        PROMPT, max_new_tokens=6, min_new_tokens=6, do_sample=False
    )
    return {"ids": ids.tolist(), "logits": logits.tolist(), "text": written[0]["generated_text"]}


if __name__ == "__main__":
    {"player": player, "stranger": stranger}[sys.argv[1]](*sys.argv[2:])
