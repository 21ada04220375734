"""The walk-through ``examples/add_a_technique.md``, followed to the letter in a fresh copy of the repository."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import test_house

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PARTS = ("modeling_pgolf", "training", "quantization", "evaluation", "pgolf", "recipes", "docs")


def steps(page):
    """What a page tells its reader to do, in order: (action, file, text); "replace" has the old and the new text."""
    found, file, old, last = [], None, None, 0
    for block in BLOCK.finditer(page):
        told, (language, text) = page[last : block.start()].strip(), block.groups()
        last = block.end()
        named = re.findall(r"`([\w./]+/[\w./]+)`", told)
        file = named[-1] if named else file
        if language == "bash":
            found.append(("run", None, text))
        elif told.endswith(f"New file `{file}`:"):
            found.append(("create", file, text))
        elif told.endswith("after the other rows:"):
            found.append(("append", file, text))
        elif told == "becomes":
            found.append(("replace", file, (old, text)))
        else:
            assert told.endswith(" line"), f"the page does not say what to do with {text!r}"
            old = text
    return found


def apply(action, path, text):
    if action == "create":
        assert not path.exists()
        path.write_text(text)
    elif action == "append":
        path.write_text(path.read_text() + text)
    else:
        old, new = text
        content = path.read_text()
        assert content.count("\n" + old) == 1, f"{path.name} does not have the line once: {old}"
        path.write_text(content.replace("\n" + old, "\n" + new))


def run(commands, copy):
    """Run a page's commands in the copy; ``python`` and ``pgolf`` are those of an installation of the copy."""
    programs = {"python": f'exec {sys.executable} "$@"', "pgolf": f'exec {sys.executable} -m pgolf.cli "$@"'}
    (copy / "bin").mkdir()
    for name, line in programs.items():
        (copy / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (copy / "bin" / name).chmod(0o755)
    ours = {"PATH": f"{copy / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(copy)}
    quiet = {"HF_HOME": str(copy / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=copy, env=os.environ | ours | quiet, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_page_works_as_it_is_written(tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    todo = steps((ROOT / "examples" / "add_a_technique.md").read_text())
    kinds = [action for action, _, _ in todo]
    assert kinds == ["create", "replace", "replace", "create", "append", "run"], (
        "one file, one line, one recipe, one row"
    )
    for action, file, text in todo[:-1]:
        apply(action, copy / file, text)
    monkeypatch.setattr(test_house, "ROOT", copy)
    test_house.test_technique_rows_point_at_files_and_fields()
    last_line = run(todo[-1][2], copy).splitlines()[-1]
    sliding, adapted = re.fullmatch(r"BPB: [\d.]+ plain, ([\d.]+) sliding, ([\d.]+) adapted", last_line).groups()
    assert float(adapted) < float(sliding) - 0.01, "the technique has no effect"
    ledger = copy / "try" / "runs" / "dynamic" / "scores" / "ledger.adapted.jsonl"
    events = [json.loads(line)["event"] for line in ledger.read_text().splitlines()]
    assert events[:3] == ["SCORE", "UPDATE", "SCORE"] and events.count("UPDATE") == len(events) // 2
