"""Codecs: exact round trips, bytes beside the entropy, one meaning on every machine, and no harm from damage."""

import json
import math
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from reference import ans
from safetensors.torch import load_file

from modeling_pgolf import ans_codec, brotli_codec
from modeling_pgolf.ans_codec import HIGHEST_CLASS, LOWEST_CLASS, ans_decode, ans_encode
from modeling_pgolf.brotli_codec import brotli_decode, brotli_encode, shuffle, unshuffle
from modeling_pgolf.byte_codecs import CODECS
from modeling_pgolf.errors import EnvironmentMismatch, FormatError
from modeling_pgolf.frequency_tables import table_frequencies
from modeling_pgolf.grid import GridTensor, largest_code
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import _inner_bytes, pack, unpack
from pgolf.artifact import write_artifact
from quantization.budget import order0_entropy
from quantization.compress import compress
from quantization.config import QuantizationConfig

ROOT = Path(__file__).resolve().parents[2]
LEVEL = 3
OPTIONAL = ("shuffle-brotli", "ans")


def gaussian_codes(rows, columns, k, bits, spread=None):
    """Codes of Gaussian rows that are clipped at k standard deviations."""
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator)
    weight = weight if spread is None else weight * spread
    c = largest_code(bits)
    scale = (k * weight.std(-1) / c).half()
    codes = (weight / scale.float()[:, None]).round().clamp(-c, c).to(torch.int8)
    return GridTensor(codes, scale, bits)


def grid(codes, bits=8):
    codes = torch.as_tensor(codes, dtype=torch.int8)
    return GridTensor(codes, torch.ones(codes.shape[:1]).half(), bits)


def noise(*shape):
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(1), dtype=torch.int8)


ADVERSARIAL = {
    "no weight": {},
    "no codes": {"gain": torch.ones(5).half()},
    "all equal": {"a": grid(torch.full((70, 80), 31), 6)},
    "all zero": {"a": grid(torch.zeros(70, 80), 6)},
    "extremes": {"a": grid(torch.tensor([127, -127] * 2000).view(50, 80))},
    "one code": {"a": grid([[-5]])},
    "a scalar": {"a": GridTensor(torch.tensor(3, dtype=torch.int8), torch.tensor(1.0).half(), 6)},
    "a vector": {"a": grid(noise(1000))},
    "a row": {"a": grid(noise(1, 1000))},
    "tiny rows": {"a": grid(noise(1000, 2)), "b": grid(noise(3, 1))},
    "three dimensions": {"a": grid(noise(4, 40, 50))},
    "no rows": {"a": grid(torch.zeros(0, 9)), "b": grid(torch.zeros(9, 0)), "c": grid(noise(40, 40))},
    "one loud row": {"a": grid(torch.cat([torch.zeros(99, 64), torch.full((1, 64), 127)]))},
    "random": {"a": grid(noise(64, 128)), "b": gaussian_codes(40, 300, 12.85, 6), "bias": torch.randn(9)},
    "narrow in one, wide in the other": {"a": grid(torch.eye(64) * 127), "b": grid(torch.ones(64, 64))},
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_every_code_comes_back(codec, case):
    weights = ADVERSARIAL[case]
    frame = pack(weights, codec, LEVEL)
    assert frame == pack(weights, codec, LEVEL)
    assert json.loads(frame[12 : 12 + struct.unpack("<I", frame[8:12])[0]])["codec"] == codec
    found = unpack(frame)
    assert _inner_bytes(found) == _inner_bytes(weights)


@pytest.mark.parametrize("case", [name for name in ADVERSARIAL if name not in ("no weight", "no codes")])
def test_whole_numbers_alone_read_the_same(case):
    """A decoder of Python integers: nothing of what ``ans`` means hangs on a library or on floating point."""
    raw = _inner_bytes(ADVERSARIAL[case])
    assert ans.read_inner_file(ans_encode(raw, LEVEL)) == raw


@pytest.mark.parametrize(("k", "bits"), [(12.85, 6), (11.5, 6), (12.0, 6), (13.0, 6), (14.0, 7), (15.0, 7), (20.0, 8)])
def test_bytes_sit_on_the_entropy(k, bits):
    """At most 1.003 times the order-0 entropy of Gaussian codes, side information included (a million codes)."""
    weight = gaussian_codes(2048, 512, k, bits)
    entropy = weight.codes.numel() * order0_entropy(weight.codes) / 8
    alone = len(ans_encode(_inner_bytes({"a": weight._replace(codes=weight.codes[:, :0])}), 22))
    packed = len(ans_encode(_inner_bytes({"a": weight}), 22))
    assert packed - alone < 1.003 * entropy


def test_a_whole_model_is_packed_and_read_in_seconds():
    """36 million codes: 60 s to pack and 5 s to read at most, of the processor, which neighbours do not take."""
    raw = _inner_bytes({f"layer{i}": gaussian_codes(2048, 512, 12.85, 6) for i in range(34)} | {"bias": torch.randn(9)})
    assert len(raw) > 35_600_000
    begun = time.process_time()
    packed = ans_encode(raw, LEVEL)
    encoded = time.process_time()
    assert ans_decode(packed, len(raw)) == raw
    decoded = time.process_time()
    assert encoded - begun < 60 and decoded - encoded < 5


def test_spread_of_rows_and_columns_is_used():
    """Columns that differ by a factor of 8 as trained ones do: well below the entropy of a code on its own."""
    weight = gaussian_codes(512, 1024, 12.85, 6, spread=2 ** torch.linspace(0, 3, 1024))
    entropy = weight.codes.numel() * order0_entropy(weight.codes) / 8
    assert len(ans_encode(_inner_bytes({"a": weight}), 22)) < 0.97 * entropy


def test_frequencies_are_whole_and_complete():
    for weights in ([1, 1], [255, 0, 1], [0, 255] * 128, list(range(256)), [7] * 255):
        frequencies = table_frequencies(np.array(weights, np.uint8))
        assert frequencies.sum() == 2**24 - len(weights) and (frequencies >= 0).all()
        assert np.array_equal(frequencies + 1, ans.frequencies(weights))
    with pytest.raises(FormatError, match="empty"):
        table_frequencies(np.zeros(3, np.uint8))


def test_byte_shuffle(golden_8192):
    golden = load_file(golden_8192 / "byte_shuffle_codec.safetensors")
    cases = sorted({name.split("/")[0] for name in golden if name.endswith("/raw")})
    assert len(cases) == 7
    for case in cases:
        raw, shuffled, packed = (golden[f"{case}/{part}"].numpy().tobytes() for part in ("raw", "shuffled", "brotli"))
        assert shuffle(raw) == shuffled and unshuffle(shuffled) == raw, case
        assert brotli_decode(packed, len(raw)) == raw, case
        assert brotli_decode(brotli_encode(raw), len(raw)) == raw, case
    for stride in (3, 4):
        shuffled = golden[f"odd_stride{stride}/shuffled"].numpy().tobytes()
        raw = golden["odd/raw"].numpy().tobytes()
        assert shuffle(raw, stride) == shuffled and unshuffle(shuffled) == raw


def damaged(data, draw):
    """``data`` after a random damage."""
    a, b = sorted(draw.sample(range(len(data) + 1), 2))
    return draw.choice(
        [
            data[:a] + bytes([data[a] ^ 1 << draw.randrange(8)]) + data[a + 1 :],
            data[:a] + draw.randbytes(b - a) + data[b:],
            data[:a] + bytes(b - a) + data[b:],
            data[:a] + data[b:],
            data[:b],
            data[:a] + draw.randbytes(4) + data[a:],
            data + draw.randbytes(draw.choice([1, 4, 8])),
        ]
    )


@pytest.mark.parametrize("codec", OPTIONAL)
def test_damage_is_a_format_error_at_bounded_cost(codec):
    weights = {"a": gaussian_codes(64, 48, 12.85, 6), "b": grid(noise(40, 40)), "bias": torch.randn(50)}
    frame = pack(weights, codec, LEVEL)
    begin = 12 + struct.unpack("<I", frame[8:12])[0]
    wrong, allowed = [], 4 * len(_inner_bytes(weights)) + 2**18
    tracemalloc.start()
    for seed in range(700):
        spoilt = frame[:begin] + damaged(frame[begin:], random.Random(seed))
        if spoilt == frame:
            continue
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            unpack(spoilt)
        except FormatError:
            pass
        except BaseException as error:  # a panic of a compiled library is no Exception
            wrong.append(f"{seed}: {error!r}")
        else:
            wrong.append(f"{seed}: read")
        if tracemalloc.get_traced_memory()[1] - before > allowed:
            wrong.append(f"{seed}: {tracemalloc.get_traced_memory()[1] - before} bytes")
    tracemalloc.stop()
    assert not wrong, wrong[:5]


def test_inner_sections_are_judged_too():
    """Damage under a true zstd frame, where no checksum of zstd's is in the way."""
    raw = _inner_bytes({"a": gaussian_codes(64, 48, 12.85, 6), "bias": torch.randn(50)})
    payload = ans_encode(raw, LEVEL)
    sections, rest = [], payload
    for _ in range(2):
        plain, rest = ans.section(rest)
        sections.append(plain)
    refused = 0
    for seed in range(600):
        draw = random.Random(seed)
        changed = list(sections)
        place = draw.randrange(2)
        changed[place] = damaged(sections[place], draw)
        packed = [ans_codec.zstd_encode(section, LEVEL) for section in changed]
        spoilt = b"".join(struct.pack("<I", len(part)) + part for part in packed) + rest
        try:
            refused += ans_decode(spoilt, len(raw)) != raw  # what decodes is for the SHA-256 to judge
        except FormatError:
            refused += 1
    assert refused > 500


HEADERS = [
    {"a": {"dtype": "F16", "data_offsets": [0]}},
    {"a": {"dtype": "F16", "data_offsets": []}},
    {"a": {"dtype": "I8", "shape": [2, 2], "data_offsets": []}},
    {"a": {"dtype": "I8", "shape": [2, 2], "data_offsets": [0, 4, 8]}},
    {"a": {"dtype": "I8", "shape": 4, "data_offsets": [0, 4]}},
    {"a": {"dtype": "I8", "shape": ["2"], "data_offsets": [0, 2]}},
    {"a": {"dtype": "I8", "data_offsets": [0, 2]}},
    {"a": {}},
    {"a": None},
    {"a": [1]},
    ["a"],
    7,
]


@pytest.mark.parametrize("header", HEADERS, ids=json.dumps)
def test_headers_of_a_wrong_shape_are_damage(header):
    text = json.dumps(header).encode()
    with pytest.raises(FormatError, match="the inner file"):
        ans_codec.read_layout(struct.pack("<Q", len(text)) + text + bytes(16))


def test_words_left_over_are_damage():
    """A word below the others changes no code, so nothing but the end of the stack can tell."""
    raw = _inner_bytes({"a": gaussian_codes(64, 48, 12.85, 6)})
    payload = ans_encode(raw, LEVEL)
    words = len(ans.section(ans.section(payload)[1])[1])
    with pytest.raises(FormatError, match="left over"):
        ans_decode(payload[:-words] + b"\1\0\0\0" + payload[-words:], len(raw))


def bombs():
    """Payloads that would take far more than the thousand bytes that their header promises."""
    zeros, large = bytes(2**26), struct.pack("<Q", 2) + b"{}"
    frame = zstandard.compress(zeros)
    shape = json.dumps({"a": {"dtype": "I8", "shape": [2**20, 2**20], "data_offsets": [0, 2**40]}}).encode()
    huge = zstandard.compress(shuffle(struct.pack("<Q", len(shape)) + shape))
    empty = zstandard.compress(b"\0")
    yield "ans", struct.pack("<I", len(frame)) + frame
    yield "ans", struct.pack("<I", len(huge)) + huge + struct.pack("<I", len(empty)) + empty
    yield "ans", struct.pack("<I", 2**32 - 1) + large
    yield "shuffle-brotli", brotli_encode(zeros)


@pytest.mark.parametrize(("codec", "payload"), list(bombs()), ids=["zstd", "shape", "length", "brotli"])
def test_a_bomb_takes_no_memory(codec, payload):
    decode = ans_decode if codec == "ans" else brotli_decode
    tracemalloc.start()
    with pytest.raises(FormatError):
        decode(payload, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**19


@pytest.mark.parametrize(
    ("codec", "module", "name"), [("ans", ans_codec, "constriction"), ("shuffle-brotli", brotli_codec, "brotli")]
)
def test_a_missing_package_is_named(codec, module, name, monkeypatch):
    weights = ADVERSARIAL["random"]
    frame = pack(weights, codec, LEVEL)
    monkeypatch.setattr(module, name, None)
    for act in (lambda: unpack(frame), lambda: pack(weights, codec)):
        with pytest.raises(EnvironmentMismatch, match=f"pip install {name}"):
            act()


STRANGER = """
import importlib.abc, sys
class Forbidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("constriction", "brotli", "modeling_pgolf"):
            raise ImportError(name)
sys.meta_path.insert(0, Forbidden())
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    try:
        print(sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).parameters()))
    except Exception as error:
        print(type(error).__name__, str(error).splitlines()[-1])
"""


def test_an_artifact_loads_by_its_own_code(tiny_config, tmp_path):
    """Here, with every codec; in a process without the optional packages, by zstd or with the package's name."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = PGolfForCausalLM(tiny_config)
    loaded = []
    for codec in CODECS:
        config = QuantizationConfig(small_tensor_elements=64, codec=codec, codec_level=LEVEL)
        (tmp_path / codec).mkdir()
        write_artifact(tmp_path / codec, model, compress(model, config, 10**9), tmp_path)
        loaded.append(AutoModelForCausalLM.from_pretrained(tmp_path / codec, trust_remote_code=True).state_dict())
    assert all(torch.equal(loaded[0][name], other[name]) for other in loaded[1:] for name in loaded[0])
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", STRANGER, *(str(tmp_path / codec) for codec in CODECS)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    zstd, brotli, coded = run.stdout.splitlines()[-3:]
    assert int(zstd) == sum(p.numel() for p in model.parameters()), run.stderr[-2000:]
    assert brotli.startswith("EnvironmentMismatch") and brotli.endswith("pip install brotli")
    assert coded.startswith("EnvironmentMismatch") and coded.endswith("pip install constriction")


def test_classes_span_what_codes_can():
    """From a row with one code of 1 among 256 to a row of 127s."""
    assert 4 * math.log2(1 / 16) >= LOWEST_CLASS and 4 * math.log2(127) <= HIGHEST_CLASS
