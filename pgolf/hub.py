"""The Hub: a record goes up in one commit and comes down at one commit, whole or not at all.

Transfers, retries, credentials and the address of the Hub (HF_ENDPOINT) are huggingface_hub's business. Records go up
by ``create_commit``: newer clients split ``upload_folder`` into several commits, and an interruption between two of
them would leave half a record in sight.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HTTPError,  # the root of its HTTP library's errors: httpx in 1.x, httpx2 in 2.x
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from modeling_pgolf.errors import FormatError, HubError, PGolfError, RecipeError

from .corpus.splits import file_sha256
from .integrity import check_record
from .publication import Judgement, check_publishable, published_files
from .workdir import MANIFEST, building

# The Hub's own file in every repository.
ATTRIBUTES = ".gitattributes"
# A record is some tens of megabytes; nothing near this is one.
LARGEST_BYTES = 10**9


@dataclass(frozen=True)
class Published:
    """Where a record is on the Hub: repository and commit."""

    repository: str
    commit: str


@dataclass(frozen=True)
class Terms:
    """How a record is published. ranked: claimed to be rankable. even_though_it_fails: despite a failed audit."""

    private: bool = False
    ranked: bool = False
    even_though_it_fails: bool = False


def push(record: Path, repository: str, judgement: Judgement, terms: Terms, api: HfApi) -> Published:
    """Publish a record in one commit; again with the same record changes nothing.

    repository: USER/NAME, or NAME for the token's own user. judgement: of this record.
    Raises LegalityError where the audit or the terms forbid it, FormatError where the record is damaged, HubError where
    the repository holds something else, or the Hub refuses or breaks off; nothing is in sight then.
    """
    check_publishable(record, judgement, ranked=terms.ranked, even_though_it_fails=terms.even_though_it_fails)
    with asking(f"to publish {record.name} as {repository}", "it is published whole or not at all; push again"):
        # None leaves a new repository to the default of its owner, which may be private.
        name = api.create_repo(repository, private=True if terms.private else None, exist_ok=True).repo_id
        head = api.model_info(name)
        if terms.private and not head.private:
            raise HubError(f"asked to publish {name} in private; found a public repository of that name; name another")
        earlier = earlier_files(name, str(head.sha), [sibling.rfilename for sibling in head.siblings or ()], api)
        files = published_files(record, name, judgement, terms.ranked)
        add = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        delete = [CommitOperationDelete(path) for path in sorted(earlier - files.keys())]
        # The parent makes the Hub refuse where somebody else committed since we looked.
        done = api.create_commit(
            name, [*add, *delete], commit_message=f"Publish {record.name}", parent_commit=str(head.sha)
        )
    return Published(name, done.oid)


def earlier_files(name: str, commit: str, listed: list[str], api: HfApi) -> set[str]:
    """Return the files of the record that a repository holds; raises HubError where it holds anything else."""
    found = set(listed) - {ATTRIBUTES}
    ours: set[str] = set()
    if MANIFEST in found:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(api.hf_hub_download(name, MANIFEST, revision=commit, local_dir=folder))
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
                ours = {*manifest["outputs"], MANIFEST} if manifest["stage"] == "record" else set()
            except (ValueError, KeyError, TypeError):
                ours = set()  # a manifest of something else
    if found - ours:
        foreign = ", ".join(sorted(found - ours)[:4])
        raise HubError(
            f"asked to publish a record as {name}; found a repository that holds {foreign}, which no record of ours "
            "put there; name another repository, or remove what it holds"
        )
    return found


def pull(name: str, folder: Path, api: HfApi) -> Published:
    """Fetch a record, NAME or NAME@REVISION, into a new folder.

    The revision is resolved to a commit first, and every file is compared with the Hub's hash and the record's.
    Raises RecipeError where the folder exists, HubError where the Hub refuses or breaks off, or a file arrives damaged,
    FormatError where the repository is no sound record; the folder does not appear then.
    """
    repository, _, revision = name.partition("@")
    if folder.exists():
        raise RecipeError(f"asked to fetch {name} into {folder}, which exists; name another folder with --out")
    with asking(f"for the record {name}", "nothing was kept; fetch again"):
        commit = str(api.model_info(repository, revision=revision or None).sha)
        entries = api.list_repo_tree(repository, recursive=True, revision=commit)
        files = [entry for entry in entries if isinstance(entry, RepoFile) and entry.path != ATTRIBUTES]
        if sum(file.size for file in files) > LARGEST_BYTES or MANIFEST not in {file.path for file in files}:
            raise FormatError(f"asked for the record {name}; found a repository that holds none; check the name")
        with building(folder) as scratch:
            api.snapshot_download(repository, revision=commit, local_dir=scratch, ignore_patterns=[ATTRIBUTES])
            shutil.rmtree(scratch / ".cache", ignore_errors=True)  # the client's notes on the transfer
            for file in files:
                check_arrival(scratch / file.path, file)
            check_record(scratch)
    return Published(repository, commit)


def check_arrival(path: Path, file: RepoFile) -> None:
    """Raise HubError unless a file has the hash that the Hub lists: the client compares sizes alone."""
    found = file_sha256(path) if file.lfs else git_hash(path.read_bytes())
    listed = file.lfs.sha256 if file.lfs else file.blob_id
    if found != listed:
        raise HubError(
            f"asked for {file.path}; found a file of hash {found[:12]}, the Hub lists {listed[:12]}; fetch again"
        )


@contextmanager
def asking(asked: str, outcome: str) -> Iterator[None]:
    """Turn what the client raises into a HubError that says what was asked, what was found and how things stand."""
    try:
        yield
    except PGolfError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # The client wraps what broke an upload off.
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        raise HubError(f"asked {asked}; found: {_first_lines(cause)}; {_advice(cause) or outcome}") from error


def _first_lines(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _advice(error: BaseException) -> str:
    """Say what to do about an error that trying again does not mend; empty for others."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision; check what stands behind the @"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "there is no such repository, or it is private; check the name, log in with hf auth login or set HF_TOKEN"
        )
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "nothing was done; log in with hf auth login, or set HF_TOKEN"
    if status == 403:
        return "nothing was done; this token may not write there"
    if status == 412:
        return "somebody else changed the repository meanwhile; nothing was published; push again"
    return ""
