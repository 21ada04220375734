"""Codecs: exact round trips, bytes beside the entropy, and one meaning on every machine."""

import json
import math
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import ans
from safetensors.torch import load_file
from sample_codes import LEVEL, gaussian_codes, grid, noise

from modeling_pgolf import ans_codec, brotli_codec
from modeling_pgolf.ans_codec import HIGHEST_CLASS, LOWEST_CLASS, ans_decode, ans_encode
from modeling_pgolf.brotli_codec import brotli_decode, brotli_encode, shuffle, unshuffle
from modeling_pgolf.byte_codecs import CODECS
from modeling_pgolf.errors import EnvironmentMismatch, FormatError
from modeling_pgolf.frequency_tables import table_frequencies
from modeling_pgolf.grid import GridTensor
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import _inner_bytes, pack, unpack
from pgolf.artifact import write_artifact
from quantization.budget import order0_entropy
from quantization.compress import compress
from quantization.config import QuantizationConfig

ROOT = Path(__file__).resolve().parents[2]


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
