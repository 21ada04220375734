"""The endpoints of the Hub on this machine: what each request is answered, and who may ask.

Source: the requests that huggingface_hub 1.33 and 2.4 and datasets 5.2 make, and what they read of the answers.
"""

import base64
import hashlib
import json
import re
import socket
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from store import LARGE, Blob

USER, TOKEN = "user", "hf_of_the_loopback_hub"
MISSING = "Repository not found"


class Refusal(Exception):
    """An answer that is an error. code: the Hub's name for it."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One connection to ``hub``, a LoopbackHub; each request goes to the first route that matches it."""

    protocol_version = "HTTP/1.1"

    def handle_request(self):
        """Answer a request: a fault, a route's answer, or its refusal."""
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        self.hub.requests.append(f"{self.command} {self.route}")
        self.fault = self.hub.fault_for(self.command, self.path)
        if self.fault and self.fault.first:
            self.fault.first()
        try:
            body = self.read_body()
            if body is None:
                return
            if self.fault and self.fault.status:
                raise Refusal(self.fault.status, "a fault that was asked for")
            with self.hub.lock:
                self.dispatch(body)
        except Refusal as refusal:
            self.send_json(
                {"error": str(refusal)},
                refusal.status,
                {"X-Error-Code": refusal.code} if refusal.code else {} | {"X-Error-Message": str(refusal)},
            )

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def read_body(self):
        """The request's body; None where the fault is that the connection ends in it."""
        length = int(self.headers.get("Content-Length") or 0)
        if self.fault and self.fault.drop is not None and self.command in ("POST", "PUT"):
            self.rfile.read(min(self.fault.drop, length))
            return self.hang_up()
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(length)

    def dispatch(self, body):
        for method, pattern, name in ROUTES:
            match = method == self.command.replace("HEAD", "GET") and re.fullmatch(pattern, self.route)
            if match:
                getattr(self, name)(body, **match.groupdict())
                return
        raise Refusal(404, f"this Hub has no {self.command} {self.route}")

    def user(self):
        """Who asks, None without a token; a wrong one is refused."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given != TOKEN:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return USER if given else None

    def repository(self, kind, name, write=False):
        """The repository, where this user may see it, and write to it."""
        user, found = self.user(), self.hub.repositories.get((kind, name))
        if found is None or (found.private and user is None):
            raise Refusal(404 if user else 401, MISSING, "RepoNotFound")
        if write and user is None:
            raise Refusal(401, "Invalid username or password.")
        if write and not name.startswith(f"{user}/"):
            raise Refusal(403, "You don't have the rights to write here")
        return found

    def commit_of(self, repository, revision):
        sha = repository.resolve(revision)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def whoami(self, body):
        if self.user() is None:
            raise Refusal(401, "Invalid username or password.")
        self.send_json({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

    def create(self, body):
        asked = json.loads(body)
        if self.user() is None:
            raise Refusal(401, "Invalid username or password.")
        owner = asked.get("organization") or USER
        if owner != USER:
            raise Refusal(403, f"You don't have the rights to create a repository under {owner}")
        kind, name = f"{asked.get('type') or 'model'}s", f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.hub.repositories:
            self.send_json({"error": "You already created this repository", "url": url}, 409)
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.create(name, kind=kind, private=private)
        self.send_json({"url": url, "name": name, "id": name})

    def validate_card(self, body):
        self.send_json({"errors": [], "warnings": []})

    def info(self, body, kind, name, revision="main"):
        repository = self.repository(kind, name)
        self.send_json(repository.info(self.commit_of(repository, revision)))

    def refs(self, body, kind, name):
        branches = self.repository(kind, name).branches
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in branches.items()]
        self.send_json({"branches": listed, "converts": [], "tags": []})

    def branch(self, body, kind, name, branch):
        repository = self.repository(kind, name, write=True)
        repository.branches[branch] = self.commit_of(repository, json.loads(body or b"{}").get("startingPoint", "main"))
        self.send_json({})

    def tree(self, body, kind, name, revision, folder=""):
        repository = self.repository(kind, name)
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        found = repository.listing(self.commit_of(repository, revision), folder, recursive)
        if found is None:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        self.send_json(found)

    def paths_info(self, body, kind, name, revision):
        repository = self.repository(kind, name)
        sha, asked = self.commit_of(repository, revision), parse_qs(body.decode())
        entries = {entry["path"]: entry for entry in repository.listing(sha, recursive=True)}
        self.send_json([entries[path] for path in asked.get("paths", []) if path in entries])

    def preupload(self, body, kind, name, revision):
        repository = self.repository(kind, name, write=True)
        tree = repository.commits[self.commit_of(repository, revision)]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": tree[file["path"]].etag if file["path"] in tree else None,
            }
            for file in json.loads(body)["files"]
        ]
        self.send_json({"files": files})

    def batch(self, body, name, kind=None):
        self.repository(kind or "models", name, write=True)
        objects = []
        for file in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/large/{file['oid']}", "header": {}}}
            objects.append(dict(file) if file["oid"] in self.hub.large else {**file, "actions": upload})
        self.send_json({"transfer": "basic", "objects": objects})

    def upload(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, f"the content that came is not {oid}")
        self.hub.large[oid] = body
        self.send_json({})

    def commit(self, body, kind, name, revision):
        repository = self.repository(kind, name, write=True)
        lines = [json.loads(line) for line in body.splitlines()]
        head, changes = lines[0]["value"], {}
        if head.get("parentCommit") not in (None, repository.branches.get(revision)):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            key, value = line["key"], line["value"]
            if key == "file":
                changes[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile" and value["oid"] in self.hub.large:
                changes[value["path"]] = Blob(self.hub.large[value["oid"]], lfs=True)
            elif key == "deletedFile":
                changes[value["path"]] = None
            else:
                raise Refusal(400, f"this Hub cannot do {key} {value['path']}")
        sha = repository.commit(changes, revision, head["summary"])
        self.send_json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def resolve(self, body, name, revision, path, kind=None):
        repository = self.repository(kind or "models", name)
        sha = self.commit_of(repository, revision)
        blob = repository.commits[sha].get(path)
        if blob is None:
            raise Refusal(404, f"{path} is not there", "EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            self.send(200, blob.data, "application/octet-stream", headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(blob.data)), len(blob.data) - 1)
        if first > last:
            raise Refusal(416, f"bytes {first} to {last} of {len(blob.data)}")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(blob.data)}"
        self.send(206, blob.data[first : last + 1], "application/octet-stream", headers)

    def send_json(self, value, status=200, headers=None):
        self.send(status, json.dumps(value).encode(), "application/json", headers or {})

    def send(self, status, data, kind, headers):
        """Send an answer, damaged where the fault is so."""
        if self.fault and self.fault.lost:
            self.hang_up()
            return
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.drop is not None:
            self.wfile.write(data[: self.fault.drop])
            self.hang_up()
            return
        if self.fault and self.fault.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.wfile.write(data)

    def hang_up(self):
        """End the connection in the middle of what it was doing."""
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, format, *arguments):
        """Say nothing: the tests read ``hub.requests``."""


REPO = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
FILE = r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_card"),
    ("GET", REPO, "info"),
    ("GET", REPO + r"/revision/(?P<revision>.+)", "info"),
    ("GET", REPO + r"/refs", "refs"),
    ("POST", REPO + r"/branch/(?P<branch>.+)", "branch"),
    ("GET", REPO + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", "tree"),
    ("POST", REPO + r"/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", REPO + r"/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", REPO + r"/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", FILE + r"\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/large/(?P<oid>[0-9a-f]{64})", "upload"),
    ("GET", FILE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)
