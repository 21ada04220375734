"""FineWeb from the Hub: as a stream of pages, or as the challenge's published token shards.

The stream tokenises any configuration of FineWeb on the fly of a build; its first pages are validation. The shards
are the challenge's own export, the only data on which a score is comparable with the leaderboard: the frozen
selection of documents whose first 50,000 are validation.

Sources: Penedo et al., 2024 (FineWeb); openai/parameter-golf ``data/README.md`` and
``data/cached_challenge_fineweb.py`` for the layout of the published repository.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from modeling_pgolf.errors import CorpusError
from pgolf.corpus.documents import Document, Split, document_from_row, unbroken
from pgolf.corpus.shards import shard_name
from pgolf.corpus.splits import file_sha256

# Documents at the head of the stream that are validation. Source: the challenge's ``NUM_VAL_DOCS``; LEGALITY rule D2.
VALIDATION_DOCUMENTS = 50_000

# Files whose row groups are listed when a stream is opened, which asks the Hub once a file. Our choice: the 10-billion
# sample has 15 files, all of FineWeb tens of thousands.
LISTED_FILES = 200

# Folder of the published export inside its repository, and its table of contents. Source: the challenge's
# ``REMOTE_ROOT_PREFIX`` and ``data/README.md``.
EXPORT = PurePosixPath("datasets")
MANIFEST = "manifest.json"

# Fetches one file of a repository and returns its path on this machine.
Download = Callable[[str], str | Path]


@dataclass(frozen=True)
class FineWebStream:
    """Pages of a FineWeb configuration, streamed: nothing is stored but the tokens.

    dataset: a Hub repository or a local data set folder with a split ``train`` and a column ``text``.
    config: the repository's configuration, None for its default.
    validation_documents: the first documents are validation, all others train. Not the challenge's validation
    documents: those come with ``ChallengeShards``.
    """

    dataset: str = "HuggingFaceFW/fineweb"
    config: str | None = "sample-10BT"
    validation_documents: int = VALIDATION_DOCUMENTS

    @property
    def name(self) -> str:
        """The data set's name in progress bars and messages."""
        return f"{Path(self.dataset).name} {self.config or ''}".strip()

    def documents(self, split: Split) -> Iterator[Document]:
        """Yield the pages of ``split`` in the data set's order.

        Raises CorpusError when the data set or its configuration cannot be opened, or breaks off.
        """
        first = 0 if split == "validation" else self.validation_documents
        for number, row in enumerate(self._rows(split), start=first):
            yield document_from_row(row, where=f"row {number} of {self.name}")

    def _rows(self, split: Split) -> Iterator[dict[str, Any]]:
        with unbroken(self.name):
            stream = self._open()
            if split == "validation":
                yield from stream.take(self.validation_documents)
            else:
                yield from stream.skip(self.validation_documents)

    def stream(self) -> Any:
        """Return all pages, those of validation too, as a ``datasets.IterableDataset``.

        Row groups are its parts where they can be listed, so that going on reads less than one of them again.
        """
        with unbroken(self.name):
            stream = self._open().select_columns(["text"])
            return stream if stream.num_shards > LISTED_FILES else stream.reshard()

    def _open(self) -> Any:
        import datasets

        return datasets.load_dataset(self.dataset, self.config, split="train", streaming=True)


@dataclass(frozen=True)
class ChallengeShards:
    """The challenge's published token shards and their tokenizer.

    repository: a data set repository with the challenge's layout (``kevclark/parameter-golf`` has 4096 and 8192
    pieces).
    variant: the name of the export in the repository's manifest.
    train_shards: how many shards of 100,000,000 tokens to fetch from the head of the training split; the validation
    split always comes whole. Source: the challenge's default of 80.
    """

    repository: str = "willdepueoai/parameter-golf"
    variant: str = "fineweb10B_sp1024"
    train_shards: int = 80

    @property
    def name(self) -> str:
        """The export's name in progress bars and messages."""
        return self.variant


def fetch_challenge(source: ChallengeShards, folder: Path, download: Download | None = None) -> Path:
    """Fetch an export's shards into ``folder``.

    folder: an existing folder; shards get the names they have in the export.
    download: fetches one repository path; None asks the Hub, whose cache makes a second attempt cheap.
    Returns the path of the export's SentencePiece model, as downloaded.
    Raises CorpusError when the export, a shard or the tokenizer is missing.
    """
    download = download or _hub(source.repository)
    manifest = _read_manifest(Path(download(str(EXPORT / MANIFEST))), source.repository)
    entry = _named(manifest, "datasets", source.variant, source.repository)
    held = {split: _count(entry, f"files_{label}", source) for split, label in (("train", "train"), ("val", "val"))}
    if not 1 <= source.train_shards <= held["train"]:
        raise CorpusError(
            f"asked for {source.train_shards} training shards of {source.variant}; {source.repository} has "
            f"{held['train']}; choose 1 to {held['train']}"
        )
    tokenizer = _named(manifest, "tokenizers", str(entry.get("tokenizer_name")), source.repository)
    if "model_path" not in tokenizer:
        raise CorpusError(
            f"asked for the SentencePiece model of {source.variant}; found {sorted(tokenizer)} in the manifest; "
            "choose a variant fineweb10B_sp..."
        )
    names = [shard_name("validation", number) for number in range(held["val"])]
    names += [shard_name("train", number) for number in range(source.train_shards)]
    for name in tqdm(names, desc=source.name, unit="shard", disable=None):
        _place(Path(download(str(EXPORT / "datasets" / source.variant / name))), folder / name)
    return Path(download(str(EXPORT / str(tokenizer["model_path"]))))


def _hub(repository: str) -> Download:
    """Make the function that fetches files of a data set repository, all of the commit that is its newest now."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _asking(f"the data set {repository}"):
        info = api.dataset_info(repository, files_metadata=True)
    listed = {file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs is not None}

    def download(path: str) -> str:
        with _asking(f"{path} of the data set {repository}"):
            fetched = api.hf_hub_download(repository, path, repo_type="dataset", revision=info.sha)
        # The client compares sizes alone, and keeps what it got.
        if path in listed and file_sha256(Path(fetched)) != listed[path]:
            Path(fetched).resolve().unlink()
            raise CorpusError(
                f"asked for {path} of the data set {repository}; found a file of another hash than the Hub lists, and "
                "removed it; build the corpus again"
            )
        return fetched

    return download


@contextmanager
def _asking(asked: str) -> Iterator[None]:
    """Turn what the Hub's client raises into CorpusError."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # root of its HTTP library's errors

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        raise CorpusError(f"asked for {asked}; found: {error}; check the names and the connection") from error


def _read_manifest(path: Path, repository: str) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorpusError(f"asked for the manifest of {repository}; found {error}; fetch it again") from error
    if not isinstance(manifest, dict):
        raise CorpusError(f"asked for the manifest of {repository}; found no JSON object; name another repository")
    return manifest


def _named(manifest: dict[str, Any], section: str, name: str, repository: str) -> dict[str, Any]:
    """Find the entry of that name in a section of the manifest."""
    entries: list[dict[str, Any]] = manifest.get(section, [])
    for entry in entries:
        if entry.get("name") == name:
            return entry
    listed = ", ".join(str(entry.get("name")) for entry in entries)
    raise CorpusError(f"asked for {name} among the {section} of {repository}; found [{listed}]; choose one of them")


def _count(entry: dict[str, Any], key: str, source: ChallengeShards) -> int:
    count = entry.get("stats", {}).get(key)
    if not isinstance(count, int) or count < 1:
        raise CorpusError(
            f"asked how many shards {source.variant} has; found {key} = {count!r} in the manifest of "
            f"{source.repository}; name another repository or variant"
        )
    return count


def _place(downloaded: Path, target: Path) -> None:
    """Put a downloaded file into the corpus without a second copy where the file system allows it."""
    original = downloaded.resolve(strict=True)  # the Hub's cache hands out symbolic links
    try:
        os.link(original, target)
    except OSError:  # another file system: 200 MB more on disk, nothing lost
        temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        shutil.copyfile(original, temporary)
        os.replace(temporary, target)
