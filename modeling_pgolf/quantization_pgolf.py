"""The artifact format, read and write, and the quantizer that decodes it inside ``from_pretrained``.

``model.safetensors`` holds one uint8 tensor, a frame: 8 magic bytes, the length of a JSON header, the header (codec,
size and SHA-256 of what is inside, track of the run), the compressed payload. The payload is a second safetensors file
of int8 codes, float16 scales and float16 or float32 rest. Specification: docs/FORMAT.md.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .byte_codecs import decode, encode
from .errors import FormatError
from .grid import GridTensor, largest_code

FRAME_NAME = "pgolf.frame"
MAGIC = b"PGOLFREC"
FORMAT_VERSION = 1
HEADER_LIMIT = 4096
# Of a run: historical ones adapted on validation text before they scored it. Source: LEGALITY D1.
TRACKS = ("ranked", "historical")
# No model of the game is near this; a damaged size field must not take the machine's memory.
RAW_LIMIT = 2**30
CODES, SCALE = ".codes", ".scale"
# Types in a frame; safetensors stores wide ones first, then by name.
BYTES_OF = {"F32": 4, "F16": 2, "I8": 1}

Weights = dict[str, GridTensor | Tensor]


def pack(weights: Weights, codec: str = "zstd", level: int = 22) -> bytes:
    """Serialise weights to a frame; equal weights give equal bytes."""
    raw = _inner_bytes(weights)
    header = {"codec": codec, "raw_bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    return _framed(header, encode(codec, raw, level))


def with_track(frame: bytes, track: str) -> bytes:
    """Return ``frame`` with the track of its run, one of ``TRACKS``, in the header: there it goes where weights go."""
    header, payload = _opened(frame)
    return _framed(header | {"track": track}, payload)


def unpack(frame: bytes, raw_limit: int = RAW_LIMIT) -> Weights:
    """Read a frame back; raises FormatError on anything that ``pack`` did not write.

    raw_limit: bytes that the payload may decompress to.
    """
    header, payload = _opened(frame)
    if header["raw_bytes"] > raw_limit:
        raise FormatError(f"the frame claims {header['raw_bytes']} bytes of weights; at most {raw_limit} were expected")
    raw = decode(header["codec"], payload, header["raw_bytes"])
    if hashlib.sha256(raw).hexdigest() != header["sha256"]:
        raise FormatError("the weights do not match the SHA-256 in their header; fetch the file again")
    return _read_inner(raw)


def write_frame_file(path: Path, frame: bytes) -> None:
    """Write ``model.safetensors``: one uint8 tensor that holds the frame."""
    path.write_bytes(_outer_bytes(frame))


def read_frame_file(path: Path, raw_limit: int = RAW_LIMIT) -> Weights:
    """Read ``model.safetensors`` back; raises FormatError where it is not byte for byte a file that pgolf writes."""
    return unpack(_read_outer(path), raw_limit)


def read_track(path: Path) -> str | None:
    """Read the track that ``model.safetensors`` names, None where it names none; raises FormatError as reading does."""
    return _opened(_read_outer(path))[0].get("track")


def _read_outer(path: Path) -> bytes:
    data = path.read_bytes()
    start = len(data) - len(MAGIC)
    if len(data) >= 8:
        start = 8 + struct.unpack("<Q", data[:8])[0]
    frame = data[start:] if start <= len(data) else b""
    if not frame or _outer_bytes(frame) != data:
        raise FormatError(f"{path.name} is not a pgolf record: {len(data)} bytes without the one tensor '{FRAME_NAME}'")
    return frame


def _outer_bytes(frame: bytes) -> bytes:
    tensor = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
    return safetensors.torch.save({FRAME_NAME: tensor}, metadata={"format": "pt"})


def _framed(header: dict[str, Any], payload: bytes) -> bytes:
    text = _header_bytes(header)
    return MAGIC + struct.pack("<I", len(text)) + text + payload


def _opened(frame: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the payload of a frame; raises FormatError where there are none."""
    prefix = len(MAGIC) + 4
    if len(frame) < prefix or frame[: len(MAGIC)] != MAGIC:
        raise FormatError(f"not a pgolf frame: it begins with {bytes(frame[:8])!r}, expected {MAGIC!r}")
    (length,) = struct.unpack("<I", frame[len(MAGIC) : prefix])
    if length > HEADER_LIMIT or prefix + length > len(frame):
        raise FormatError(f"the frame header claims {length} bytes; the frame has {len(frame) - prefix} left")
    return _read_header(frame[prefix : prefix + length]), frame[prefix + length :]


def _header_bytes(header: dict[str, Any]) -> bytes:
    keys = ("codec", "raw_bytes", "sha256", *["track"] * ("track" in header))
    fields = {key: header[key] for key in keys} | {"version": FORMAT_VERSION}
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _read_header(data: bytes) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(data)
        canonical = _header_bytes(fields)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"the frame header cannot be read: {error!r}") from error
    known = canonical == data and fields.get("track", TRACKS[0]) in TRACKS
    if not known or not isinstance(fields["raw_bytes"], int) or fields["raw_bytes"] < 0:
        raise FormatError(f"the frame header is not one of format version {FORMAT_VERSION}: {data[:200]!r}")
    return fields


def _inner_bytes(weights: Weights) -> bytes:
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if isinstance(weight, GridTensor):
            tensors[name + CODES], tensors[name + SCALE] = weight.codes.contiguous(), weight.scale.contiguous()
        else:
            tensors[name] = weight.contiguous()
    # One metadata key: the order of several is not fixed by safetensors, and bytes must repeat.
    bits = {name: weight.bits for name, weight in sorted(weights.items()) if isinstance(weight, GridTensor)}
    return safetensors.torch.save(tensors, metadata={"bits": _compact(bits)})


def _read_inner(raw: bytes) -> Weights:
    try:
        tensors = safetensors.torch.load(raw)
        bits = _read_grids(raw)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise FormatError(f"the inner file of the frame cannot be read: {error!r}") from error
    weights: Weights = {}
    for name, width in bits.items():
        if name + CODES not in tensors or name + SCALE not in tensors:
            raise FormatError(f"tensor '{name}' has no codes or no scale")
        weights[name] = _checked(name, GridTensor(tensors.pop(name + CODES), tensors.pop(name + SCALE), width))
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float16, torch.float32):
            raise FormatError(f"'{name}' is stored as {tensor.dtype}; what is on no grid is float16 or float32")
    return weights | tensors


def _read_grids(raw: bytes) -> dict[str, int]:
    """Read the bits of every quantised tensor; raises FormatError where the header has another spelling than ours.

    One set of weights has one frame: blanks, repeated keys, padding or another order would give it several.
    """
    (length,) = struct.unpack("<Q", raw[:8])
    text = raw[8 : 8 + length]
    header = json.loads(text)
    plain = _compact(header).encode()
    (grids,) = header["__metadata__"].values()
    bits = json.loads(grids)
    if not isinstance(bits, dict) or not all(type(width) is int for width in bits.values()):
        raise FormatError(f"the inner file says {grids[:80]} where it should map tensor names to bits")
    names = [name for name in header if name != "__metadata__"]
    ordered = names == sorted(names, key=lambda name: (-BYTES_OF[header[name]["dtype"]], name))
    padded = plain.ljust(-(-len(plain) // 8) * 8)
    if (
        list(header["__metadata__"]) != ["bits"]
        or padded != text
        or _compact(dict(sorted(bits.items()))) != grids
        or not ordered
    ):
        raise FormatError("the header of the inner file is not spelt as pgolf spells it")
    return bits


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _checked(name: str, tensor: GridTensor) -> GridTensor:
    codes, scale, bits = tensor
    if codes.dtype != torch.int8 or scale.dtype != torch.float16 or bits not in range(2, 9):
        raise FormatError(f"'{name}' has {codes.dtype} codes, a {scale.dtype} scale and {bits!r} bits")
    if scale.shape not in (codes.shape[:1], torch.Size()):
        raise FormatError(f"'{name}' has codes {tuple(codes.shape)} and scales {tuple(scale.shape)}")
    if not torch.isfinite(scale).all() or (scale < 0).any():
        raise FormatError(f"'{name}' has a scale that is negative or no number")
    lowest, highest = codes.aminmax() if codes.numel() else (0, 0)
    if max(-int(lowest), int(highest)) > largest_code(bits):
        raise FormatError(f"'{name}' has codes outside its {bits}-bit grid")
    return tensor


class PGolfQuantizationConfig(QuantizationConfigMixin):
    """``quantization_config`` of an artifact: it names the method; everything else is in the frame's own header."""

    def __init__(self, **kwargs: Any) -> None:
        self.quant_method = "pgolf"
        self.dequantize = True


class DecodeFrame(ConversionOps):
    """Put the decoded weights where the one frame tensor stood."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecodeFrame":
        """Return itself: transformers copies conversions deeply, and half of a load would go into copying weights."""
        return self

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Return every weight of the model, in the model's type."""
        dtype = kwargs["model"].dtype
        return {name: weight.to(dtype) for name, weight in self.weights.items()}


def read_model_weights(path: Path, shapes: dict[str, torch.Size], prefix: str) -> dict[str, Tensor]:
    """Read float weights for parameters of these names and shapes; raises FormatError where they are others.

    prefix: what the file's names begin with and the model's do not (a model without its head).
    """
    allowed = 4 * sum(shape.numel() for shape in shapes.values()) + 2**20
    weights = read_frame_file(path, raw_limit=min(RAW_LIMIT, 2 * allowed))
    floats = {name: w.decode() if isinstance(w, GridTensor) else w for name, w in weights.items()}
    if prefix:
        floats = {name.removeprefix(prefix): w for name, w in floats.items() if name.startswith(prefix)}
    lacking, besides = sorted(set(shapes) - set(floats)), sorted(set(floats) - set(shapes))
    if lacking or besides:
        raise FormatError(
            f"the artifact lacks {lacking[:3]} and has {besides[:3]} besides; config.json and {path.name} are not of "
            "one model"
        )
    for name, shape in shapes.items():
        if floats[name].shape != shape:
            raise FormatError(f"'{name}' has shape {tuple(floats[name].shape)}, the model wants {tuple(shape)}")
    return floats


class PGolfQuantizer(HfQuantizer):
    """Decodes a frame while loading; what comes out is an ordinary trainable model."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        # Decoded here, not in the conversion: transformers would bury a FormatError in its loading report.
        tied = set(model.all_tied_weights_keys)
        shapes = {name: p.shape for name, p in model.named_parameters() if name not in tied}
        prefix = "" if any(name.startswith("model.") for name in shapes) else "model."
        files = kwargs["checkpoint_files"]
        if not files or len(files) != 1:
            raise FormatError(f"a pgolf artifact has one weights file, found {len(files or [])}")
        self.weights = read_model_weights(Path(files[0]), shapes, prefix)

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        """Add the one-to-many conversion of the frame."""
        # What is decoded lies on the CPU; only of such conversions transformers moves results to their ``device_map``.
        converter = WeightConverter(FRAME_NAME, next(iter(self.weights)), [DecodeFrame(self.weights)], force_cpu=True)
        return [*weight_conversions, converter]

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        # Saving reverses the conversions that loading recorded; a loaded artifact is saved as plain floats.
        conversions = model._weight_conversions or []
        model._weight_conversions = [entry for entry in conversions if not _decodes_frame(entry)]
        self.weights = {}

    def is_serializable(self) -> bool:
        """Say that the decoded model can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Say that the decoded model can be trained."""
        return True


def _decodes_frame(entry: Any) -> bool:
    return isinstance(entry, WeightConverter) and any(isinstance(op, DecodeFrame) for op in entry.operations)


def register_quantizer() -> None:
    """Make ``quant_method: "pgolf"`` known to transformers; safe to repeat, as remote code is imported repeatedly."""
    AUTO_QUANTIZER_MAPPING["pgolf"] = PGolfQuantizer
    AUTO_QUANTIZATION_CONFIG_MAPPING["pgolf"] = PGolfQuantizationConfig
