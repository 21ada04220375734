"""Building and opening corpora: what ends up in the folder, and everything that must be refused."""

import functools
import json
import os
import random

import numpy as np
import pytest
import torch
from tiny_text import WORDS, train_sentencepiece

from modeling_pgolf.errors import CorpusError
from pgolf.corpus import published, splits
from pgolf.corpus.build import CorpusConfig, SentencePieceModel, TrainBpe, build_corpus, describe, open_corpus
from pgolf.corpus.embedded import EmbeddedProse
from pgolf.corpus.fineweb import ChallengeShards, fetch_challenge
from pgolf.corpus.local import LocalFolder
from pgolf.corpus.shards import write_shard
from pgolf.corpus.stream import StreamConfig, TextStream
from pgolf.corpus.tokenizer import byte_table, read_sentencepiece

SHARED = "This page is in both splits."


def pages(seed, count):
    draw = random.Random(seed)
    return [f"Page {seed}-{number}: {' '.join(draw.choices(WORDS, k=40))}.\n" for number in range(count)]


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    for split, rows in (
        ("train", [*pages(0, 30), SHARED, *pages(1, 30), SHARED]),
        ("validation", [SHARED, *pages(2, 5)]),
    ):
        lines = (json.dumps({"text": text}) + "\n" for text in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return LocalFolder(str(folder))


@pytest.fixture(scope="module")
def config(web):
    return CorpusConfig(web, TrainBpe(vocab_size=320))


@pytest.fixture(scope="module")
def corpus(config, tmp_path_factory):
    return build_corpus(config, tmp_path_factory.mktemp("corpora") / "tiny")


def documents(corpus, split):
    """The texts that a split's tokens spell."""
    stream = np.concatenate(corpus.train if split == "train" else corpus.validation).astype(int)
    starts = np.flatnonzero(stream == 1)
    assert starts[0] == 0
    return [corpus.tokenizer.decode(part[1:]) for part in np.split(stream, starts[1:])]


def test_the_shards_spell_the_documents(corpus):
    assert documents(corpus, "validation") == [SHARED, *pages(2, 5)]
    assert documents(corpus, "train") == [*pages(0, 30), *pages(1, 30)]


def test_no_training_document_is_a_validation_document(corpus):
    assert set(documents(corpus, "train")).isdisjoint(documents(corpus, "validation"))
    assert corpus.facts["train_documents_dropped_as_validation_duplicates"] == 2


def test_facts_are_the_truth(corpus, config):
    assert json.loads((corpus.folder / "corpus.json").read_text()) == corpus.facts
    assert corpus.facts["config"] == describe(config)
    for split, shards in (("train", corpus.train), ("validation", corpus.validation)):
        facts, texts = corpus.facts[split], documents(corpus, split)
        assert facts["documents"] == len(texts)
        assert facts["utf8_bytes"] == sum(len(text.encode()) for text in texts)
        assert facts["tokens"] == sum(shard.size for shard in shards) == sum(s["tokens"] for s in facts["shards"])
        for shard in facts["shards"]:
            assert shard["sha256"] == splits.file_sha256(corpus.folder / shard["name"])
    # Every byte of the validation text is counted once (no document begins with a blank).
    stream = torch.from_numpy(np.concatenate(corpus.validation).astype(np.int64))
    assert int(corpus.bytes.count(stream[:-1], stream[1:]).sum()) == corpus.facts["validation"]["utf8_bytes"]


def test_the_byte_table_is_the_tokenizers(corpus):
    for name, tensor in vars(byte_table(corpus.tokenizer)).items():
        assert torch.equal(vars(corpus.bytes)[name], tensor)


def test_a_second_build_is_the_same_and_an_existing_folder_is_opened(corpus, config, tmp_path):
    again = build_corpus(config, tmp_path / "again")
    assert again.facts == corpus.facts
    before = os.stat(tmp_path / "again" / "fineweb_train_000000.bin").st_mtime_ns
    assert build_corpus(config, tmp_path / "again").facts == again.facts
    assert os.stat(tmp_path / "again" / "fineweb_train_000000.bin").st_mtime_ns == before
    assert os.listdir(tmp_path) == ["again"]


def test_another_configuration_is_not_opened_in_its_place(corpus, web):
    with pytest.raises(CorpusError, match=r"'vocab_size': 330.*found the corpus.*'vocab_size': 320"):
        build_corpus(CorpusConfig(web, TrainBpe(vocab_size=330)), corpus.folder)


def test_a_limit_ends_with_a_whole_document(web, corpus, tmp_path):
    limited = build_corpus(CorpusConfig(web, TrainBpe(320), train_tokens=500, validation_tokens=100), tmp_path / "c")
    texts = documents(limited, "train")
    assert texts == documents(corpus, "train")[: len(texts)]
    tokens = limited.facts["train"]["tokens"]
    last = len(limited.tokenizer.encode(texts[-1]))
    assert 500 <= tokens < 500 + last
    assert limited.facts["validation"]["documents"] == 2
    # The unused rest of validation is still kept out of train.
    assert limited.facts["train"]["utf8_bytes"] == sum(len(text.encode()) for text in texts)


def test_batches_do_not_change_the_tokens(config, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(splits, "BATCH_CHARACTERS", 900)
    assert build_corpus(config, tmp_path / "c").facts == corpus.facts


def test_a_sentencepiece_corpus_holds_its_exact_ids(web, tmp_path):
    model = train_sentencepiece(tmp_path / "tiny.model")
    corpus = build_corpus(CorpusConfig(web, SentencePieceModel(str(model))), tmp_path / "c")
    expected = read_sentencepiece(model)(SHARED)["input_ids"]
    assert corpus.validation[0][: len(expected)].tolist() == expected
    assert (corpus.folder / "tokenizer" / "sentencepiece.model").read_bytes() == model.read_bytes()
    assert corpus.facts["config"]["tokenizer"] == {"kind": "SentencePieceModel", "path": "tiny.model"}
    assert str(tmp_path) not in (corpus.folder / "corpus.json").read_text()


def test_a_failed_build_leaves_nothing(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "train.jsonl").write_text('{"text": "a"}\nbroken\n')
    (tmp_path / "web" / "validation.jsonl").write_text('{"text": "b"}\n')
    with pytest.raises(CorpusError, match=r"line 2 of train.jsonl"):
        build_corpus(CorpusConfig(LocalFolder(str(tmp_path / "web")), TrainBpe(300)), tmp_path / "c")
    assert os.listdir(tmp_path) == ["web"]


def test_an_empty_split_is_named(tmp_path):
    model = train_sentencepiece(tmp_path / "tiny.model")
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(CorpusError, match="asked for a train split; found no document"):
        build_corpus(CorpusConfig(LocalFolder(str(tmp_path)), SentencePieceModel(str(model))), tmp_path / "c")


def test_a_folder_of_something_else_is_left_alone(config, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(CorpusError, match="not empty"):
        build_corpus(config, tmp_path / "notes")
    assert [path.name for path in tmp_path.rglob("*")] == ["notes", "mine.txt"]


def test_a_damaged_corpus_is_not_opened(config, tmp_path):
    folder = build_corpus(config, tmp_path / "c").folder
    (folder / "fineweb_train_000000.bin").rename(tmp_path / "aside")
    with pytest.raises(CorpusError, match="asked for the train split"):
        open_corpus(folder)
    write_shard(folder / "fineweb_train_000000.bin", [1, 2, 3])
    with pytest.raises(CorpusError, match=r"found \[\('fineweb_train_000000.bin', 3\)\]; build it again"):
        open_corpus(folder)
    (folder / "corpus.json").write_text('{"format": 0}')
    with pytest.raises(CorpusError, match="format 2"):
        open_corpus(folder)
    (folder / "corpus.json").unlink()
    with pytest.raises(CorpusError, match=r"no readable corpus.json"):
        open_corpus(folder)


def test_the_fingerprint_covers_the_head_across_shards(monkeypatch):
    monkeypatch.setattr(splits, "FINGERPRINT_TOKENS", 4)
    parts = [np.array(ids, dtype=np.uint16) for ids in ([1, 2, 3], [4, 5], [6])]
    whole = splits.fingerprint([np.array([1, 2, 3, 4], dtype=np.uint16)])
    assert splits.fingerprint(parts) == whole and len(whole) == 16
    assert splits.fingerprint([parts[0], parts[2]]) != whole


def test_tokenizer_and_source_must_fit():
    with pytest.raises(CorpusError, match="EmbeddedProse with NoneType as its tokenizer"):
        CorpusConfig(EmbeddedProse())
    with pytest.raises(CorpusError, match="ChallengeShards with TrainBpe as its tokenizer"):
        CorpusConfig(ChallengeShards(), TrainBpe(300))
    with pytest.raises(CorpusError, match="train_shards instead"):
        CorpusConfig(ChallengeShards(), train_tokens=5)


@pytest.mark.parametrize("largest", [399, 400])
def test_published_shards_become_a_corpus(tmp_path, monkeypatch, largest):
    train_sentencepiece(tmp_path / "tiny.model")
    write_shard(tmp_path / "val.bin", [1, 300, 1, 301])
    write_shard(tmp_path / "train.bin", [1, 300, largest])
    manifest = {
        "datasets": [{"name": "x", "tokenizer_name": "sp", "stats": {"files_train": 2, "files_val": 1}}],
        "tokenizers": [{"name": "sp", "model_path": "tokenizers/tiny.model"}],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    local = {
        "datasets/manifest.json": "manifest.json",
        "datasets/tokenizers/tiny.model": "tiny.model",
        "datasets/datasets/x/fineweb_val_000000.bin": "val.bin",
        "datasets/datasets/x/fineweb_train_000000.bin": "train.bin",
    }
    download = functools.partial(fetch_challenge, download=lambda path: tmp_path / local[path])
    monkeypatch.setattr(published, "fetch_challenge", download)
    config = CorpusConfig(ChallengeShards(variant="x", train_shards=1))
    if largest == 400:
        with pytest.raises(CorpusError, match=r"ids below 400; found 400 in fineweb_train_000000.bin"):
            build_corpus(config, tmp_path / "c")
        return
    corpus = build_corpus(config, tmp_path / "c")
    assert corpus.train[0].tolist() == [1, 300, 399]
    assert corpus.facts["validation"]["documents"] == 2 and corpus.facts["validation"]["utf8_bytes"] is None
    assert len(corpus.tokenizer) == 400


def test_the_embedded_prose_becomes_a_corpus(tmp_path):
    config = CorpusConfig(EmbeddedProse(), TrainBpe(512, train_megabytes=0.3), train_tokens=20_000)
    corpus = build_corpus(config, tmp_path / "prose")
    assert corpus.facts["train"]["tokens"] >= 20_000
    assert corpus.facts["validation"]["utf8_bytes"] / corpus.facts["validation"]["tokens"] > 1.7
    assert corpus.facts["train_documents_dropped_as_validation_duplicates"] == 0


def test_the_embedded_prose_becomes_a_stream(tmp_path):
    streaming = StreamConfig(lanes=2, shuffle_documents=3, workers=0)
    config = CorpusConfig(EmbeddedProse(), TrainBpe(512, train_megabytes=0.3), streaming=streaming)
    corpus = build_corpus(config, tmp_path / "prose")
    span, place = next(TextStream(config.source, corpus.folder, streaming).spans(1, 50, None))
    assert span[0] == 1 and span.size == 50 and place["epoch"] == 0
