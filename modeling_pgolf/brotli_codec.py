"""Byte shuffle and brotli, the compressor of the SP8192 records; needs the package brotli.

Bytes at even offsets are written before those at odd offsets, which puts the exponents of float16 numbers side by
side. Source: PR 1089 and PR 1394; SPEC-8192 4.4.
"""

from .errors import EnvironmentMismatch, FormatError

try:
    import brotli
except ImportError:
    brotli = None

MAGIC = b"BSHF"
STRIDE = 2
# The strongest quality that brotli has.
QUALITY = 11


def shuffle(data: bytes, stride: int = STRIDE) -> bytes:
    """Group bytes by their offset modulo ``stride``, behind a magic and the stride; shorter data stay as they are."""
    if len(data) < stride:
        return data
    return MAGIC + bytes([stride]) + b"".join(data[place::stride] for place in range(stride))


def unshuffle(data: bytes) -> bytes:
    """Undo ``shuffle``; data without the magic stay as they are. Raises FormatError on a stride of 0."""
    if len(data) < len(MAGIC) + 1 or not data.startswith(MAGIC):
        return data
    stride, body = data[len(MAGIC)], data[len(MAGIC) + 1 :]
    if stride == 0:
        raise FormatError("the byte shuffle has a stride of 0; fetch the file again")
    out, begin = bytearray(len(body)), 0
    for place in range(min(stride, len(body))):
        end = begin + len(range(place, len(body), stride))
        out[place::stride] = body[begin:end]
        begin = end
    return bytes(out)


def brotli_encode(raw: bytes) -> bytes:
    """Shuffle and compress; the package brotli must be there."""
    packed: bytes = brotli.compress(shuffle(raw), quality=QUALITY)
    return packed


def brotli_decode(payload: bytes, raw_bytes: int) -> bytes:
    """Return the ``raw_bytes`` bytes behind ``payload``; raises FormatError on damage."""
    limit = raw_bytes + len(MAGIC) + 1
    reader, shuffled = brotli.Decompressor(), b""
    try:
        # A brotli stream does not say how long it is: one byte more than is allowed proves it too long.
        shuffled = reader.process(payload, output_buffer_limit=limit + 1)
    except brotli.error as error:
        raise FormatError(f"the brotli stream is damaged: {error}; fetch the file again") from error
    if not reader.is_finished() or len(shuffled) > limit:
        raise FormatError(f"the brotli stream does not end within the {raw_bytes} bytes of its header")
    raw = unshuffle(shuffled)
    if len(raw) != raw_bytes or shuffle(raw) != shuffled:
        raise FormatError(f"the brotli stream holds {len(raw)} bytes, the header promises {raw_bytes}")
    return raw


def require_brotli() -> None:
    """Raise EnvironmentMismatch where the package brotli is not installed."""
    if brotli is None:
        raise EnvironmentMismatch("these weights are packed by brotli, which is not installed: pip install brotli")
