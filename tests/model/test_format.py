"""The artifact format: what goes in comes out, and nothing else is let in, at bounded cost."""

import hashlib
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

from modeling_pgolf.errors import FormatError
from modeling_pgolf.grid import GridTensor, largest_code
from modeling_pgolf.quantization_pgolf import FRAME_NAME, MAGIC, pack, read_frame_file, unpack, write_frame_file

ROOT = Path(__file__).resolve().parents[2]
MB = 2**20
# The level does not matter to a reader; 1 is quick.
LEVEL = 1


@st.composite
def weights(draw):
    """A few named tensors: grids and floats, matrices to scalars, some without an element, some all zero."""
    names = draw(st.lists(st.text("abc._é", min_size=1, max_size=6), max_size=5, unique=True))
    return {name: draw(st.one_of(grids(), floats())) for name in names}


@st.composite
def grids(draw):
    bits, shape = draw(st.integers(2, 8)), draw(st.lists(st.integers(0, 4), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    c = draw(st.sampled_from([0, largest_code(bits)]))
    codes = torch.randint(-c, c + 1, shape, generator=generator, dtype=torch.int8)
    scale = torch.rand(shape[:1] if draw(st.booleans()) else [], generator=generator)
    return GridTensor(codes, scale.to(torch.float16), bits)


@st.composite
def floats(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    tensor = torch.randn(draw(st.lists(st.integers(0, 4), max_size=3)), generator=generator)
    kept = tensor * draw(st.sampled_from([0.0, -0.0, 1.0, float("inf"), float("nan")]))
    return kept.to(draw(st.sampled_from([torch.float16, torch.float32])))


def same(one, other):
    """Equal bit for bit, NaN and the sign of zero included."""
    if isinstance(one, GridTensor):
        return isinstance(other, GridTensor) and one.bits == other.bits and all(map(same, one[:2], other[:2]))
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32}[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(bits), other.view(bits))


@given(weights(), st.randoms())
@settings(max_examples=150, deadline=None, database=None)
def test_weights_come_out_as_they_went_in(kept, draw):
    frame = pack(kept, level=LEVEL)
    found = unpack(frame)
    assert found.keys() == kept.keys()
    assert all(same(kept[name], found[name]) for name in kept)
    shuffled = list(kept.items())
    draw.shuffle(shuffled)
    assert pack(dict(shuffled), level=LEVEL) == pack(found, level=LEVEL) == frame


def test_strides_do_not_matter():
    turned = {
        "m": torch.arange(6.0).view(2, 3).T,
        "g": GridTensor(torch.eye(3, dtype=torch.int8).T, torch.ones(3).half(), 6),
    }
    straight = {"m": turned["m"].contiguous(), "g": turned["g"]._replace(codes=torch.eye(3, dtype=torch.int8))}
    assert pack(turned) == pack(straight)


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


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A place for a ``model.safetensors``."""
    return tmp_path_factory.mktemp("format") / "model.safetensors"


def test_a_file_comes_back(file):
    write_frame_file(file, pack(tiny()))
    found = read_frame_file(file)
    assert found.keys() == tiny().keys() and all(same(tiny()[name], found[name]) for name in found)
    # An ordinary safetensors file for everybody else.
    outer = safetensors.torch.load_file(file)
    assert list(outer) == [FRAME_NAME] and outer[FRAME_NAME].numpy().tobytes() == pack(tiny())


def sealed(raw, payload=None, **fields):
    """A frame around the inner file ``raw`` with a true header, but for the payload and the fields given."""
    header = {"codec": "zstd", "raw_bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), "version": 1} | fields
    packed = payload or zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(raw)
    return headed(json.dumps(header, sort_keys=True, separators=(",", ":")).encode(), packed)


def headed(header, payload, length=None):
    return MAGIC + struct.pack("<I", len(header) if length is None else length) + header + payload


def raw_of(frame):
    """The inner file and the payload of a frame."""
    (length,) = struct.unpack("<I", frame[8:12])
    return zstandard.decompress(frame[12 + length :]), frame[12 + length :]


def outer(frame):
    tensor = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
    return safetensors.torch.save({FRAME_NAME: tensor}, metadata={"format": "pt"})


def flip(data, draw):
    changed = bytearray(data)
    for place in draw.sample(range(len(data)), draw.choice([1, 1, 2, 9])):
        changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def insert(data, draw):
    place = draw.randrange(len(data) + 1)
    return data[:place] + draw.choice([b"\0", b" ", draw.randbytes(1), draw.randbytes(50)]) + data[place:]


def delete(data, draw):
    first = draw.randrange(len(data))
    return data[:first] + data[first + draw.choice([1, 2, 40]) :]


def truncate(data, draw):
    return data[: draw.randrange(len(data))]


def swap(data, draw):
    a, b, c, d = sorted(draw.sample(range(len(data) + 1), 4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def blank(data, draw):
    first = draw.randrange(len(data))
    size = min(draw.choice([1, 8, 64]), len(data) - first)
    return data[:first] + draw.choice([b"\0", b"\xff"]) * size + data[first + size :]


DAMAGES = [flip, insert, delete, truncate, swap, blank]
BOMB = zstandard.ZstdCompressor(level=LEVEL).compress(bytes(256 * MB))
NESTED = [b"[" * 4000, b'{"a":' * 800, b"[" * 400 + b"]" * 400]
LIES = [
    *(
        {"raw_bytes": size}
        for size in (0, -1, 1, 2**30 - 1, 2**30, 2**63, 10**400, 1.0, True, "512", None, [], float("nan"))
    ),
    *({"codec": codec} for codec in ("", "zst", "ZSTD", "lzma", "\ud800", None, 3, [], {})),
    *({"sha256": sha} for sha in ("", "0" * 64, None, 0, ["a"])),
    *({"version": version} for version in (0, 2, -1, 1.0, "1", None)),
    {"more": 1},
]


def lie(frame, draw):
    """A frame whose header, or the length of it, says something else."""
    raw, payload = raw_of(frame)
    return draw.choice(
        [
            sealed(raw, payload, **draw.choice(LIES)),
            headed(draw.choice(NESTED), payload),
            headed(frame[12 : len(frame) - len(payload)], payload, draw.choice([0, 1, 4096, 4097, 2**31, 2**32 - 1])),
            sealed(raw, BOMB),
            sealed(raw, BOMB, raw_bytes=256 * MB),
            sealed(raw, draw.choice([zstandard.compress(b""), b"", payload * 2, raw])),
        ]
    )


def mutations(count):
    """Damaged copies of a good file, with what was done: bytes of the whole file, of the frame, or false headers."""
    frame = pack(tiny())
    good = outer(frame)
    for seed in range(count):
        draw = random.Random(seed)
        damage = draw.choice(DAMAGES)
        way, data = draw.choice(
            [
                (damage.__name__, damage(good, draw)),
                (f"{damage.__name__} in the frame", outer(damage(frame, draw) or b"\0")),
                ("lie", outer(lie(frame, draw))),
            ]
        )
        if data != good:
            yield f"{way}, seed {seed}", data


def outcome(path):
    """The name of what reading raises; "read" where it raises nothing."""
    try:
        read_frame_file(path)
    except Exception as error:
        return type(error).__name__
    return "read"


def test_damage_is_a_format_error_at_bounded_cost(file):
    wrong, tried, slowest, thirstiest = [], 0, 0.0, 0.0
    tracemalloc.start()
    for way, data in mutations(2200):
        file.write_bytes(data)
        tracemalloc.reset_peak()
        before, started = tracemalloc.get_traced_memory()[0], time.perf_counter()
        found = outcome(file)
        slowest = max(slowest, time.perf_counter() - started)
        # Only the honest bomb may take what it declares, and decoding holds it once.
        allowed = 256 * MB if b'"raw_bytes":%d,' % (256 * MB) in data else 0
        thirstiest = max(thirstiest, tracemalloc.get_traced_memory()[1] - before - allowed)
        wrong += [] if found == "FormatError" else [f"{found}: {way}"]
        tried += 1
    tracemalloc.stop()
    assert tried > 2000
    assert not wrong, f"{len(wrong)} of {tried}, like {wrong[:5]}"
    assert thirstiest < MB
    assert slowest < 5.0  # the bomb takes 0.3 s


def inner(bits, *dropped, **more):
    """An inner file with this text for its grids."""
    tensors = {"a.codes": torch.ones(2, 3, dtype=torch.int8), "a.scale": torch.ones(2).half(), **more}
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    return safetensors.torch.save(kept, metadata={"bits": bits})


FORGED = {
    "no list of grids": safetensors.torch.save({"a": torch.zeros(2)}),
    "no JSON": inner("{"),
    "a list": inner("[]"),
    "a text": inner('"a"'),
    "a number": inner("3"),
    "nothing": inner("null"),
    "nested": inner("[" * 100_000),
    "a grid without a scale": inner('{"a":6}', "a.scale"),
    "a grid without codes": inner('{"a":6}', "a.codes"),
    "bits too many": inner('{"a":9}'),
    "bits too few": inner('{"a":1}'),
    "bits a fraction": inner('{"a":6.0}'),
    "bits a truth": inner('{"a":true}'),
    "bits a text": inner('{"a":"6"}'),
    "codes of another type": inner('{"a":6}', **{"a.codes": torch.ones(2, 3)}),
    "codes outside the grid": inner('{"a":2}', **{"a.codes": torch.tensor([[2]], dtype=torch.int8)}),
    "the code -128": inner('{"a":8}', **{"a.codes": torch.tensor([[-128], [0]], dtype=torch.int8)}),
    "a scale of another type": inner('{"a":6}', **{"a.scale": torch.ones(2)}),
    "too many scales": inner('{"a":6}', **{"a.scale": torch.ones(3).half()}),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_inner_file_is_a_format_error(case):
    with pytest.raises(FormatError):
        unpack(sealed(FORGED[case]))


def test_what_is_read_is_what_is_written():
    """Whatever a frame with a true header holds, it is refused or it is the frame of the weights it gives."""
    raw, _ = raw_of(pack(tiny(), level=LEVEL))
    read = 0
    for seed in range(1000):
        draw = random.Random(seed)
        frame = sealed(draw.choice(DAMAGES)(raw, draw))
        try:
            found = unpack(frame)
        except FormatError:
            continue
        read += 1
        assert raw_of(pack(found, level=LEVEL))[0] == raw_of(frame)[0], f"seed {seed} is another spelling"
    assert 50 < read < 950


def peak_kilobytes():
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


BOMBS = {
    # name: frame, megabytes that reading it may add to the process. An honest file is held twice: bytes and tensors.
    "honest": (lambda: pack({"x": torch.zeros(64 * MB // 4)}, level=LEVEL), 2 * 64 + 16),
    "zeros": (lambda: sealed(bytes(64 * MB)), 64 + 16),
    "larger than its header": (lambda: sealed(raw_of(pack(tiny()))[0], BOMB), 16),
    "larger than a model": (lambda: sealed(b"", BOMB, raw_bytes=2**31), 16),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_stays_within_what_is_declared(bomb, tmp_path):
    make, megabytes = BOMBS[bomb]
    write_frame_file(tmp_path / "tiny", pack(tiny()))
    write_frame_file(tmp_path / "bomb", make())
    command = [sys.executable, __file__, str(tmp_path / "tiny"), str(tmp_path / "bomb")]
    run = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    found, kilobytes = json.loads(run.stdout)
    assert found == ("read" if bomb == "honest" else "FormatError")
    assert kilobytes < megabytes * 1024


if __name__ == "__main__":
    outcome(Path(sys.argv[1]))  # whatever the first call loads
    start = peak_kilobytes()
    print(json.dumps([outcome(Path(sys.argv[2])), peak_kilobytes() - start]))
