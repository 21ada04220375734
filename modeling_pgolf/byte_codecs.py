"""Byte codecs: how the inner file of a record becomes small, encode and decode side by side.

Codes are stored one to a byte: packing them to six bits first costs zstandard 8 to 11 % (docs/LOG.md). A header
names the codec, so a reader never guesses.
"""

import zstandard

from .errors import FormatError

# Level 22 is the strongest that zstandard has; PR 162 and all records of its line use it.
ZSTD_LEVEL = 22


def encode(codec: str, raw: bytes, level: int = ZSTD_LEVEL) -> bytes:
    """Compress ``raw`` with the named codec."""
    _check_known(codec)
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True).compress(raw)


def decode(codec: str, payload: bytes, raw_bytes: int) -> bytes:
    """Return the ``raw_bytes`` bytes that ``payload`` stands for.

    The size that the payload itself declares is compared first, so no more memory is taken than the caller allowed.
    Raises FormatError on an unknown codec or a damaged payload.
    """
    _check_known(codec)
    try:
        declared = zstandard.frame_content_size(payload)
        if declared != raw_bytes:
            raise FormatError(f"the header promises {raw_bytes} bytes, the zstd frame declares {declared}")
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"the zstd frame is damaged: {error}; fetch the file again") from error


def _check_known(codec: str) -> None:
    if codec != "zstd":
        raise FormatError(f"codec {codec!r} is not known to this code, which reads 'zstd'; a newer pgolf may read it")
