"""Data from the Hub through the real clients: pages as a stream, published shards as files, and what may go wrong.

The checks run in one process of their own, this file as a script: the clients read where the Hub is when they are
imported. Their pauses between attempts are left out.
"""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOREVER = 10**6
PAGES, PART = 60, 20
CARD = b"""---
configs:
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*.parquet
---
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each check in the process came to: its name to True, or to what was wrong."""
    folder = tmp_path_factory.mktemp("streams")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    run = subprocess.run(
        [sys.executable, __file__, str(folder)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "told.json").read_text())


CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def page(number):
    return f"page {number} " + f"{number * 7919 % 10007} " * 400


def parquet(first):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = range(first, first + PART)
    table = pa.table({"text": [page(row) for row in rows], "id": [str(row) for row in rows]})
    written = io.BytesIO()
    pq.write_table(table, written, row_group_size=5, compression="none")
    return written.getvalue()


def publish_pages(hub):
    files = {f"sample/10BT/{number:03d}.parquet": parquet(number * PART) for number in range(PAGES // PART)}
    return hub.create("user/fineweb", {"README.md": CARD, **files}, kind="datasets")


def source():
    from pgolf.corpus.fineweb import FineWebStream

    return FineWebStream("user/fineweb", validation_documents=3)


def texts(split):
    return [document["text"] for document in source().documents(split)]


def refusal(action):
    """What the CorpusError of an action says."""
    from modeling_pgolf.errors import CorpusError

    try:
        action()
    except CorpusError as error:
        return str(error)
    return "no CorpusError"


@check
def pages_come_in_order_and_once(hub, folder):
    publish_pages(hub)
    assert texts("validation") == [page(n) for n in range(3)]
    assert texts("train") == [page(n) for n in range(3, PAGES)]


@check
def a_stream_for_training_is_all_pages(hub, folder):
    publish_pages(hub)
    hub.fail("GET", r"resolve/.*/001\.parquet", drop=3000, times=2)
    assert [row["text"] for row in source().stream()] == [page(n) for n in range(PAGES)]


@check
def passing_troubles_lose_and_repeat_nothing(hub, folder):
    publish_pages(hub)
    for fault in ({"drop": 3000}, {"status": 503}, {"drop": 0}):
        hub.fail("GET", r"resolve/.*/001\.parquet", times=2, **fault)
    assert texts("train") == [page(n) for n in range(3, PAGES)]
    assert all(fault.times == 0 for fault in hub.faults)


@check
def a_revision_that_moves_in_mid_stream_is_not_mixed_in(hub, folder):
    repository = publish_pages(hub)
    other = {f"sample/10BT/{n:03d}.parquet": parquet(900) for n in range(3)}
    hub.fail("GET", r"resolve/.*/001\.parquet", first=lambda: repository.commit(other))
    assert texts("train") == [page(n) for n in range(3, PAGES)]
    assert texts("train")[-1] == page(900 + PART - 1), "opened again, it is the new revision"


def broken_by(hub, **fault):
    """Read until the stream breaks; returns how many pages came and what was said."""
    publish_pages(hub)
    hub.fail("GET", r"resolve/.*/002\.parquet", times=FOREVER, **fault)
    came = []

    def read():
        for document in source().documents("train"):
            came.append(document["text"])

    said = refusal(read)
    assert came == [page(n) for n in range(3, 3 + len(came))], "what came before the break is right"
    return said


@check
def a_stream_that_vanishes_is_a_corpus_error(hub, folder):
    for fault in ({"drop": 2000}, {"status": 500}, {"status": 404}, {"first": hub.repositories.clear}):
        said = broken_by(hub, **fault)
        assert said.startswith("asked for fineweb sample-10BT as a stream; found: "), (fault, said)
        hub.faults.clear()


@check
def wrong_bytes_are_a_corpus_error(hub, folder):
    assert "asked for fineweb" in broken_by(hub, corrupt=True)


@check
def what_cannot_be_opened_is_a_corpus_error(hub, folder):
    assert "user/fineweb" in refusal(lambda: texts("train"))
    publish_pages(hub).private = True
    assert "user/fineweb" in refusal(lambda: texts("train"))
    publish_pages(hub)
    hub.fail("GET", "/api/datasets/user/fineweb", times=FOREVER, drop=10)
    assert "asked for fineweb" in refusal(lambda: texts("train"))


def publish_shards(hub, first=10):
    """Three training shards whose only page is ``first``, ``first + 1``, …, and one of validation."""
    from pgolf.corpus.shards import write_shard

    root = Path(f"shards{time.monotonic_ns()}")
    root.mkdir()
    manifest = {
        "datasets": [
            {"name": "fineweb10B_sp1024", "tokenizer_name": "sp", "stats": {"files_train": 3, "files_val": 1}}
        ],
        "tokenizers": [{"name": "sp", "model_path": "tokenizers/x.model"}],
    }
    files = {"datasets/manifest.json": json.dumps(manifest).encode(), "datasets/tokenizers/x.model": b"model"}
    shards = {"val_000000": [1, first - 1], **{f"train_{n:06d}": [1, first + n] for n in range(3)}}
    for name, tokens in shards.items():
        write_shard(root / f"fineweb_{name}.bin", tokens)
        path = f"datasets/datasets/fineweb10B_sp1024/fineweb_{name}.bin"
        files[path] = (root / f"fineweb_{name}.bin").read_bytes()
    found = hub.repositories.get(("datasets", "user/golf"))
    if found is not None:
        found.commit(files)
        return found
    return hub.create("user/golf", files, kind="datasets")


def fetched(folder):
    """Fetch the shards; returns the last token of each, and the tokenizer's bytes."""
    from pgolf.corpus.fineweb import ChallengeShards, fetch_challenge

    place = folder / f"corpus{time.monotonic_ns()}"
    place.mkdir()
    model = fetch_challenge(ChallengeShards("user/golf", train_shards=3), place)
    names = sorted(place.iterdir())
    return [int.from_bytes(name.read_bytes()[-2:], "little") for name in names], Path(model).read_bytes()


@check
def shards_arrive_with_their_tokenizer(hub, folder):
    publish_shards(hub)
    hub.fail("GET", r"train_000001\.bin", drop=7, times=2)
    hub.fail("GET", r"train_000002\.bin", drop=0)
    assert fetched(folder) == ([10, 11, 12, 9], b"model")
    assert all(fault.times == 0 for fault in hub.faults)


@check
def shards_are_all_of_one_revision(hub, folder):
    publish_shards(hub, first=20)
    hub.fail("HEAD", r"train_000001\.bin", first=lambda: publish_shards(hub, first=50))
    assert fetched(folder)[0] == [20, 21, 22, 19]
    assert fetched(folder)[0] == [50, 51, 52, 49]


@check
def a_shard_with_wrong_bytes_is_not_kept(hub, folder):
    publish_shards(hub, first=30)
    hub.fail("GET", r"train_000002\.bin", corrupt=True)
    assert "a file of another hash than the Hub lists, and removed it" in refusal(lambda: fetched(folder))
    assert fetched(folder)[0] == [30, 31, 32, 29]


@check
def shards_that_cannot_be_had_are_a_corpus_error(hub, folder):
    assert "asked for the data set user/golf" in refusal(lambda: fetched(folder))
    publish_shards(hub, first=40)
    hub.fail("GET", r"train_000001\.bin", drop=0, times=FOREVER)
    assert "fineweb_train_000001.bin of the data set user/golf" in refusal(lambda: fetched(folder))
    hub.faults.clear()
    publish_shards(hub, first=60)
    hub.fail("HEAD", r"val_000000\.bin", status=500, times=FOREVER)
    assert "val_000000.bin of the data set" in refusal(lambda: fetched(folder))


@pytest.mark.parametrize("name", [function.__name__ for function in CHECKS])
def test_data(name, told):
    assert told[name] is True, told[name]


def run_checks(folder):
    """Run every check on an empty Hub."""
    import traceback

    from loopback import LoopbackHub

    told = {}
    with LoopbackHub() as hub:
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
        time.sleep = lambda seconds: None
        for function in CHECKS:
            hub.repositories.clear()
            hub.faults.clear()
            try:
                function(hub, folder)
                told[function.__name__] = True
            except Exception:
                told[function.__name__] = traceback.format_exc()
    return told


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    home = Path(sys.argv[1])
    (home / "told.json").write_text(json.dumps(run_checks(home)))
