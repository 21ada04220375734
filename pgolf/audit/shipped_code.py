"""The code of a challenge record: every file that its script imports, names or unpacks, and the settings it reads.

The source is parsed and never run. Files are followed by import and by name (a script that compiles or executes a
file beside it spells its name); source that a script carries packed is unpacked and followed too.
Source: LEGALITY K12 (import trace), K20 (unpack wrappers), K21 (settings that score a part).
"""

from __future__ import annotations

import ast
import base64
import binascii
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SCRIPT = "train_gpt.py"
# What is imported or compiled, as against tokenizers, logs and pictures.
CODE_SUFFIXES = frozenset({".py", ".pyx", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".so", ".ptx", ".cubin"})
# Strings from this length on may be packed source; an unpacked script of the challenge has 50 to 150 kB.
PACKED_LENGTH = 1000
UNPACKED_LIMIT = 16_000_000


# Statements that import, for source in the syntax of a later Python than this one.
IMPORTS = re.compile(r"(?:^|[;:])[ \t]*(?:import|from)[ \t]+([\w., \t]+)", re.M)


@dataclass(frozen=True)
class ShippedCode:
    """What a script is made of.

    files: name to bytes, the script first. unread: files among them that hide source, packed in another way or in the
    syntax of a later Python than this one. names: every string in the source; a setting of the environment is one.
    """

    files: dict[str, int]
    unread: tuple[str, ...]
    names: frozenset[str]

    @property
    def bytes(self) -> int:
        """All files together."""
        return sum(self.files.values())


@dataclass(frozen=True)
class Source:
    """One source, or one that was packed in it: top modules it imports, strings, whether it executes another source.

    parsed: False where only statements that import could be read.
    """

    modules: frozenset[str]
    strings: frozenset[str]
    executes: bool
    parsed: bool


def read_code(folder: Path) -> ShippedCode:
    """Follow the script of a record through the files beside it."""
    beside = {p.relative_to(folder): p for p in sorted(folder.rglob("*")) if p.suffix in CODE_SUFFIXES and p.is_file()}
    files: dict[str, int] = {}
    unread, names, waiting = [], set(), [Path(SCRIPT)]
    while waiting:
        name = waiting.pop(0)
        if str(name) in files:
            continue
        files[str(name)] = beside[name].stat().st_size
        if name.suffix != ".py":
            continue
        sources = list(read_sources(beside[name].read_bytes()))
        found = [other for other in beside if other != name and any(uses(source, other) for source in sources)]
        # The innermost source that could be read: when it executes something, that must be a file that was found.
        if not sources[-1].parsed or (sources[-1].executes and not found):
            unread.append(str(name))
        names |= {text for source in sources for text in source.strings}
        waiting += found
    return ShippedCode(files, tuple(unread), frozenset(names))


def read_sources(source: bytes) -> Iterator[Source]:
    """Read a source, then those packed into it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        lines = IMPORTS.findall(source.decode("utf-8", errors="replace"))
        parts = [part.split() for line in lines for part in line.split(",")]
        yield Source(frozenset(part[0].split(".")[0] for part in parts if part), frozenset(), False, False)
        return
    read = Source(frozenset(imports(tree)), frozenset(strings(tree)), calls_exec(tree), True)
    yield read
    for text in read.strings if read.executes else ():
        inner = unpacked(text) if len(text) >= PACKED_LENGTH else None
        if inner is not None:
            yield from read_sources(inner)


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the top names of all modules that a source imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ([node.module.split(".")[0]] if node.module else [alias.name for alias in node.names])


def strings(tree: ast.Module) -> Iterator[str]:
    """Yield every string of a source; those of bytes as Latin-1."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            yield node.value if isinstance(node.value, str) else node.value.decode("latin-1")


def calls_exec(tree: ast.Module) -> bool:
    """Say whether a source executes another."""
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(isinstance(function, ast.Name) and function.id == "exec" for function in calls)


def uses(source: Source, file: Path) -> bool:
    """Say whether a source imports a file, as a module or as one of a package, or spells its name."""
    imported = file.suffix == ".py" and file.parts[0].removesuffix(".py") in source.modules
    return imported or any(Path(text).name == file.name for text in source.strings if len(text) < PACKED_LENGTH)


def unpacked(text: str) -> bytes | None:
    """Undo base 85 or 64 and LZMA or zlib below it, as the challenge's wrappers pack; None where it is neither."""
    for decode in (base64.b85decode, base64.b64decode):
        try:
            packed = decode(text)
        except (ValueError, binascii.Error):
            continue
        for decompress in (from_lzma, from_raw_lzma, from_zlib):
            try:
                return decompress(packed)
            except (lzma.LZMAError, zlib.error, EOFError):
                continue
    return None


def from_lzma(packed: bytes) -> bytes:
    """Decompress an LZMA or xz stream."""
    return lzma.LZMADecompressor().decompress(packed, UNPACKED_LIMIT)


def from_raw_lzma(packed: bytes) -> bytes:
    """Decompress a raw LZMA2 stream."""
    raw = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])
    return raw.decompress(packed, UNPACKED_LIMIT)


def from_zlib(packed: bytes) -> bytes:
    """Decompress a zlib stream."""
    return zlib.decompressobj().decompress(packed, UNPACKED_LIMIT)
