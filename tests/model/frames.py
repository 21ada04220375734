"""Frames for the tests of the artifact format: one of every kind of weight, and forged ones around anything."""

import hashlib
import json
import struct

import safetensors.torch
import torch
import zstandard

from modeling_pgolf.grid import GridTensor
from modeling_pgolf.quantization_pgolf import FRAME_NAME, MAGIC

MB = 2**20
LEVEL = 1  # quick, and all the same to a reader


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
