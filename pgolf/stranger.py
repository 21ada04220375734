"""A stranger to pgolf: scores windows by a record's own code, in a process that can import nothing of ours.

``pgolf.rescore`` starts this file as a script, ``python -P stranger.py FOLDER``. The folder holds ``request.json``
(the record, the precision, windows a batch) and ``request.safetensors`` (inputs and targets, int64 (n, T)); the answer
is ``reply.safetensors``: nats, float64 (n, T). That is why it imports none of its neighbours.
"""

from __future__ import annotations

import importlib.abc
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

OURS = ("modeling_pgolf", "training", "quantization", "evaluation", "pgolf")


class Forbidden(importlib.abc.MetaPathFinder):
    """Refuses our packages under their own names; the copies of a record's code have other names."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Raise ImportError for our packages; leave all others to the finders behind."""
        if name.partition(".")[0] in OURS:
            raise ImportError(f"{name} is not to be had in this process")
        return None


def answer(folder: Path) -> None:
    """Load the record by the Auto class alone, score the windows and write their nats."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    asked = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    windows = load_file(folder / "request.safetensors")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(asked["record"], trust_remote_code=True).to(device).eval()
    nats = []
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=asked["precision"] == "bf16"):
        for first in range(0, len(windows["inputs"]), asked["batch"]):
            inputs, targets = (windows[name][first : first + asked["batch"]] for name in ("inputs", "targets"))
            logits = model(inputs.to(device), use_cache=False).logits.float()
            # Over the whole vocabulary: whatever the code does, these are probabilities that sum to one.
            losses = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), reduction="none")
            nats.append(losses.double().view(targets.shape).cpu())
    save_file({"nats": torch.cat(nats)}, folder / "reply.safetensors")


if __name__ == "__main__":
    sys.meta_path.insert(0, Forbidden())
    answer(Path(sys.argv[1]))
