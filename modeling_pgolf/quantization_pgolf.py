"""The artifact format, read and write, and the quantizer that decodes it inside ``from_pretrained``.

``model.safetensors`` holds one uint8 tensor, a frame: 8 magic bytes, the length of a JSON header, the header (codec,
size and SHA-256 of what is inside), the compressed payload. The payload is a second safetensors file of int8 codes,
float16 scales and float16 or float32 rest. Specification: docs/FORMAT.md.
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
# No model of the game is near this; a damaged size field must not take the machine's memory.
RAW_LIMIT = 2**30
CODES, SCALE = ".codes", ".scale"

Weights = dict[str, GridTensor | Tensor]


def pack(weights: Weights, codec: str = "zstd", level: int = 22) -> bytes:
    """Serialise weights to a frame; equal weights give equal bytes."""
    raw = _inner_bytes(weights)
    header = _header_bytes(codec, len(raw), hashlib.sha256(raw).hexdigest())
    return MAGIC + struct.pack("<I", len(header)) + header + encode(codec, raw, level)


def unpack(frame: bytes, raw_limit: int = RAW_LIMIT) -> Weights:
    """Read a frame back; raises FormatError on anything that ``pack`` did not write.

    raw_limit: bytes that the payload may decompress to.
    """
    prefix = len(MAGIC) + 4
    if len(frame) < prefix or frame[: len(MAGIC)] != MAGIC:
        raise FormatError(f"not a pgolf frame: it begins with {bytes(frame[:8])!r}, expected {MAGIC!r}")
    (length,) = struct.unpack("<I", frame[len(MAGIC) : prefix])
    if length > HEADER_LIMIT or prefix + length > len(frame):
        raise FormatError(f"the frame header claims {length} bytes; the frame has {len(frame) - prefix} left")
    header = _read_header(frame[prefix : prefix + length])
    if header["raw_bytes"] > raw_limit:
        raise FormatError(f"the frame claims {header['raw_bytes']} bytes of weights; at most {raw_limit} were expected")
    raw = decode(header["codec"], frame[prefix + length :], header["raw_bytes"])
    if hashlib.sha256(raw).hexdigest() != header["sha256"]:
        raise FormatError("the weights do not match the SHA-256 in their header; fetch the file again")
    return _read_inner(raw)


def write_frame_file(path: Path, frame: bytes) -> None:
    """Write ``model.safetensors``: one uint8 tensor that holds the frame."""
    path.write_bytes(_outer_bytes(frame))


def read_frame_file(path: Path) -> Weights:
    """Read ``model.safetensors`` back; raises FormatError where it is not byte for byte a file that pgolf writes."""
    data = path.read_bytes()
    start = len(data) - len(MAGIC)
    if len(data) >= 8:
        start = 8 + struct.unpack("<Q", data[:8])[0]
    frame = data[start:] if start <= len(data) else b""
    if not frame or _outer_bytes(frame) != data:
        raise FormatError(f"{path.name} is not a pgolf record: {len(data)} bytes without the one tensor '{FRAME_NAME}'")
    return unpack(frame)


def _outer_bytes(frame: bytes) -> bytes:
    tensor = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
    return safetensors.torch.save({FRAME_NAME: tensor}, metadata={"format": "pt"})


def _header_bytes(codec: str, raw_bytes: int, sha256: str) -> bytes:
    fields = {"codec": codec, "raw_bytes": raw_bytes, "sha256": sha256, "version": FORMAT_VERSION}
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _read_header(data: bytes) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(data)
        canonical = _header_bytes(fields["codec"], fields["raw_bytes"], fields["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"the frame header cannot be read: {error!r}") from error
    if canonical != data or not isinstance(fields["raw_bytes"], int) or fields["raw_bytes"] < 0:
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
    return safetensors.torch.save(tensors, metadata={"bits": json.dumps(bits, separators=(",", ":"))})


def _read_inner(raw: bytes) -> Weights:
    try:
        tensors = safetensors.torch.load(raw)
        (length,) = struct.unpack("<Q", raw[:8])
        bits = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["bits"])
    except (SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
        raise FormatError(f"the inner file of the frame cannot be read: {error!r}") from error
    weights: Weights = {}
    for name, width in bits.items():
        if name + CODES not in tensors or name + SCALE not in tensors:
            raise FormatError(f"tensor '{name}' has no codes or no scale")
        weights[name] = _checked(name, GridTensor(tensors.pop(name + CODES), tensors.pop(name + SCALE), width))
    return weights | tensors


def _checked(name: str, tensor: GridTensor) -> GridTensor:
    codes, scale, bits = tensor
    if codes.dtype != torch.int8 or scale.dtype != torch.float16 or bits not in range(2, 9):
        raise FormatError(f"'{name}' has {codes.dtype} codes, a {scale.dtype} scale and {bits!r} bits")
    if scale.shape not in (codes.shape[:1], torch.Size()):
        raise FormatError(f"'{name}' has codes {tuple(codes.shape)} and scales {tuple(scale.shape)}")
    if codes.numel() and int(codes.to(torch.int16).abs().max()) > largest_code(bits):
        raise FormatError(f"'{name}' has codes outside its {bits}-bit grid")
    return tensor


class PGolfQuantizationConfig(QuantizationConfigMixin):
    """``quantization_config`` of an artifact: it names the method; everything else is in the frame's own header."""

    def __init__(self, **kwargs: Any) -> None:
        self.quant_method = "pgolf"
        self.dequantize = True


class DecodeFrame(ConversionOps):
    """Turn the one frame tensor into every weight of the model."""

    def __init__(self, prefix: str, shapes: dict[str, torch.Size]) -> None:
        self.prefix, self.shapes = prefix, shapes

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Decode; raises FormatError where names or shapes are not the model's."""
        (tensor,) = input_dict.values()
        tensor = tensor[0] if isinstance(tensor, list) else tensor
        allowed = 4 * sum(shape.numel() for shape in self.shapes.values()) + 2**20
        weights = unpack(tensor.cpu().numpy().tobytes(), raw_limit=min(RAW_LIMIT, 2 * allowed))
        floats = {name: w.decode() if isinstance(w, GridTensor) else w for name, w in weights.items()}
        if self.prefix:
            floats = {name.removeprefix(self.prefix): w for name, w in floats.items() if name.startswith(self.prefix)}
        _compare_names(set(floats), set(self.shapes))
        for name, shape in self.shapes.items():
            if floats[name].shape != shape:
                raise FormatError(f"'{name}' has shape {tuple(floats[name].shape)}, the model wants {tuple(shape)}")
        dtype = kwargs["model"].dtype
        return {name: w.to(dtype) for name, w in floats.items()}


def _compare_names(found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        raise FormatError(
            f"the artifact lacks {sorted(wanted - found)[:3]} and has {sorted(found - wanted)[:3]} besides; "
            "config.json and model.safetensors are not of one model"
        )


class PGolfQuantizer(HfQuantizer):
    """Decodes a frame while loading; what comes out is an ordinary trainable model."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        tied = set(model.all_tied_weights_keys)
        self.shapes = {name: p.shape for name, p in model.named_parameters() if name not in tied}
        self.prefix = "" if any(name.startswith("model.") for name in self.shapes) else "model."

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        """Add the one-to-many conversion of the frame."""
        first = next(iter(self.shapes))
        self.converter = WeightConverter(FRAME_NAME, first, [DecodeFrame(self.prefix, self.shapes)])
        return [*weight_conversions, self.converter]

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        # Saving reverses the conversions that loading recorded; a loaded artifact is saved as plain floats.
        conversions = model._weight_conversions or []
        model._weight_conversions = [entry for entry in conversions if not _decodes_frame(entry)]

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
