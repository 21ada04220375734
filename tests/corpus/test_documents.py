"""Documents and the offline sources: identity, columns, the built-in prose and local folders."""

import gzip
import json
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.documents import COLUMNS, document_from_row, document_hash
from pgolf.corpus.embedded import EmbeddedProse, harvest, split_of
from pgolf.corpus.local import LocalFolder, read_parts, split_parts


def test_identity_is_the_sha256_of_the_utf8_text():
    assert document_hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert document_hash("é") == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"


def test_identity_refuses_what_utf8_cannot_hold():
    with pytest.raises(CorpusError, match="surrogate at character 3"):
        document_hash("abc\ud800")


def test_a_row_becomes_a_document_with_all_columns():
    document = document_from_row({"text": "t", "id": 7, "token_count": 3.0, "license": "x"}, where="row 0")
    assert tuple(document) == COLUMNS
    assert (document["id"], document["token_count"], document["url"]) == ("7", 3, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"content": "t"}, r"'text' in row 5; found \['content'\]"),
        ({"text": None}, "string in the column 'text' in row 5; found NoneType"),
        ({"text": "t", "language_score": "high"}, "'language_score' .* row 5; found 'high'"),
    ],
)
def test_a_row_that_does_not_fit_is_named(row, message):
    with pytest.raises(CorpusError, match=message):
        document_from_row(row, where="row 5")


PROSE = "Say in a few plain words what the thing is for, and then say it again more slowly for everybody."


def test_harvest_takes_prose_and_leaves_the_rest(tmp_path):
    (tmp_path / "one.py").write_text(
        f'"""Module. {PROSE}"""\ndef f():\n    """Function doc."""\n# first line\n# second line\n# third line\nx = 1\n'
    )
    (tmp_path / "copy_of_one.py").write_text((tmp_path / "one.py").read_text())
    (tmp_path / "short.py").write_text('"""Short."""\n')
    (tmp_path / "broken.py").write_text(f'"""{PROSE}"""\nprint "old"\n')
    (tmp_path / "latin.py").write_bytes(f'"""{PROSE} \xe9"""'.encode("latin-1"))
    (tmp_path / "notes.txt").write_text(PROSE)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_one.py").write_text(f'"""Test. {PROSE}"""\n')
    found = [entry for entry in harvest(tmp_path) if not entry[1].startswith("pydoc_data")]
    assert sorted(path for _, path, _ in found) == ["copy_of_one.py", "notes.txt"]
    text = next(text for _, path, text in found if path == "copy_of_one.py")
    assert text == f"Module. {PROSE}\n\nFunction doc.\n\nfirst line\nsecond line\nthird line"


def test_embedded_prose_is_megabytes_of_disjoint_sorted_documents():
    source = EmbeddedProse()
    hashes = {}
    for split in ("train", "validation"):
        hashes[split] = [document_hash(document["text"]) for document in source.documents(split)]
        assert hashes[split] == sorted(set(hashes[split]))
        assert {split_of(identity) for identity in hashes[split]} == {split}
    assert set(hashes["train"]).isdisjoint(hashes["validation"])
    size = sum(len(text.encode()) for _, _, text in harvest(Path(sysconfig.get_path("stdlib"))))
    assert size > 2_000_000
    assert 0.02 < len(hashes["validation"]) / (len(hashes["train"]) + len(hashes["validation"])) < 0.12


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(folder, split):
    return [document["text"] for document in LocalFolder(str(folder)).documents(split)]


def test_local_files_are_read_in_the_order_of_their_names(tmp_path):
    parquet.write_table(pa.table({"text": ["p0", "p1"], "language_score": [0.5, None]}), tmp_path / "train-1.parquet")
    write_lines(tmp_path / "train-0.jsonl", [{"text": "j\u2028still one line", "id": "a"}])
    with gzip.open(tmp_path / "train-2.jsonl.gz", "wt") as file:
        file.write('{"text": "z"}\n\n{"text": "zz"}')
    write_lines(tmp_path / "validation.jsonl", [{"text": "v"}])
    write_lines(tmp_path / "other.jsonl", [{"text": "o"}])
    assert texts(tmp_path, "train") == ["j\u2028still one line", "p0", "p1", "z", "zz"]
    assert texts(tmp_path, "validation") == ["v"]
    scores = [document["language_score"] for document in LocalFolder(str(tmp_path)).documents("train")]
    assert scores == [None, 0.5, None, None, None]


def test_local_errors_name_what_is_missing(tmp_path):
    with pytest.raises(CorpusError, match="no such folder"):
        texts(tmp_path / "absent", "train")
    write_lines(tmp_path / "train.jsonl", [{"text": "t"}])
    with pytest.raises(CorpusError, match=r"the validation split .* among \[train.jsonl\]"):
        texts(tmp_path, "validation")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2 of train.jsonl"),
        (b'{"text": "a"}\n\n["b"]\n', "line 3 of train.jsonl; found list"),
        (b'{"text": 5}\n', "line 1 of train.jsonl; found int"),
        (b'{"title": "a"}\n', r"'text' in line 1 of train.jsonl; found \['title'\]"),
        (b'{"text": "\xff"}\n', "line 1 of train.jsonl; found 'utf-8' codec"),
    ],
)
def test_a_broken_line_is_named(tmp_path, content, message):
    (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        texts(tmp_path, "train")


def test_a_cut_gzip_file_is_refused(tmp_path):
    packed = gzip.compress(b'{"text": "a"}\n' * 100)
    (tmp_path / "train.jsonl.gz").write_bytes(packed[:-12])
    with pytest.raises(CorpusError, match="unreadable after line"):
        texts(tmp_path, "train")


def test_a_broken_parquet_file_is_named(tmp_path):
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table({"title": ["a"]}), path)
    with pytest.raises(CorpusError, match=r"'text' in train.parquet; found \['title'\]"):
        texts(tmp_path, "train")
    parquet.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(CorpusError, match=r"row 1 of train.parquet; found NoneType"):
        texts(tmp_path, "train")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorpusError, match=r"train.parquet; found it unreadable"):
        texts(tmp_path, "train")


def test_row_groups_are_parts_and_rows_are_counted_over_them(tmp_path):
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.table({"text": [*"abcde", None]}), path, row_group_size=2)
    write_lines(tmp_path / "train.jsonl", [{"text": "j"}])
    parts = split_parts(tmp_path, "train")
    assert [(Path(name).name, group) for name, group in parts] == [
        ("train.jsonl", None),
        *[(path.name, g) for g in range(3)],
    ]
    assert [document["text"] for document in read_parts(parts[2:3])] == ["c", "d"]
    with pytest.raises(CorpusError, match=r"row 5 of train.parquet; found NoneType"):
        list(read_parts(parts))
    assert LocalFolder(str(tmp_path)).stream().num_shards == 4


def test_a_file_without_rows_still_needs_its_column(tmp_path):
    parquet.write_table(pa.table({"title": pa.array([], pa.string())}), tmp_path / "train.parquet")
    with pytest.raises(CorpusError, match=r"'text' in train.parquet; found \['title'\]"):
        texts(tmp_path, "train")
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "train.parquet")
    assert texts(tmp_path, "train") == []
