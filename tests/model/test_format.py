"""The artifact format: what goes in comes out, with the track of its run, and a spoilt artifact does not load."""

import pytest
import safetensors.torch
import torch
from frames import LEVEL, outer, parts, sealed, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from modeling_pgolf.errors import FormatError
from modeling_pgolf.grid import GridTensor, largest_code
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM
from modeling_pgolf.quantization_pgolf import (
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


def test_a_file_comes_back(tmp_path):
    file = tmp_path / "model.safetensors"
    write_frame_file(file, pack(tiny()))
    found = read_frame_file(file)
    assert found.keys() == tiny().keys() and all(same(tiny()[name], found[name]) for name in found)
    (frame,) = safetensors.torch.load_file(file).values()  # an ordinary safetensors file for everybody else
    assert frame.numpy().tobytes() == pack(tiny())


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


def test_a_reader_sets_its_own_limit():
    size = len(parts(pack(tiny()))[1])
    assert unpack(pack(tiny()), raw_limit=size).keys() == tiny().keys()
    with pytest.raises(FormatError, match=f"claims {size} bytes of weights; at most {size - 1} were expected"):
        unpack(pack(tiny()), raw_limit=size - 1)


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
