"""Repositories in memory, as the Hub keeps them: commits of whole trees, branches that point at commits."""

import hashlib
import time
from dataclasses import dataclass, field

# Files of these endings are large files whatever their size, as the Hub's .gitattributes has it.
LARGE = (".safetensors", ".parquet", ".bin", ".model", ".png", ".arrow")
ATTRIBUTES = ".gitattributes"


@dataclass(frozen=True)
class Blob:
    """The content of one file."""

    data: bytes
    lfs: bool

    @property
    def sha256(self):
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self):
        """The id of its git blob: of the content, or of the pointer to it."""
        text = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()

    @property
    def pointer(self):
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.oid

    def entry(self, path):
        """The file in a listing."""
        large = {"oid": self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}
        return {"type": "file", "path": path, "oid": self.oid, "size": len(self.data)} | (
            {"lfs": large} if self.lfs else {}
        )


@dataclass
class Repository:
    """One repository. kind: "models" or "datasets". commits: sha to (path to blob)."""

    kind: str
    name: str
    private: bool = False
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    messages: dict = field(default_factory=dict)

    def commit(self, changes, branch="main", message="by hand"):
        """Make one commit of ``changes``, path to bytes, blob, or None to delete; returns its sha."""
        parent = self.branches.get(branch)
        tree = dict(self.commits.get(parent, {}))
        for path, content in changes.items():
            if content is None:
                tree.pop(path)
            else:
                tree[path] = content if isinstance(content, Blob) else Blob(content, path.endswith(LARGE))
        sha = hashlib.sha1(f"{id(self)} {len(self.commits)} {time.monotonic_ns()}".encode()).hexdigest()
        self.commits[sha], self.branches[branch], self.messages[sha] = tree, sha, message
        return sha

    def resolve(self, revision):
        """The commit that a branch or a sha names; None where there is none."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision="main"):
        """Path to bytes of a revision, the Hub's own file left out."""
        tree = self.commits[self.resolve(revision)]
        return {path: blob.data for path, blob in tree.items() if path != ATTRIBUTES}

    def info(self, sha):
        """What the Hub says of a repository at a commit."""
        siblings = [
            {"rfilename": path, "blobId": blob.oid, "size": len(blob.data)}
            | (
                {"lfs": {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}}
                if blob.lfs
                else {}
            )
            for path, blob in sorted(self.commits[sha].items())
        ]
        return {
            "_id": self.name, "id": self.name, "modelId": self.name, "sha": sha, "private": self.private,
            "disabled": False, "gated": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings,
            "createdAt": "2026-01-01T00:00:00.000Z", "lastModified": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip

    def listing(self, sha, folder="", recursive=False):
        """Entries of a folder; None where there is no such folder."""
        start = f"{folder}/" if folder else ""
        files = {path: blob for path, blob in self.commits[sha].items() if path.startswith(start)}
        if folder and not files:
            return None
        found = {}
        for path, blob in sorted(files.items()):
            inner = path.removeprefix(start).split("/")
            for depth in range(1, len(inner)):
                name = start + "/".join(inner[:depth])
                if recursive or depth == 1:
                    found[name] = {
                        "type": "directory",
                        "path": name,
                        "oid": hashlib.sha1(name.encode()).hexdigest(),
                        "size": 0,
                    }
            if recursive or len(inner) == 1:
                found[path] = blob.entry(path)
        return list(found.values())
