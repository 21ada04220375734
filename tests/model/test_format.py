"""The artifact format: what goes in comes out, and nothing else is let in, at bounded cost."""

import hashlib
import itertools
import json
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from modeling_pgolf.errors import FormatError
from modeling_pgolf.grid import GridTensor, largest_code
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import (
    FRAME_NAME,
    MAGIC,
    TRACKS,
    pack,
    read_frame_file,
    read_track,
    unpack,
    with_track,
    write_frame_file,
)
from pgolf.artifact import write_artifact
from quantization.compress import compress
from quantization.config import QuantizationConfig

ROOT = Path(__file__).resolve().parents[2]
MB = 2**20
LEVEL = 1  # quick, and all the same to a reader


@st.composite
def weights(draw):
    """A few named tensors: grids and floats, matrices to scalars, some without an element, some all zero."""
    names = draw(st.lists(st.text("abc._é", min_size=1, max_size=6), max_size=5, unique=True))
    return {name: draw(tensors()) for name in names}


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if draw(st.booleans()):
        factor = draw(st.sampled_from([0.0, -0.0, 1.0, float("inf"), float("nan")]))
        rest = torch.randn(shape, generator=generator) * factor
        return rest.to(draw(st.sampled_from([torch.float16, torch.float32])))
    bits = draw(st.integers(2, 8))
    c = draw(st.sampled_from([0, largest_code(bits)]))
    codes = torch.randint(-c, c + 1, shape, generator=generator, dtype=torch.int8)
    scale = torch.rand(shape[:1] if draw(st.booleans()) else [], generator=generator)
    return GridTensor(codes, scale.half(), bits)


def same(one, other):
    """Equal bit for bit, NaN and the sign of zero included."""
    if isinstance(one, GridTensor):
        return isinstance(other, GridTensor) and one.bits == other.bits and all(map(same, one[:2], other[:2]))
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32}[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(bits), other.view(bits))


@given(weights(), st.randoms())
@settings(max_examples=150)
def test_weights_come_out_as_they_went_in(kept, draw):
    frame = pack(kept, level=LEVEL)
    found = unpack(frame)
    assert found.keys() == kept.keys()
    assert all(same(kept[name], found[name]) for name in kept)
    shuffled = list(kept.items())
    draw.shuffle(shuffled)
    assert pack(dict(shuffled), level=LEVEL) == pack(found, level=LEVEL) == frame


def tiny():
    """Weights of every kind in about 700 bytes."""
    codes = torch.randint(-31, 32, (6, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    return {
        "layers.0.mlp.up_proj.weight": GridTensor(codes, torch.linspace(0.01, 0.1, 6).half(), 6),
        "gain": GridTensor(torch.tensor([1, -127], dtype=torch.int8), torch.tensor(0.5).half(), 8),
        "nothing": GridTensor(torch.zeros(0, 4, dtype=torch.int8), torch.zeros(0).half(), 8),
        "scale": torch.tensor(0.05),
        "gate": torch.linspace(-1, 1, 7).half(),
    }


def test_a_file_comes_back(tmp_path):
    file = tmp_path / "model.safetensors"
    write_frame_file(file, pack(tiny()))
    found = read_frame_file(file)
    assert found.keys() == tiny().keys() and all(same(tiny()[name], found[name]) for name in found)
    (frame,) = safetensors.torch.load_file(file).values()  # an ordinary safetensors file for everybody else
    assert frame.numpy().tobytes() == pack(tiny())


def sealed(raw, payload=None, **fields):
    """A frame around the inner file ``raw`` with a true header, but for the payload and the fields given."""
    header = {"codec": "zstd", "raw_bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), "version": 1} | fields
    if payload is None:
        payload = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(raw)
    return headed(json.dumps(header, sort_keys=True, separators=(",", ":")).encode(), payload)


def headed(header, payload, length=None):
    return MAGIC + struct.pack("<I", len(header) if length is None else length) + header + payload


def parts(frame):
    """The header, the inner file and the payload of a frame."""
    end = 12 + struct.unpack("<I", frame[8:12])[0]
    return frame[12:end], zstandard.decompress(frame[end:]), frame[end:]


def outer(frame, name=FRAME_NAME):
    tensor = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
    return safetensors.torch.save({name: tensor}, metadata={"format": "pt"})


@pytest.mark.parametrize("track", TRACKS)
def test_a_frame_carries_the_track_of_its_run(tmp_path, track):
    plain, file = pack(tiny()), tmp_path / "model.safetensors"
    frame = with_track(plain, track)
    write_frame_file(file, frame)
    assert read_track(file) == track and all(
        same(tiny()[name], weight) for name, weight in read_frame_file(file).items()
    )
    assert parts(frame)[1:] == parts(plain)[1:] and frame == sealed(*parts(plain)[1:], track=track)
    assert with_track(with_track(plain, TRACKS[0]), track) == frame, "one frame for one track"
    write_frame_file(file, plain)
    assert read_track(file) is None
    write_frame_file(file, sealed(*parts(plain)[1:], track="other"))
    with pytest.raises(FormatError, match="not one of format version 1"):
        read_track(file)


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


def test_a_reader_sets_its_own_limit():
    size = len(parts(pack(tiny()))[1])
    assert unpack(pack(tiny()), raw_limit=size).keys() == tiny().keys()
    with pytest.raises(FormatError, match=f"claims {size} bytes of weights; at most {size - 1} were expected"):
        unpack(pack(tiny()), raw_limit=size - 1)


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


SPOILT = {
    "zstd frame is damaged": lambda frame, rest: outer(frame[:-100] + bytes([frame[-100] ^ 4]) + frame[-99:]),
    "not one of format version 1": lambda frame, rest: outer(frame.replace(b'"version":1', b'"version":2')),
    r"pgolf\.frame": lambda frame, rest: outer(frame, "other.frame"),
    "incomplete metadata|not a pgolf record": lambda frame, rest: outer(frame)[:-50],
    r"lacks \['model.smear.gate'\]": lambda frame, rest: outer(pack(rest)),
    "has shape .* the model wants": lambda frame, rest: outer(pack(rest | {"model.smear.gate": torch.ones(())})),
}


@pytest.mark.parametrize("reason", SPOILT)
def test_a_spoilt_artifact_does_not_load(tiny_config, tmp_path, reason):
    model = PGolfForCausalLM(tiny_config)
    artifact = compress(model, QuantizationConfig(small_tensor_elements=64, codec_level=LEVEL), 10**9)
    write_artifact(tmp_path, model, artifact, tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    rest = {name: weight for name, weight in artifact.weights.items() if name != "model.smear.gate"}
    (tmp_path / "model.safetensors").write_bytes(SPOILT[reason](artifact.frame, rest))
    with pytest.raises(Exception, match=reason):
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)


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
