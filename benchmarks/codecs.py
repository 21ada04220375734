"""What codecs make of integer codes: bits a code and seconds, on Gaussian codes and on a trained artifact.

    python benchmarks/codecs.py --frame model.safetensors --out FOLDER

Every codec packs the same inner file, in which each tensor of codes has one scale, so that it holds codes and next to
nothing else. Every codec uses one thread here; seconds are those of the processor, so that a busy machine counts less.
"""

from __future__ import annotations

import json
import lzma
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import brotli
import torch
import tyro

from modeling_pgolf import ans_codec
from modeling_pgolf.byte_codecs import decode, encode
from modeling_pgolf.grid import GridTensor, largest_code
from modeling_pgolf.quantization_pgolf import Weights, _inner_bytes, pack, read_frame_file
from quantization.budget import order0_entropy

# One block of PR 1394's model, q, k, v, o, up and down; it has 11, and a table of 8,192 tokens (SPEC-8192 1.7).
BLOCK = ((512, 512), (256, 512), (256, 512), (512, 512), (2048, 512), (512, 2048))
BLOCKS, TABLE = 11, (8192, 512)
# k and bits of the records: matrices of PR 1394, then feed-forward and attention of later ones, then tables.
RECORDS = ((12.85, 6), (12.0, 6), (11.5, 6), (13.0, 6), (20.0, 8), (15.0, 7), (14.0, 7))
LEVELS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Arguments:
    """frame: a trained artifact's model.safetensors. out: folder for codecs.json and codecs.md."""

    frame: Path
    out: Path


def gaussian(shape: tuple[int, int], k: float, bits: int, generator: torch.Generator) -> GridTensor:
    """Codes of a Gaussian matrix whose rows are clipped at ``k`` standard deviations."""
    weight, c = torch.randn(shape, generator=generator), largest_code(bits)
    scale = (k * weight.std(-1) / c).half()
    return GridTensor((weight / scale.float()[:, None]).round().clamp(-c, c).to(torch.int8), scale, bits)


def codes_alone(weights: Weights) -> Weights:
    """The tensors of codes, each with a scale of 1."""
    return {name: w._replace(scale=torch.ones(()).half()) for name, w in weights.items() if isinstance(w, GridTensor)}


def data_sets(frame: Path) -> dict[str, Weights]:
    """What is packed, by name."""
    generator = torch.Generator().manual_seed(0)
    sets: dict[str, Weights] = {}
    for k, bits in RECORDS:
        matrices = [gaussian(shape, k, bits, generator) for shape in BLOCK]
        sets[f"Gaussian, int{bits}, k {k:g}"] = {f"{place}": matrix for place, matrix in enumerate(matrices)}
    whole = {f"{b}.{m}": gaussian(s, 12.85, 6, generator) for b in range(BLOCKS) for m, s in enumerate(BLOCK)}
    sets["Gaussian, shapes of PR 1394"] = whole | {"table": gaussian(TABLE, 20.0, 8, generator)}
    sets["trained, 27 M, 500 steps"] = read_frame_file(frame)
    return {name: codes_alone(weights) for name, weights in sets.items()}


CODECS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes, int], bytes]]] = {
    "zstd-22": (lambda raw: encode("zstd", raw), lambda data, size: decode("zstd", data, size)),
    "lzma-9": (lambda raw: lzma.compress(raw, preset=9), lambda data, size: lzma.decompress(data)),
    "brotli-11": (lambda raw: brotli.compress(raw, quality=11), lambda data, size: brotli.decompress(data)),
    "shuffle + brotli-11": (
        lambda raw: encode("shuffle-brotli", raw), lambda data, size: decode("shuffle-brotli", data, size),
    ),
    "ans": (lambda raw: encode("ans", raw), lambda data, size: decode("ans", data, size)),
}  # fmt: skip


def measure(weights: Weights) -> dict[str, object]:
    """Bits a code of the entropy and of every codec, with seconds of both directions."""
    codes = [w.codes for w in weights.values() if isinstance(w, GridTensor)]
    count, raw = sum(c.numel() for c in codes), _inner_bytes(weights)
    entropy = sum(c.numel() * order0_entropy(c) for c in codes) / count
    result: dict[str, object] = {"codes": count, "order-0 entropy": entropy}
    for name, (packer, unpacker) in CODECS.items():
        started = time.process_time()
        data = packer(raw)
        packed = time.process_time()
        assert unpacker(data, len(raw)) == raw
        seconds = {"encode_seconds": packed - started, "decode_seconds": time.process_time() - packed}
        result[name] = {"bytes": len(data), "bits": 8 * len(data) / count, **seconds}
    return result


def level_bytes(weights: Weights) -> dict[int, int]:
    """Bytes of the codec ``ans`` with other numbers of levels an octave than it has."""
    sizes, own = {}, ans_codec.LEVELS_PER_OCTAVE
    for levels in (*LEVELS, own):
        ans_codec.LEVELS_PER_OCTAVE = levels
        ans_codec.LOWEST_CLASS, ans_codec.HIGHEST_CLASS = -4 * levels, 7 * levels
        sizes[levels] = len(ans_codec.ans_encode(_inner_bytes(weights), 22))
    return sizes


def table(results: dict[str, dict]) -> str:
    """The results as Markdown: bits a code, then seconds."""
    names = list(CODECS)
    lines = ["| codes | order-0 entropy | " + " | ".join(names) + " | ans / entropy |", "|---" * (len(names) + 3) + "|"]
    for title, found in results.items():
        bits = " | ".join(f"{found[name]['bits']:.4f}" for name in names)
        share = found["ans"]["bits"] / found["order-0 entropy"]
        lines.append(f"| {title} ({found['codes']:,}) | {found['order-0 entropy']:.4f} | {bits} | {share:.4f} |")
    lines += ["", "| seconds to pack, to unpack | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for title, found in results.items():
        pairs = (f"{found[n]['encode_seconds']:.2f}, {found[n]['decode_seconds']:.2f}" for n in names)
        lines.append(f"| {title} ({found['codes']:,}) | " + " | ".join(pairs) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure everything and write ``codecs.json`` and ``codecs.md``."""
    a = tyro.cli(Arguments)
    a.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results: dict[str, dict] = {}
    sets = data_sets(a.frame)
    for title, weights in sets.items():
        results[title] = measure(weights)
        print(title, json.dumps(results[title]), flush=True)
    whole = read_frame_file(a.frame)
    files = {codec: len(pack(whole, codec)) for codec in ("zstd", "shuffle-brotli", "ans")}
    facts = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "data": results,
        "trained_file_bytes": files,
        "trained_bytes_by_levels_an_octave": level_bytes(sets["trained, 27 M, 500 steps"]),
    }
    (a.out / "codecs.json").write_text(json.dumps(facts, indent=2) + "\n")
    (a.out / "codecs.md").write_text(table(results))
    print(table(results))
    print(facts["trained_file_bytes"], facts["trained_bytes_by_levels_an_octave"])


if __name__ == "__main__":
    main()
