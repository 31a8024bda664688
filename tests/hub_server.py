"""A small Hugging Face Hub on this machine: the calls that fetching and publishing a model need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_a_writer"
READER = "hf_of_a_reader"

Files = dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Files) -> str:
        before = self.commits.get(self.branches.get(branch, self.branches.get("main", "")), {})
        text = json.dumps([len(self.commits), branch, sorted(files)])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = before | files
        self.branches[branch] = sha
        return sha


class Hub:
    """Its repositories, and the requests it was sent."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []  # such as "GET /api/models/a/b"
        self.uploaded: Files = {}  # by SHA-256
        self.sizes: dict[str, int] = {}  # that are stated instead of the true ones, by file
        self.fails = 0  # status of every answer; 0: none
        self.url = ""

    def add(self, name: str, files: Files, **how: bool) -> str:
        """Create a repository with one commit on main."""
        self.repositories[name] = Repository(**how)
        return self.repositories[name].commit("main", files)

    def seen(self, word: str) -> list[str]:
        return [request for request in self.requests if word in request]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: object = None, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str = "") -> None:
        self.answer(
            {"error": code or "refused"}, status, **({"X_Error_Code": code} if code else {})
        )

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def repository(self, name: str) -> Repository | None:
        """Return a repository that the token may read, or refuse."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.token not in (TOKEN, READER)):
            self.refuse(401 if not self.token else 404, "RepoNotFound")
            return None
        return found

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {unquote(path)}")
        if self.hub.fails:
            return self.refuse(self.hub.fails)
        for method, pattern, action in ROUTES:
            if self.command in method.split() and (match := re.fullmatch(pattern, path)):
                if self.command in ("POST", "PUT") and "lfs/" not in path and self.token != TOKEN:
                    return self.refuse(403 if self.token else 401)
                return action(self, body, *map(unquote, match.groups()))
        return self.refuse(404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def info(self, _: bytes, name: str, revision: str = "main") -> None:
        if (found := self.repository(name)) is None:
            return None
        sha = found.branches.get(revision, revision)
        if sha not in found.commits:
            return self.refuse(404, "RevisionNotFound")
        files = [
            {"rfilename": file, "size": self.hub.sizes.get(file, len(data)), "blobId": "0" * 40}
            for file, data in found.commits[sha].items()
        ]
        about = {"id": name, "modelId": name, "sha": sha, "private": found.private, "tags": []}
        return self.answer(about | {"siblings": files, "gated": found.gated})

    def file(self, _: bytes, name: str, revision: str, file: str) -> None:
        if (found := self.repository(name)) is None:
            return None
        if found.gated:
            return self.refuse(403, "GatedRepo")
        sha = found.branches.get(revision, revision)
        data = found.commits.get(sha, {}).get(file)
        if data is None:
            return self.refuse(404, "EntryNotFound")
        digest = hashlib.sha256(data).hexdigest()
        return self.answer(data, X_Repo_Commit=sha, ETag=f'"{digest}"', Accept_Ranges="bytes")

    def create(self, body: bytes) -> None:
        wish = json.loads(body)
        name = f"{wish.get('organization') or 'me'}/{wish['name']}"
        if name in self.hub.repositories:
            return self.refuse(409)
        self.hub.add(name, {".gitattributes": b""}, private=_is_private(wish))
        return self.answer({"url": f"{self.hub.url}/{name}", "id": name})

    def branch(self, _: bytes, name: str, branch: str) -> None:
        found = self.hub.repositories[name]
        if branch in found.branches:
            return self.refuse(409)
        found.branches[branch] = found.branches["main"]
        return self.answer()

    def validate(self, body: bytes) -> None:
        text = json.loads(body)["content"]
        metadata = yaml.safe_load(text.split("---\n")[1])
        wrong = not isinstance(metadata, dict) or "license" not in metadata
        errors = [{"message": "no license"}] if wrong else []
        return self.answer({"errors": errors, "warnings": []}, 400 if wrong else 200)

    def preupload(self, body: bytes, *_: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return self.answer({"files": files})

    def batch(self, body: bytes, _: str) -> None:
        objects = [
            each | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return self.answer({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, digest: str) -> None:
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.uploaded[digest] = body
        return self.answer()

    def commit(self, body: bytes, name: str, revision: str) -> None:
        files: Files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
            else:
                assert line["key"] == "header"
        sha = self.hub.repositories[name].commit(revision, files)
        return self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})


def _is_private(wish: dict[str, object]) -> bool:
    # Versions of the library say it differently.
    return wish.get("private") is True or wish.get("visibility") == "private"


_NAME = "([^/]+/[^/]+)"
ROUTES = (
    ("GET", f"/api/models/{_NAME}", _Handler.info),
    ("GET", f"/api/models/{_NAME}/revision/([^/]+)", _Handler.info),
    ("GET HEAD", f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.file),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", f"/api/models/{_NAME}/branch/([^/]+)", _Handler.branch),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/lfs/([0-9a-f]{64})", _Handler.put),
    ("POST", f"/api/models/{_NAME}/commit/([^/]+)", _Handler.commit),
)


@contextmanager
def serve() -> Iterator[Hub]:
    """Serve a hub without repositories on a free port."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
