"""Codecs: how the inner file of a record becomes small. A frame's header names the codec, so a reader never guesses.

Codes are stored one to a byte: packing them to six bits first costs zstandard 8 to 11 % (docs/LOG.md).
"""

from .ans_codec import ans_decode, ans_encode, require_constriction
from .brotli_codec import brotli_decode, brotli_encode, require_brotli
from .errors import FormatError
from .zstd_codec import LEVEL, zstd_decode, zstd_encode

CODECS = ("zstd", "shuffle-brotli", "ans")


def encode(codec: str, raw: bytes, level: int = LEVEL) -> bytes:
    """Compress an inner file with the named codec.

    level: zstd's effort, for all of the file or for what the codec ``ans`` leaves over.
    Raises EnvironmentMismatch where the codec's package is not installed.
    """
    require(codec)
    if codec == "ans":
        return ans_encode(raw, level)
    return brotli_encode(raw) if codec == "shuffle-brotli" else zstd_encode(raw, level)


def decode(codec: str, payload: bytes, raw_bytes: int) -> bytes:
    """Return the ``raw_bytes`` bytes that ``payload`` stands for.

    No codec takes more memory than ``raw_bytes`` allows. Raises FormatError on an unknown codec or a damaged payload,
    EnvironmentMismatch where the codec's package is not installed.
    """
    require(codec)
    if codec == "ans":
        return ans_decode(payload, raw_bytes)
    return brotli_decode(payload, raw_bytes) if codec == "shuffle-brotli" else zstd_decode(payload, raw_bytes)


def require(codec: str) -> None:
    """Raise FormatError where there is no such codec, EnvironmentMismatch where its package is not installed."""
    if codec not in CODECS:
        raise FormatError(f"codec {codec!r} is not known to this code, which reads {', '.join(CODECS)}; update pgolf")
    if codec == "ans":
        require_constriction()
    if codec == "shuffle-brotli":
        require_brotli()
