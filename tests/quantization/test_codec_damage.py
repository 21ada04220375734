"""Codecs on damaged and malicious bytes: each is a format error, at bounded cost."""

import json
import random
import struct
import tracemalloc

import pytest
import torch
import zstandard
from reference import ans
from sample_codes import LEVEL, gaussian_codes, grid, noise

from modeling_pgolf import ans_codec
from modeling_pgolf.ans_codec import ans_decode, ans_encode
from modeling_pgolf.brotli_codec import brotli_decode, brotli_encode, shuffle
from modeling_pgolf.errors import FormatError
from modeling_pgolf.quantization_pgolf import _inner_bytes, pack, unpack

OPTIONAL = ("shuffle-brotli", "ans")


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
