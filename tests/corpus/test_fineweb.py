"""FineWeb without the network: a local data set as the stream, a folder as the published repository."""

import ast
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from modeling_pgolf.errors import CorpusError
from pgolf.corpus import fineweb
from pgolf.corpus.fineweb import VALIDATION_DOCUMENTS, ChallengeShards, FineWebStream, fetch_challenge
from pgolf.corpus.shards import open_split, write_shard


@pytest.fixture
def dataset(tmp_path):
    """A data set folder with a named configuration, as FineWeb has; ten rows in two files."""
    pytest.importorskip("datasets")
    folder = tmp_path / "web"
    (folder / "sample").mkdir(parents=True)
    for part in range(2):
        rows = [{"text": f"page {5 * part + row}", "id": str(row), "language_score": 0.5} for row in range(5)]
        (folder / "sample" / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: sample-10BT\n  data_files:\n  - split: train\n    path: sample/*.jsonl\n---\n"
    )
    return folder


def test_the_head_of_the_stream_is_validation(dataset):
    source = FineWebStream(dataset=str(dataset), validation_documents=3)
    assert [document["text"] for document in source.documents("validation")] == ["page 0", "page 1", "page 2"]
    train = list(source.documents("train"))
    assert [document["text"] for document in train] == [f"page {row}" for row in range(3, 10)]
    assert (train[0]["language_score"], train[0]["dump"]) == (0.5, None)


def test_the_challenge_holds_out_fifty_thousand():
    assert FineWebStream().validation_documents == VALIDATION_DOCUMENTS == 50_000


def test_a_missing_configuration_is_named(dataset):
    with pytest.raises(CorpusError, match=r"asked for web absent as a stream; found: .*absent"):
        list(FineWebStream(dataset=str(dataset), config="absent").documents("train"))


def publish(root, train=3):
    """Lay a repository out as the challenge's."""
    shards = root / "datasets" / "datasets" / "fineweb10B_sp1024"
    shards.mkdir(parents=True)
    (root / "datasets" / "tokenizers").mkdir()
    (root / "datasets" / "tokenizers" / "x.model").write_bytes(b"model")
    write_shard(shards / "fineweb_val_000000.bin", [1, 5])
    for number in range(train):
        write_shard(shards / f"fineweb_train_{number:06d}.bin", [1, 10 + number])
    manifest = {
        "datasets": [
            {"name": "fineweb10B_sp1024", "tokenizer_name": "sp", "stats": {"files_train": train, "files_val": 1}},
            {"name": "fineweb10B_byte260", "tokenizer_name": "byte", "stats": {"files_train": 1, "files_val": 1}},
        ],
        "tokenizers": [{"name": "sp", "model_path": "tokenizers/x.model"}, {"name": "byte", "path": "b.json"}],
    }
    (root / "datasets" / "manifest.json").write_text(json.dumps(manifest))

    def download(path):
        """Hand out a relative symbolic link, as the Hub's cache does."""
        link = root / "snapshots" / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(root / path, link.parent))
        return link

    return download


def test_published_shards_arrive_with_their_tokenizer(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    model = fetch_challenge(ChallengeShards(train_shards=2), corpus, publish(tmp_path / "hub"))
    assert model.read_bytes() == b"model"
    assert np.concatenate(open_split(corpus, "train")).tolist() == [1, 10, 1, 11]
    assert np.concatenate(open_split(corpus, "validation")).tolist() == [1, 5]
    shutil.rmtree(tmp_path / "hub")  # the corpus must not depend on where it came from
    assert np.concatenate(open_split(corpus, "train")).tolist() == [1, 10, 1, 11]


def test_another_file_system_gets_copies(tmp_path, monkeypatch):
    def cross(original, target):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", cross)
    (tmp_path / "corpus").mkdir()
    fetch_challenge(ChallengeShards(train_shards=1), tmp_path / "corpus", publish(tmp_path / "hub"))
    assert sorted(os.listdir(tmp_path / "corpus")) == ["fineweb_train_000000.bin", "fineweb_val_000000.bin"]
    assert open_split(tmp_path / "corpus", "train")[0].tolist() == [1, 10]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ChallengeShards(train_shards=4), "asked for 4 training shards .* has 3"),
        (ChallengeShards(variant="sp1024"), r"found \[fineweb10B_sp1024, fineweb10B_byte260\]"),
        (ChallengeShards(variant="fineweb10B_byte260", train_shards=1), r"found \['name', 'path'\]"),
    ],
)
def test_what_the_repository_lacks_is_named(tmp_path, source, message):
    with pytest.raises(CorpusError, match=message):
        fetch_challenge(source, tmp_path, publish(tmp_path / "hub"))


def test_a_failed_download_is_a_corpus_error(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def refuse(api, repository, files_metadata):
        assert (repository, files_metadata) == ("a/b", True)
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(CorpusError, match=r"asked for the data set a/b; found: no route"):
        fetch_challenge(ChallengeShards(repository="a/b"), tmp_path)


def test_offline_sources_need_no_data_libraries():
    """Importing the builder imports neither datasets, pyarrow nor the Hub client: they are imported where used."""
    for path in Path(fineweb.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"datasets", "pyarrow", "huggingface_hub"}, path.name
