"""Zstandard, for the payload of a frame and for the parts of it that another codec leaves over.

The size that a zstd frame declares is compared with what the caller allows before any memory is taken.
"""

import zstandard

from .errors import FormatError

# Level 22 is the strongest that zstandard has; PR 162 and all records of its line use it.
LEVEL = 22


def zstd_encode(raw: bytes, level: int = LEVEL) -> bytes:
    """Compress ``raw`` to one zstd frame with its size and checksum."""
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True).compress(raw)


def zstd_decode(payload: bytes, raw_bytes: int) -> bytes:
    """Return the ``raw_bytes`` bytes of a zstd frame; raises FormatError where it says another size or is damaged."""
    declared = declared_bytes(payload)
    if declared != raw_bytes:
        raise FormatError(f"the header promises {raw_bytes} bytes, the zstd frame declares {declared}")
    try:
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"the zstd frame is damaged: {error}; fetch the file again") from error


def declared_bytes(payload: bytes) -> int:
    """Return the size that a zstd frame declares, -1 for none; raises FormatError where it is no zstd frame."""
    try:
        return zstandard.frame_content_size(payload)
    except zstandard.ZstdError as error:
        raise FormatError(f"the zstd frame is damaged: {error}; fetch the file again") from error
