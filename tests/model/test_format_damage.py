"""Damaged and forged artifacts: each is a format error, at a bounded cost in time and memory."""

import itertools
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
import zstandard
from frames import LEVEL, MB, headed, outer, parts, sealed, tiny

from modeling_pgolf.errors import FormatError
from modeling_pgolf.grid import GridTensor
from modeling_pgolf.quantization_pgolf import pack, read_frame_file, unpack, write_frame_file

ROOT = Path(__file__).resolve().parents[2]


def damaged(data, draw):
    """The way of a random damage, and what it makes of ``data``."""
    a, b, c, d = sorted(draw.sample(range(len(data) + 1), 4))
    ways = {
        "flipped": data[:a] + bytes([data[a] ^ 1 << draw.randrange(8)]) + data[a + 1 :],
        "overwritten": data[:a] + draw.randbytes(b - a) + data[b:],
        "zeroed": data[:a] + bytes(b - a) + data[b:],
        "inserted": data[:a] + draw.choice([b"\0", b" ", draw.randbytes(50)]) + data[a:],
        "deleted": data[:a] + data[draw.choice([a + 1, b]) :],
        "truncated": data[:d],
        "swapped": data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:],
        "appended": data + data[: draw.choice([1, a])],
    }
    return draw.choice(list(ways.items()))


BOMB_BYTES = 32 * MB
BOMB = zstandard.ZstdCompressor(level=LEVEL).compress(bytes(BOMB_BYTES))
LIES = [
    *({"raw_bytes": n} for n in (0, -1, 1, 2**30 - 1, 2**30, 2**63, 10**400, 1.0, True, "1", None, [], float("nan"))),
    *({"codec": codec} for codec in ("", "zst", "ZSTD", "lzma", "\ud800", None, 3, [], {})),
    *({"sha256": sha} for sha in ("", "0" * 64, None, 0, ["a"])),
    *({"version": version} for version in (0, 2, -1, 1.0, "1", None)),
    *({"track": track} for track in ("", "legal", "Historical", "ranked ", None, True, 3, [], ["ranked"], {})),
    {"more": 1},
]


def lies():
    """Frames whose header, or the length of it, says something else than the payload."""
    header, raw, payload = parts(pack(tiny()))
    yield from ((f"says {fields}", sealed(raw, payload, **fields)) for fields in LIES)
    yield from ((f"claims {n} bytes", headed(header, payload, n)) for n in (0, 1, 4096, 4097, 2**32 - 1))
    yield from ((f"is nested, {text[:5]}", headed(text, payload)) for text in (b"[" * 4000, b'{"a":' * 800))
    yield from ((f"is before {x[:9]}", sealed(raw, x)) for x in (b"", zstandard.compress(b""), payload * 2, raw, BOMB))
    yield "is before a bomb and says so", sealed(raw, BOMB, raw_bytes=BOMB_BYTES)


def damages(count):
    """Damaged copies of a good file: what was done, and the bytes."""
    frame = pack(tiny())
    good = outer(frame)
    yield from ((f"a header that {way}", outer(lie)) for way, lie in lies())
    for seed in range(count):
        way, data = damaged(good if seed % 2 else frame, random.Random(seed))
        data = data if seed % 2 else outer(data or b"\0")
        if data != good:
            yield f"{way}, seed {seed}", data


def outcome(path):
    """The name of what reading raises; "read" where it raises nothing."""
    try:
        read_frame_file(path)
    except Exception as error:
        return type(error).__name__
    return "read"


def test_damage_is_a_format_error_at_bounded_cost(tmp_path):
    file, wrong, tried, slowest, thirstiest = tmp_path / "file", [], 0, 0.0, 0.0
    tracemalloc.start()
    for way, data in damages(2200):
        file.write_bytes(data)
        tracemalloc.reset_peak()
        before, started = tracemalloc.get_traced_memory()[0], time.perf_counter()
        found = outcome(file)
        slowest = max(slowest, time.perf_counter() - started)
        # Only the bomb that says so may take what it declares, and decoding holds it once.
        allowed = BOMB_BYTES if b'"raw_bytes":%d,' % BOMB_BYTES in data else 0
        thirstiest = max(thirstiest, tracemalloc.get_traced_memory()[1] - before - allowed)
        wrong += [] if found == "FormatError" else [f"{found}: {way}"]
        tried += 1
    tracemalloc.stop()
    assert tried > 2000
    assert not wrong, f"{len(wrong)} of {tried}, like {wrong[:5]}"
    assert thirstiest < MB
    assert slowest < 5.0  # the bomb takes a tenth of a second


def inner(bits='{"a":6}', **changes):
    """An inner file with this text for its grids, and tensors changed or, with None, left out."""
    grid = {"a.codes": torch.zeros(2, 3, dtype=torch.int8), "a.scale": torch.ones(2).half()} | changes
    return safetensors.torch.save({n: t for n, t in grid.items() if t is not None}, metadata={"bits": bits})


GRIDS = ["{", "[]", '"a"', "3", "null", '{"a":9}', '{"a":1}', '{"a":6.0}', '{"a":true}', '{"a":"6"}', '{"b":6}']
# Another spelling of weights that have one frame only; and a text that no parser gets through.
GRIDS += ['{"a": 6}', '{"a":6,"a":6}', "[" * 100_000]
TENSORS = {
    "no scale": {"a.scale": None},
    "no codes": {"a.codes": None},
    "float codes": {"a.codes": torch.ones(2, 3)},
    "code 32 of 6 bits": {"a.codes": torch.tensor([[32], [0]], dtype=torch.int8)},
    "code -128 of 6 bits": {"a.codes": torch.tensor([[-128], [0]], dtype=torch.int8)},
    "wide scale": {"a.scale": torch.ones(2)},
    "too many scales": {"a.scale": torch.ones(3).half()},
    "whole numbers": {"b": torch.ones(2, dtype=torch.int64)},
}
FORGED = {**{bits[:15]: inner(bits) for bits in GRIDS}, **{name: inner(**changes) for name, changes in TENSORS.items()}}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_inner_file_is_a_format_error(case):
    assert isinstance(unpack(sealed(inner()))["a"], GridTensor)
    with pytest.raises(FormatError):
        unpack(sealed(FORGED[case]))


def test_what_is_read_is_what_is_written():
    """Whatever a frame with a true header holds, it is refused or it is the frame of the weights it gives."""
    raw, read = parts(pack(tiny() | {"rest": torch.arange(500.0)}))[1], 0
    for seed in range(3000):
        way, changed = damaged(raw, random.Random(seed))
        try:
            found = unpack(sealed(changed))
        except FormatError:
            continue
        read += 1
        assert parts(pack(found))[1] == changed, f"{way}, seed {seed}: another spelling of the same weights"
    assert 100 < read < 2900


def bombs():
    """Frames, and the megabytes that reading one may add to the most that the process ever held: these rise."""
    yield sealed(parts(pack(tiny()))[1], BOMB), 8  # larger than its header says
    yield sealed(bytes(64 * MB)), 64 + 8  # nothing but zeros
    yield pack({"x": torch.zeros(32 * MB)}, level=LEVEL), 2 * 128 + 8 - 64  # honest; held as bytes and as tensors


def peak_megabytes():
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_stays_within_what_is_declared(tmp_path):
    frames, limits = zip(*bombs(), strict=True)
    for place, frame in enumerate([pack(tiny()), *frames]):
        write_frame_file(tmp_path / f"{place}", frame)
    command = [sys.executable, __file__, *sorted(map(str, tmp_path.iterdir()))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    results = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert [found for found, _ in results] == ["read", "FormatError", "FormatError", "read"]
    added = [after - before for (_, before), (_, after) in itertools.pairwise(results)]
    assert all(megabytes <= limit for megabytes, limit in zip(added, limits, strict=True)), added


if __name__ == "__main__":
    print(json.dumps([(outcome(Path(path)), peak_megabytes()) for path in sys.argv[1:]]))
