"""Corpora: built once into a folder, opened many times.

A corpus folder holds the token shards of both splits, the tokenizer, the byte table and the facts about all of them;
it appears under its name only when it is complete. The validation documents are known first, and none of them may be
a training document: that is how LEGALITY rule D2 holds by construction.

Sources: the challenge's ``data/download_hf_docs_and_tokenize.py`` for the format of a document (BOS, ids of the raw
text, no EOS); LEGALITY rules D2 and K10.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from evaluation.bytecount import ByteTable
from modeling_pgolf.errors import CorpusError
from pgolf.corpus.documents import Split, TextSource, document_key
from pgolf.corpus.embedded import EmbeddedProse
from pgolf.corpus.fineweb import ChallengeShards, FineWebStream
from pgolf.corpus.local import LocalFolder
from pgolf.corpus.progress import strip, unfinished
from pgolf.corpus.published import publish
from pgolf.corpus.recount import recount
from pgolf.corpus.shards import Shard, open_split, replace_file
from pgolf.corpus.splits import KEYS_FILE, TrainTexts, file_sha256, fingerprint, head, write_keys, write_split
from pgolf.corpus.stream import TOKENIZER_FOLDER, StreamConfig
from pgolf.corpus.tokenizer import (
    Encoder,
    byte_table,
    load_byte_table,
    load_tokenizer,
    read_sentencepiece,
    save_byte_table,
    save_tokenizer,
    train_bpe,
)

# The names inside a corpus folder.
FACTS_FILE = "corpus.json"
BYTE_TABLE_FILE = "byte_table.safetensors"

# Bumped when a folder written before could be misread.
FORMAT = 2


@dataclass(frozen=True)
class TrainBpe:
    """A tokenizer trained on the corpus's own training split.

    vocab_size: pieces, exactly.
    train_megabytes: how much UTF-8 text from the head of the split to train on, in 10**6 bytes. The default trains in
    3 s on two cores; ten times as much changed the bytes a token stands for by less than 0.5 % (1024 and 8192 pieces,
    web text).
    """

    vocab_size: int
    train_megabytes: float = 10.0


@dataclass(frozen=True)
class SentencePieceModel:
    """An existing SentencePiece BPE model with the challenge's layout of ids.

    path: the ``.model`` file.
    """

    path: str


@dataclass(frozen=True)
class CorpusConfig:
    """What a corpus is made of.

    source: where the text comes from.
    tokenizer: how it becomes ids; None with ``ChallengeShards``, which bring their own.
    train_tokens, validation_tokens: a split ends with the document in which it reaches this many tokens; None takes
    the whole source.
    streaming: how training text is tokenised while a model trains; None tokenises it once, into shards.
    """

    source: EmbeddedProse | LocalFolder | FineWebStream | ChallengeShards
    tokenizer: TrainBpe | SentencePieceModel | None = None
    train_tokens: int | None = None
    validation_tokens: int | None = None
    streaming: StreamConfig | None = None

    def __post_init__(self) -> None:
        published = isinstance(self.source, ChallengeShards)
        if published != (self.tokenizer is None):
            raise CorpusError(
                f"asked for {type(self.source).__name__} with {type(self.tokenizer).__name__} as its tokenizer; "
                "published shards bring their own and text needs one; leave it out with ChallengeShards and name one "
                "otherwise"
            )
        if published and (self.train_tokens, self.validation_tokens) != (None, None):
            raise CorpusError(
                "asked for ChallengeShards up to a number of tokens; published shards stay whole; "
                "choose train_shards instead"
            )
        if self.streaming is not None and (published or self.train_tokens is not None):
            raise CorpusError(
                f"asked to stream {type(self.source).__name__} up to {self.train_tokens} tokens; a stream is of text "
                "and has no end; leave streaming or train_tokens out"
            )


@dataclass(frozen=True)
class Corpus:
    """An open corpus.

    tokenizer: text to ids and back.
    bytes: bytes of text of every id, over len(tokenizer) ids.
    train, validation: the splits' shards in order, each uint16 (N,), mapped read-only; none for a streamed train.
    facts: what ``corpus.json`` says: configuration, documents, tokens, UTF-8 bytes and shard hashes of both splits,
    the fingerprint of the first 1,000,000 train tokens.
    """

    folder: Path
    tokenizer: PreTrainedTokenizerFast
    bytes: ByteTable
    train: list[Shard]
    validation: list[Shard]
    facts: dict[str, Any]


def build_corpus(config: CorpusConfig, folder: str | Path) -> Corpus:
    """Build a corpus into ``folder``, or open it when it is there already.

    Everything is made in a hidden folder beside it and renamed at the end; a build that was stopped goes on behind
    its last complete shard.
    Raises CorpusError when the folder holds something else or a corpus of another configuration, when another process
    builds it, when a split is empty, or when source or disk fail.
    """
    target = Path(folder)
    plan = {"format": FORMAT, "config": describe(config)}
    try:
        if not (target / FACTS_FILE).is_file():
            with unfinished(target, plan) as home:
                if not (target / FACTS_FILE).is_file():  # else another process finished it a moment ago
                    _build(config, plan, home, target)
    except OSError as error:
        raise CorpusError(
            f"asked to build a corpus in {target}; found: {error.strerror or error}; choose a folder that is empty "
            "or does not exist, on a disk with room"
        ) from error
    return _reopen(config, target)


def _build(config: CorpusConfig, plan: dict[str, Any], home: Path, target: Path) -> None:
    """Fill ``home`` and give it the name of ``target``."""
    if target.exists():
        target.rmdir()  # refuses a folder that is not empty, before hours of work and not after
    facts = {**plan, **_assemble(config, home)}
    replace_file(home / FACTS_FILE, [(json.dumps(facts, indent=2) + "\n").encode()])
    strip(home)
    os.rename(home, target)


def open_corpus(folder: str | Path) -> Corpus:
    """Open a corpus folder.

    Raises CorpusError when it is missing, incomplete, of another format, or its shards have other names or sizes than
    the recorded ones. What is in them was hashed as it was written, and is not read again: FineWeb's take minutes.
    """
    home = Path(folder)
    try:
        facts = json.loads((home / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"asked for the corpus in {home}; found no readable {FACTS_FILE} ({error}); build it first"
        ) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CorpusError(f"asked for a corpus of format {FORMAT} in {home}; found another; build it again")
    return Corpus(
        folder=home,
        tokenizer=load_tokenizer(home / TOKENIZER_FOLDER),
        bytes=load_byte_table(home / BYTE_TABLE_FILE),
        train=_recorded_shards(home, "train", facts),
        validation=_recorded_shards(home, "validation", facts),
        facts=facts,
    )


def describe(config: CorpusConfig) -> dict[str, Any]:
    """Describe a configuration as JSON values, the same on every machine: of a path only the last name stays."""

    def described(part: Any) -> dict[str, Any]:
        fields = dataclasses.asdict(part)
        if "path" in fields:
            fields["path"] = Path(fields["path"]).name
        return {"kind": type(part).__name__, **fields}

    return {
        "source": described(config.source),
        "tokenizer": None if config.tokenizer is None else described(config.tokenizer),
        "train_tokens": config.train_tokens,
        "validation_tokens": config.validation_tokens,
        "streaming": None if config.streaming is None else {**described(config.streaming), "workers": None},
    }


def _reopen(config: CorpusConfig, folder: Path) -> Corpus:
    corpus = open_corpus(folder)
    asked, found = describe(config), corpus.facts.get("config")
    if asked != found:
        raise CorpusError(
            f"asked for the corpus {asked} in {folder}; found the corpus {found}; choose another folder or remove it"
        )
    return corpus


def _recorded_shards(folder: Path, split: Split, facts: dict[str, Any]) -> list[Shard]:
    if not facts[split]["shards"]:
        return []  # streamed
    shards = open_split(folder, split)
    found = [(Path(str(shard.filename)).name, shard.size) for shard in shards]
    asked = [(shard["name"], shard["tokens"]) for shard in facts[split]["shards"]]
    if found != asked:
        raise CorpusError(
            f"asked for the {split} shards {asked} that {FACTS_FILE} lists in {folder}; found {found}; build it again"
        )
    return shards


def _assemble(config: CorpusConfig, folder: Path) -> dict[str, Any]:
    """Fill a new folder with shards, tokenizer and byte table; return the facts about them."""
    texts: Iterable[str] | None = None
    if isinstance(config.source, ChallengeShards):
        facts = publish(config.source, folder, folder / TOKENIZER_FOLDER)
    else:
        facts = _tokenize(config, config.source, folder)
        texts = (document["text"] for document in config.source.documents("validation"))
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    table = byte_table(tokenizer)
    save_byte_table(table, folder / BYTE_TABLE_FILE)
    facts["validation"] |= recount(open_split(folder, "validation"), tokenizer, table, texts)
    files = sorted((folder / TOKENIZER_FOLDER).iterdir())
    return {
        **facts,
        "train_fingerprint": None if config.streaming else fingerprint(open_split(folder, "train")),
        "tokenizer": {"vocab_size": len(tokenizer), "sha256": {path.name: file_sha256(path) for path in files}},
    }


def _tokenize(config: CorpusConfig, source: TextSource, folder: Path) -> dict[str, Any]:
    """Tokenise a text source: the validation documents' hashes, the tokenizer, validation, train."""
    validation = {document_key(document["text"]) for document in source.documents("validation")}
    write_keys(folder, validation)
    train = TrainTexts(source, validation)
    if not (folder / TOKENIZER_FOLDER).exists():  # else an earlier build got that far
        _make_tokenizer(config, train, folder)
    encoder = Encoder.from_folder(folder / TOKENIZER_FOLDER)
    held_out = (document["text"] for document in source.documents("validation"))
    facts = {
        "validation": write_split(held_out, "validation", encoder, folder, config.validation_tokens),
        "validation_keys_sha256": file_sha256(folder / KEYS_FILE),
    }
    if config.streaming is not None:
        streamed: dict[str, Any] = {"documents": None, "utf8_bytes": None, "tokens": None, "shards": []}
        return {**facts, "train": streamed, "train_documents_dropped_as_validation_duplicates": None}
    return {
        **facts,
        "train": write_split(train, "train", encoder, folder, config.train_tokens),
        "train_documents_dropped_as_validation_duplicates": train.dropped,
    }


def _make_tokenizer(config: CorpusConfig, train: TrainTexts, folder: Path) -> None:
    if isinstance(config.tokenizer, SentencePieceModel):
        model = config.tokenizer.path
        save_tokenizer(read_sentencepiece(model), folder / TOKENIZER_FOLDER, model)
    else:
        assert config.tokenizer is not None  # CorpusConfig refuses it
        texts = head(train, config.tokenizer.train_megabytes)
        save_tokenizer(train_bpe(texts, config.tokenizer.vocab_size), folder / TOKENIZER_FOLDER)
