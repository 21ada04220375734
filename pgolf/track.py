"""The track of a run, and how it stays with the weights: ranked, or historical (it adapted on validation text).

Whatever holds weights names it: a checkpoint in the metadata of its file, an artifact in the header of its frame, and
the manifests beside both. A stage refuses to go on where one of them names another, so a copied folder, an edited
recipe or an edited manifest stops there; in a record that was edited afterwards the auditor finds it. Training states
need no mark: they are written before anything is fine-tuned.

What no file can show: that somebody wrote the weights' own file anew with another track, and every hash of it. The
weights are then still those that saw the text; only training the ranked recipe again, which gives others, is evidence.
Source: LEGALITY D1, K6.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from modeling_pgolf.errors import FormatError, LegalityError

from .artifact import WEIGHTS
from .workdir import MANIFEST, read_manifest


def mark_checkpoint(path: Path, track: str) -> None:
    """Name ``track`` in the metadata of a safetensors file; equal files stay equal.

    Done by hand, because safetensors writes several entries of metadata in another order every time.
    """
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] |= {"track": track}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def checkpoint_track(folder: Path) -> str | None:
    """Return the track that a checkpoint's weights name, None where they name none; the artifact's is ``read_track``.

    Raises FormatError where they cannot be read.
    """
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            track: str | None = (file.metadata() or {}).get("track")
    except SafetensorError as error:
        raise FormatError(f"{folder.name}/{WEIGHTS} cannot be read ({error}); train again") from error
    return track


def check_track(track: str, folder: Path, weights: str | None) -> None:
    """Raise LegalityError where a stage's manifest or its ``weights`` name another track than ``track``, or none."""
    for place, other in ((MANIFEST, read_manifest(folder).get("track")), (WEIGHTS, weights)):
        if other != track:
            raise LegalityError(
                f"asked for the {track} track; {folder.name}/{place} names {other or 'none'}, and weights keep the "
                "track that they were trained on: give the recipe that trained them, or train again"
            )
