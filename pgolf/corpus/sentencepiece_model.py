"""SentencePiece models, read as fast Hugging Face tokenizers with the same ids.

A BPE model is a scored list of pieces; every way to split a piece into two others, in the order of the scores, is the
merge list of an ordinary BPE tokenizer, and the model's own character map is its normaliser. The file is a protocol
buffer of which four numbers per message matter here, so it is read directly.

Known difference: where several combining marks stack on one letter, the character map of ``tokenizers`` works on
whole graphemes and drops a mark that SentencePiece keeps ("e" U+0301 U+0323). Two splits of one piece that overlap
("aaa") may also merge in another order. Neither occurs in 51 MB of web pages, prose and documentation; corpora are
encoded by SentencePiece itself all the same (``pgolf.corpus.tokenizer.Encoder``).

Sources: google/sentencepiece ``sentencepiece_model.proto`` (field numbers) and ``normalizer.cc`` (blanks);
Sennrich et al., 2016 (BPE).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from modeling_pgolf.errors import CorpusError

# The blank as SentencePiece spells it inside pieces.
BLANK = "\u2581"

# The first 260 ids. Source: the challenge's trainer options (pad 0, bos 1, eos 2, unk 3, byte_fallback).
CONTROL_PIECES = ("<pad>", "<s>", "</s>", "<unk>")
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
FIXED_PIECES = CONTROL_PIECES + BYTE_PIECES

# Piece types. Source: ModelProto.SentencePiece.Type.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
FIXED_TYPES = (CONTROL, CONTROL, CONTROL, UNKNOWN) + (BYTE,) * 256

# TrainerSpec.model_type of a BPE model. Source: TrainerSpec.ModelType.
BPE = 2

# Bytes of the wire types without a length of their own. Source: the protocol buffer encoding guide.
FIXED_SIZES = {1: 8, 5: 4}

Fields = dict[int, int | bytes]


@dataclass(frozen=True)
class Piece:
    """One vocabulary entry: its text, its score (higher merges first) and its type."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceFile:
    """What a ``.model`` file says, as far as encoding depends on it.

    charsmap: the compiled character map, empty for the identity.
    folds_blanks: runs of blanks become one and those at the ends vanish.
    """

    pieces: tuple[Piece, ...]
    charsmap: bytes
    folds_blanks: bool
    trainer: Fields
    normalizer: Fields


def build_fast(path: str | Path) -> Tokenizer:
    """Build the fast tokenizer of a SentencePiece BPE model; ids are the model's.

    Raises CorpusError for a file that is no such model, or one whose ids or rules are not the challenge's.
    """
    model = read_model(path)
    check_layout(model, Path(path).name)
    vocabulary = {piece.text: number for number, piece in enumerate(model.pieces)}
    merges = list(_merges(model.pieces))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = _normalizer(model)
    tokenizer.decoder = blank_decoder()
    return tokenizer


def blank_decoder() -> decoders.Decoder:
    """Build the decoder of both kinds of tokenizer: blank marks to blanks, byte pieces to characters, all joined."""
    return decoders.Sequence([decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()])


def read_model(path: str | Path) -> SentencePieceFile:
    """Read a SentencePiece ``.model`` file.

    Raises CorpusError when the file is missing or no SentencePiece model.
    """
    source = Path(path)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise CorpusError(
            f"asked for the SentencePiece model {source}; found: {error.strerror or error}; check the path"
        ) from error
    try:
        return _parse(data)
    except (ValueError, struct.error) as error:
        raise CorpusError(
            f"asked for the SentencePiece model {source}; found {len(data)} bytes that are no such model ({error!r}); "
            "fetch the .model file again"
        ) from error


def check_layout(model: SentencePieceFile, name: str) -> None:
    """Refuse models whose ids or rules this project does not reproduce.

    Raises CorpusError naming the first thing that differs from the challenge's tokenizers.
    """
    fixed = tuple(piece.text for piece in model.pieces[:260])
    types = tuple(piece.type for piece in model.pieces[:260])
    unusual = {piece.type for piece in model.pieces[260:]} - {NORMAL}
    checks = (
        (model.trainer.get(3) == BPE, "a BPE model", f"model type {model.trainer.get(3, 1)!r}"),
        (fixed == FIXED_PIECES, "pad, bos, eos, unk and 256 byte pieces as ids 0 to 259", f"{list(fixed[:5])}..."),
        (types == FIXED_TYPES, "control, unknown and byte types for ids 0 to 259", f"types {list(types[:5])}..."),
        (not unusual, "ordinary pieces from id 260 on", f"piece types {sorted(unusual)}"),
        (not model.normalizer.get(3, 1), "a model without dummy prefix", "add_dummy_prefix"),
        (bool(model.normalizer.get(5, 1)), "a model that escapes blanks", "escape_whitespaces off"),
        (not model.trainer.get(24), "blanks as prefixes of pieces", "treat_whitespace_as_suffix"),
    )
    for holds, asked, found in checks:
        if not holds:
            raise CorpusError(f"asked for {asked}; found {found} in {name}; train one with the challenge's options")


def _merges(pieces: tuple[Piece, ...]) -> Iterator[tuple[str, str]]:
    """Yield every split of every piece into two others, best score first.

    SentencePiece joins the neighbours whose union scores highest, so all splits of one piece share its place.
    """
    known = {piece.text for piece in pieces if piece.type == NORMAL}
    for piece in sorted((piece for piece in pieces if piece.type == NORMAL), key=lambda piece: -piece.score):
        for cut in range(1, len(piece.text)):
            if piece.text[:cut] in known and piece.text[cut:] in known:
                yield piece.text[:cut], piece.text[cut:]


def _normalizer(model: SentencePieceFile) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.folds_blanks:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", BLANK))
    if model.folds_blanks:
        # After the blanks became marks, as SentencePiece does: a mark that the text spelled at its end goes too.
        steps.append(normalizers.Replace(Regex(f"{BLANK}+\\z"), ""))
    return normalizers.Sequence(steps)


def _parse(data: bytes) -> SentencePieceFile:
    """Pick the pieces (field 1), the trainer's (2) and the normaliser's (3) settings out of a ModelProto."""
    fields = list(_fields(data))
    pieces = tuple(_piece(dict(_fields(_bytes(value)))) for number, value in fields if number == 1)
    if not pieces:
        raise ValueError("no pieces")
    normalizer = dict(_fields(b"".join(_bytes(value) for number, value in fields if number == 3)))
    return SentencePieceFile(
        pieces=pieces,
        charsmap=_bytes(normalizer.get(2, b"")),
        folds_blanks=bool(normalizer.get(4, 1)),
        trainer=dict(_fields(b"".join(_bytes(value) for number, value in fields if number == 2))),
        normalizer=normalizer,
    )


def _piece(fields: Fields) -> Piece:
    (score,) = struct.unpack("<f", _bytes(fields.get(2, b"")))
    kind = fields.get(3, NORMAL)
    if not isinstance(kind, int):
        raise ValueError("a piece whose type is no number")
    return Piece(_bytes(fields.get(1, b"")).decode("utf-8"), score, kind)


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes belong")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a protocol buffer message: varints as int, everything else as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in FIXED_SIZES:
            size = FIXED_SIZES[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("a field longer than the file")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a base-128 number; returns it and the place behind it."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number longer than the file")
