"""Records go up and come down whole or not at all, whatever happens on the way."""

import json

import pytest
from endpoints import TOKEN
from huggingface_hub import HfApi

from modeling_pgolf.errors import FormatError, HubError, RecipeError
from pgolf.corpus.splits import file_sha256
from pgolf.hub import Terms, pull, push
from pgolf.publication import judge_record

FOREVER = 10**6
REPLACED = {"README.md", "manifest.json"}


@pytest.fixture
def judgement(finished_run):
    return judge_record(finished_run.record, "strict")


@pytest.fixture
def published(finished_run, judgement, api):
    return push(finished_run.record, "user/tiny", judgement, Terms(), api)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_record_goes_up_in_one_commit_and_comes_down_equal(finished_run, judgement, hub, api, tmp_path):
    done = push(finished_run.record, "tiny", judgement, Terms(private=True), api)
    repository = hub.repositories["models", "user/tiny"]
    assert repository.private and len(repository.commits) == 2, "the Hub's own first commit, and ours"
    assert (done.repository, done.commit) == ("user/tiny", repository.branches["main"])
    up, local = repository.files(), contents(finished_run.record)
    assert set(up) == {*local, "audit.json"}
    assert {name for name in local if up[name] != local[name]} == REPLACED
    assert pull("user/tiny", tmp_path / "down", api) == done
    assert contents(tmp_path / "down") == up


def test_publishing_again_changes_nothing(finished_run, judgement, published, hub, api):
    assert push(finished_run.record, "user/tiny", judgement, Terms(), api) == published
    assert len(hub.repositories["models", "user/tiny"].commits) == 2


def test_a_newer_record_replaces_the_older_whole(finished_run, historical_run, judgement, published, hub, api):
    repository = hub.repositories["models", "user/tiny"]
    with_more = push_extra_file(repository)
    push(finished_run.record, "user/tiny", judgement, Terms(), api)
    assert "old.txt" in repository.files(with_more) and "old.txt" not in repository.files()
    terms = Terms(even_though_it_fails=True)
    done = push(historical_run.record, "user/tiny", judge_record(historical_run.record, "strict"), terms, api)
    assert repository.files()["recipe.json"] == (historical_run.record / "recipe.json").read_bytes()
    assert repository.files(done.commit) == repository.files() != repository.files(published.commit)


def push_extra_file(repository):
    """As if an older record had had one more file."""
    manifest = json.loads(repository.files()["manifest.json"])
    manifest["outputs"]["old.txt"] = "0" * 64
    return repository.commit({"old.txt": b"old", "manifest.json": json.dumps(manifest).encode()})


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("PUT", "MODEL", {"status": 503}),
        ("PUT", "MODEL", {"drop": 1000}),
        ("POST", "objects/batch", {"status": 500}),
        ("POST", "preupload", {"drop": 0}),
        ("POST", "/commit/", {"status": 502}),
        ("POST", "/commit/", {"drop": 5000}),
        ("POST", "repos/create", {"status": 500}),
        ("GET", "api/models/user/tiny", {"drop": 10}),
    ],
)
def test_an_upload_that_breaks_off_leaves_nothing_in_sight(
    method, path, fault, finished_run, judgement, hub, api, hasty
):
    hub.fail(
        method, path.replace("MODEL", file_sha256(finished_run.record / "model.safetensors")), times=FOREVER, **fault
    )
    with pytest.raises(HubError, match=r"asked to publish record as user/tiny; found: .*push again"):
        push(finished_run.record, "user/tiny", judgement, Terms(), api)
    repository = hub.repositories.get(("models", "user/tiny"))
    assert repository is None or repository.files() == {}
    hub.faults.clear()
    push(finished_run.record, "user/tiny", judgement, Terms(), api)
    assert set(hub.repositories["models", "user/tiny"].files()) == {*contents(finished_run.record), "audit.json"}


def test_passing_troubles_of_an_upload_are_the_clients_business(finished_run, judgement, hub, api, hasty):
    hub.fail("PUT", "/large/", status=503, times=2)
    hub.fail("PUT", "/large/", drop=1000, times=2)
    hub.fail("POST", "preupload", status=500)
    push(finished_run.record, "user/tiny", judgement, Terms(), api)
    assert all(fault.times == 0 for fault in hub.faults), "every fault happened"
    assert set(hub.repositories["models", "user/tiny"].files()) == {*contents(finished_run.record), "audit.json"}


def test_a_commit_whose_answer_is_lost_is_found_again(finished_run, judgement, hub, api):
    hub.fail("POST", "/commit/", lost=True)
    with pytest.raises(HubError, match="whole or not at all; push again"):
        push(finished_run.record, "user/tiny", judgement, Terms(), api)
    repository = hub.repositories["models", "user/tiny"]
    kept = repository.branches["main"]
    assert push(finished_run.record, "user/tiny", judgement, Terms(), api).commit == kept
    assert len(repository.commits) == 2


def test_somebody_elses_commit_in_between_is_not_overwritten(finished_run, judgement, published, hub, api):
    repository = hub.repositories["models", "user/tiny"]
    changed = repository.commit({"README.md": b"edited by hand"})
    hub.fail("POST", "/commit/", first=lambda: repository.commit({"README.md": b"edited again"}))
    with pytest.raises(HubError, match="changed the repository meanwhile; nothing was published"):
        push(finished_run.record, "user/tiny", judgement, Terms(), api)
    assert repository.files()["README.md"] == b"edited again" and repository.files(changed) != repository.files()
    push(finished_run.record, "user/tiny", judgement, Terms(), api)
    assert repository.files() == repository.files(published.commit)


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        (False, "user/tiny", "log in with hf auth login"),
        ("hf_of_another_hub", "user/tiny", "log in with hf auth login"),
        (TOKEN, "somebody/tiny", "this token may not write there"),
        (TOKEN, "a/b/c", "a/b/c"),
    ],
)
def test_who_may_not_write_is_told(token, name, message, finished_run, judgement, hub, api):
    with pytest.raises(HubError, match=message):
        push(finished_run.record, name, judgement, Terms(), HfApi(hub.url, token))
    assert not hub.repositories


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": b"{}"},
        {"manifest.json": b'{"stage": "training", "outputs": {}}'},
        {"manifest.json": b"no JSON"},
        {"manifest.json": b'{"stage": "record", "outputs": {}}', "pytorch_model.bin": b"!"},
    ],
)
def test_a_repository_with_something_else_is_left_alone(files, finished_run, judgement, hub, api):
    repository = hub.create("user/tiny", files)
    before = dict(repository.branches)
    with pytest.raises(HubError, match=r"found a repository that holds .*no record of ours"):
        push(finished_run.record, "user/tiny", judgement, Terms(), api)
    assert repository.branches == before


def test_private_means_private(finished_run, judgement, published, hub, api):
    with pytest.raises(HubError, match="found a public repository"):
        push(finished_run.record, "user/tiny", judgement, Terms(private=True), api)


@pytest.mark.parametrize(
    "fault", [{"status": 503}, {"drop": 0}, {"corrupt": True}], ids=["unavailable", "dropped", "wrong bytes"]
)
def test_a_download_that_fails_leaves_nothing(fault, published, hub, api, hasty, tmp_path):
    hub.fail("GET", "resolve/.*/model.safetensors", times=FOREVER, **fault)
    with pytest.raises(HubError, match=r"model\.safetensors|fetch again"):
        pull("user/tiny", tmp_path / "down", api)
    assert not list(tmp_path.iterdir())


def test_a_dropped_download_goes_on_where_it_was(published, hub, api, hasty, tmp_path):
    hub.fail("GET", "resolve/.*/model.safetensors", drop=1000, times=3)
    pull("user/tiny", tmp_path / "down", api)
    assert sum("model.safetensors" in asked for asked in hub.requests if asked.startswith("GET")) == 4


@pytest.mark.parametrize("moment", [("GET", "/tree/"), ("HEAD", r"resolve/.*/attention\.py")], ids=["listing", "files"])
def test_a_revision_that_moves_meanwhile_is_not_mixed_in(moment, published, hub, api, tmp_path):
    repository = hub.repositories["models", "user/tiny"]
    hub.fail(*moment, first=lambda: repository.commit({"attention.py": b"# another\n"}))
    assert pull("user/tiny", tmp_path / "down", api).commit == published.commit
    assert contents(tmp_path / "down") == repository.files(published.commit) != repository.files()


def test_a_revision_can_be_asked_for(published, hub, api, tmp_path):
    hub.repositories["models", "user/tiny"].commit({"attention.py": b"# another\n"})
    with pytest.raises(FormatError, match=r"files: attention\.py is another file"):
        pull("user/tiny", tmp_path / "newest", api)
    assert pull(f"user/tiny@{published.commit}", tmp_path / "older", api) == published


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("user/absent", "no such repository"),
        ("user/tiny@absent", "no such revision"),
        ("user/secret", "no such repository, or it is private"),
    ],
)
def test_what_is_not_to_be_had_is_named(name, message, published, hub, tmp_path):
    hub.create("user/secret", {"manifest.json": b"{}"}, private=True)
    with pytest.raises(HubError, match=message):
        pull(name, tmp_path / "down", HfApi(hub.url, False))
    assert not list(tmp_path.iterdir())


def test_a_repository_without_a_record_is_refused(hub, api, tmp_path):
    hub.create("user/other", {"config.json": b"{}"})
    with pytest.raises(FormatError, match="holds none"):
        pull("user/other", tmp_path / "down", api)
    (tmp_path / "there").mkdir()
    with pytest.raises(RecipeError, match="--out"):
        pull("user/other", tmp_path / "there", api)


def test_a_damaged_record_does_not_go_up(own_record, judgement, hub, api):
    (own_record / "gates.py").write_text("# other code\n")
    with pytest.raises(FormatError, match=r"files: gates\.py is another file"):
        push(own_record, "user/tiny", judgement, Terms(even_though_it_fails=True), api)
    assert not hub.requests
