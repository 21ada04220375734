"""Tokenizers: text to ids and back, as ordinary Hugging Face fast tokenizers.

Two kinds share one layout of ids (0 pad, 1 bos, 2 eos, 3 unk, 4 to 259 bytes, then pieces): a byte-fallback BPE
trained here, and a SentencePiece model converted. A document is BOS and the ids of its raw text; control pieces that
a text spells ("<s>") stay text.

The trained kind is lossless: decoding gives back every character, with one exception. U+2581, the mark that stands
for the blank inside pieces, comes back as a blank, as it does in SentencePiece.

``V`` vocabulary, ``N`` tokens. Sources: Sennrich et al., 2016 (BPE); Kudo and Richardson, 2018 (SentencePiece);
SPEC-11L 5.1 (bytes of a piece).
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from evaluation.bytecount import ByteTable
from modeling_pgolf.errors import CorpusError
from pgolf.corpus.sentencepiece_model import (
    BLANK,
    BYTE_PIECES,
    CONTROL_PIECES,
    FIXED_PIECES,
    blank_decoder,
    build_fast,
)
from pgolf.corpus.shards import LARGEST_ID, replace_file

BOS = 1

# Words as SentencePiece's trainer cuts them: letters with the blank before them, digits one by one, other signs
# apart from letters (so no merge can spell "<s>" or "<0x41>"), white space by itself.
WORD = rf"{BLANK}?[\p{{L}}\p{{M}}]+|\p{{N}}|{BLANK}?[^{BLANK}\s\p{{L}}\p{{M}}\p{{N}}]+|{BLANK}+(?={BLANK})|{BLANK}|\s+"

# Characters that get a piece of their own cover this share of the text; the others are spelled in bytes.
# Source: the challenge's trainer option character_coverage.
CHARACTER_COVERAGE = 0.999

# At most this share of the free ids goes to single characters. Our choice: 1024 pieces need 10 %, so it only binds
# in toy vocabularies, where it leaves room for merges.
CHARACTER_SHARE = 0.5

# Pieces: the fixed ones, the blank and one merge; and as many as ids of 16 bits can name.
LEAST_VOCABULARY, LARGEST_VOCABULARY = len(FIXED_PIECES) + 2, LARGEST_ID + 1

# Characters in a piece. Source: SentencePiece's max_sentencepiece_length, which the challenge leaves at its default.
LONGEST_PIECE = 16

# The original model beside its conversion, under a name that transformers does not look for.
MODEL_FILE = "sentencepiece.model"


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lossless byte-fallback BPE tokenizer; the same texts give the same tokenizer.

    texts: documents; all are held in memory.
    vocab_size: V, exactly; at least 262 (260 fixed ids, the blank, one merge) and at most 65,536.
    Raises CorpusError for other sizes and for texts with too few different words for V pieces.
    Source: Sennrich et al., 2016; the challenge's SentencePiece options.
    """
    if not LEAST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise CorpusError(
            f"asked for a vocabulary of {vocab_size}; {len(FIXED_PIECES)} ids are fixed and ids have 16 bits; "
            f"choose {LEAST_VOCABULARY} to {LARGEST_VOCABULARY}"
        )
    kept = list(texts)
    alphabet = _alphabet(kept, vocab_size)
    trainee = _lossless(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(FIXED_PIECES),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=LONGEST_PIECE,
        show_progress=False,
    )
    trainee.train_from_iterator(kept, trainer, length=len(kept))
    if trainee.get_vocab_size() != vocab_size:
        raise CorpusError(
            f"asked for {vocab_size} pieces; the text has words for {trainee.get_vocab_size()}; "
            "train on more text or choose a smaller vocabulary"
        )
    return _wrap(_without_added_bytes(trainee))


def read_sentencepiece(path: str | Path) -> PreTrainedTokenizerFast:
    """Read a SentencePiece BPE model as a fast tokenizer with the same ids.

    Raises CorpusError for a missing or foreign file, or a layout other than the challenge's.
    Known differences: ``pgolf.corpus.sentencepiece_model``.
    """
    return _wrap(build_fast(path))


class Encoder:
    """Encodes documents in bulk, each as BOS and the ids of its text.

    A SentencePiece model encodes through SentencePiece itself, which is exact and faster; a trained BPE through its
    fast tokenizer.

    tokenizer: the fast tokenizer.
    model: the ``.model`` file it was read from, or None for a trained BPE.
    one_core: use one core and not all, as a worker beside others should.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, model: str | Path | None = None, one_core: bool = False
    ) -> None:
        self._one_core = one_core
        # A copy of our own: a call with padding or truncation leaves its setting behind in the tokenizer.
        self._fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._fast.no_padding()
        self._fast.no_truncation()
        self._fast.encode_special_tokens = True  # not part of the copy: "<s>" in a page stays text
        self._exact = None if model is None else sentencepiece.SentencePieceProcessor(model_file=str(model))

    @classmethod
    def from_folder(cls, folder: str | Path, one_core: bool = False) -> Encoder:
        """Rebuild the encoder of a folder that ``save_tokenizer`` wrote."""
        model = Path(folder) / MODEL_FILE
        return cls(load_tokenizer(folder), model if model.is_file() else None, one_core)

    def encode(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Encode each text as BOS and its ids (N,); texts must be valid UTF-8 (no unpaired surrogates)."""
        if self._exact is not None:
            # Arrays: making lists of integers takes a ninth of the time, on one core, and the others wait.
            exact: list[NDArray[np.int32]] = self._exact.encode(
                texts, out_type="numpy", add_bos=True, num_threads=1 if self._one_core else -1
            )
            return exact
        if self._one_core:
            encodings = [self._fast.encode(text, add_special_tokens=False) for text in texts]
        else:
            encodings = self._fast.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array([BOS, *encoding.ids], dtype=np.int32) for encoding in encodings]


def byte_table(tokenizer: PreTrainedTokenizerFast, vocab_size: int | None = None) -> ByteTable:
    """Tabulate the bytes of text that every id stands for.

    vocab_size: rows of the model's embedding; ids beyond the tokenizer's are boundaries of 0 bytes.
    Returns tables over max(len(tokenizer), vocab_size) ids. Blanks inside a piece count 1 byte each, as in the text.
    Source: SPEC-11L 5.1, the challenge's ``build_sentencepiece_luts``.
    """
    size = max(len(tokenizer), vocab_size or 0)
    base_bytes = torch.zeros(size, dtype=torch.int16)
    has_leading_space = torch.zeros(size, dtype=torch.bool)
    is_boundary = torch.ones(size, dtype=torch.bool)
    for piece, number in tokenizer.get_vocab().items():
        if piece in CONTROL_PIECES:
            continue
        is_boundary[number] = False
        has_leading_space[number] = piece.startswith(BLANK)
        spelled = piece.removeprefix(BLANK).replace(BLANK, " ")
        base_bytes[number] = 1 if piece in BYTE_PIECES else len(spelled.encode("utf-8"))
    return ByteTable(base_bytes, has_leading_space, is_boundary)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path, model: str | Path | None = None) -> None:
    """Write a folder that ``AutoTokenizer`` loads, with the original SentencePiece model in it when there is one.

    folder: must not exist yet; it appears complete or not at all.
    Raises CorpusError when it exists or the disk refuses.
    """
    target = Path(folder)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        tokenizer.save_pretrained(temporary)
        if model is not None:
            shutil.copyfile(model, temporary / MODEL_FILE)
        os.rename(temporary, target)
    except OSError as error:
        raise CorpusError(
            f"asked to write the tokenizer folder {target}; found: {error.strerror or error}; "
            "remove that folder, free space there or choose another"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer folder.

    Raises CorpusError when the folder has no fast tokenizer.
    """
    if not (Path(folder) / "tokenizer.json").is_file():
        raise CorpusError(f"asked for the tokenizer in {folder}; found no tokenizer.json there; build the corpus again")
    return PreTrainedTokenizerFast.from_pretrained(str(folder))


def save_byte_table(table: ByteTable, path: str | Path) -> None:
    """Write a byte table as safetensors, under its fields' names."""
    replace_file(path, [save({name: tensor.contiguous() for name, tensor in vars(table).items()})])


def load_byte_table(path: str | Path) -> ByteTable:
    """Read a byte table.

    Raises CorpusError when the file is missing, damaged or holds other tensors.
    """
    try:
        return ByteTable(**load_file(path))
    except (OSError, SafetensorError, TypeError) as error:
        raise CorpusError(
            f"asked for the byte table {path}; found no readable one ({error}); build the corpus again"
        ) from error


def _alphabet(texts: list[str], vocab_size: int) -> list[str]:
    """Choose the characters with a piece of their own: the most frequent ones, ties by code point, the blank always."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    counts[BLANK] += counts.pop(" ", 0)
    room = max(1, int(CHARACTER_SHARE * (vocab_size - len(FIXED_PIECES))))
    wanted = CHARACTER_COVERAGE * counts.total()
    chosen, covered = [BLANK], counts.pop(BLANK)
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= wanted or len(chosen) >= room:
            break
        chosen.append(character)
        covered += count
    return chosen


def _lossless(model: models.BPE) -> Tokenizer:
    """Assemble the trained kind: the only normalisation is the blank's spelling."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", BLANK)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    tokenizer.decoder = blank_decoder()
    return tokenizer


def _without_added_bytes(trained: Tokenizer) -> Tokenizer:
    """Rebuild with the byte pieces as plain vocabulary.

    The trainer can only reserve ids for special tokens, but a special "<0x41>" would be dropped when decoding.
    """
    model = json.loads(trained.to_str())["model"]
    merges = [(left, right) for left, right in model["merges"]]
    return _lossless(
        models.BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Dress a tokenizer for transformers: BOS in front by default, control pieces in a text stay text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=AddedToken("<pad>", special=True),
        bos_token=AddedToken("<s>", special=True),
        eos_token=AddedToken("</s>", special=True),
        unk_token=AddedToken("<unk>", special=True),
        padding_side="left",  # generation continues at the right end
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
