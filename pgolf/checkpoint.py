"""Training states on disk: nested dictionaries as one safetensors file and one JSON file, never pickle.

A state is written to a scratch folder, flushed and renamed, so a kill at any moment leaves the last good one.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from modeling_pgolf.errors import TrainingError

from .workdir import building, write_text

TENSORS, TREE = "tensors.safetensors", "tree.json"


@dataclass(frozen=True)
class FolderCheckpoints:
    """The newest ``keep`` training states of a run, in folders named by step. Only the ``writer`` process writes."""

    folder: Path
    keep: int
    writer: bool = True

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Store ``state`` as that of ``step`` and drop the oldest; raises TrainingError where the disk refuses."""
        if not self.writer:
            return
        try:
            with building(self.folder / f"step-{step:08d}") as scratch:
                write_state(scratch, state)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"the state of step {step} could not be written ({error}); older states are kept"
            ) from error
        # Beside the oldest, what a killed process left of a write.
        for old in [*self._stored()[: -self.keep], *self.folder.glob(".step-*")]:
            shutil.rmtree(old)

    def restore(self) -> dict[str, Any] | None:
        """Return the newest state; None where there is none."""
        stored = self._stored()
        return read_state(stored[-1]) if stored else None

    def clear(self) -> None:
        """Remove all states: the run has ended, and its weights are where they are published."""
        if self.writer and self.folder.exists():
            # Renamed first: a kill while files go leaves no state that looks whole.
            gone = self.folder.rename(self.folder.with_name(f".{self.folder.name}.{os.getpid()}"))
            shutil.rmtree(gone, ignore_errors=True)

    def _stored(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a nested state of dictionaries, lists, tensors and plain values into ``folder``."""
    tensors: dict[str, Tensor] = {}
    tree = _strip(state, tensors)
    safetensors.torch.save_file(tensors, folder / TENSORS)
    with open(folder / TENSORS, "rb") as file:
        os.fsync(file.fileno())
    write_text(folder / TREE, json.dumps(tree))


def read_state(folder: Path) -> dict[str, Any]:
    """Read a state back; raises TrainingError where it is damaged."""
    try:
        tensors = safetensors.torch.load_file(folder / TENSORS)
        state: dict[str, Any] = _fill(json.loads((folder / TREE).read_text()), tensors)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise TrainingError(
            f"the training state {folder} is damaged ({error}); remove it to resume from an older"
        ) from error
    return state


def _strip(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by their place; dictionaries become pairs, because JSON would turn number keys into text."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _strip(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_strip(inner, tensors) for inner in value]}
    return {"value": value}


def _fill(node: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _fill(inner, tensors) for key, inner in content}
    if kind == "list":
        return [_fill(inner, tensors) for inner in content]
    return content
