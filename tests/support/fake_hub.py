"""A hub on the loopback interface: as much of its API as publishing a model needs, kept in memory.

Files above a few bytes that the hub would store outside git go through LFS, as for clients without hf_xet.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = (".safetensors", ".gguf", ".bin")


@dataclass
class Repository:
    """A repository: its files by name, whether it is private, and its commits, the newest last."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: list[str] = field(default_factory=lambda: ["0" * 40])


@dataclass
class FakeHub:
    """The state of the hub, and what a test can make it do.

    Attributes:
        token: the only token that it accepts.
        owners: who the token may write to.
        blobs: uploaded large files by digest.
        cards: the model cards that it was asked to check.
        card_errors: what it finds in them.
        requests: (method, path) of each request.
        fail: {beginning of a path: status} of requests to refuse.
    """

    url: str = ""
    token: str = "hf_canary_token"
    owners: tuple[str, ...] = ("org",)
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    cards: list[str] = field(default_factory=list)
    card_errors: list[dict[str, str]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    fail: dict[str, int] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes, authorization: str | None) -> tuple[int, Any]:
        """Return (status, JSON) for a request."""
        path = path.partition("?")[0]
        self.requests.append((method, path))
        if status := next((status for start, status in self.fail.items() if path.startswith(start)), None):
            return status, {"error": f"refused with {status}"}
        if path.startswith("/upload/"):
            self.blobs[path.removeprefix("/upload/")] = body
            return 200, {}
        if authorization == "Bearer xet":
            return self._xet(path)
        if authorization != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "org", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return 400 if self.card_errors else 200, {"errors": self.card_errors, "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._lfs(entry) for entry in json.loads(body)["objects"]]}
        owner, name, *rest = path.removeprefix("/api/models/").split("/")
        repository = self.repositories.get(f"{owner}/{name}")
        if repository is None:
            return 404, {"error": "Repository not found"}
        return self._repository(f"{owner}/{name}", repository, rest, body)

    def _create(self, request: dict[str, Any]) -> tuple[int, Any]:
        owner, name = request["organization"], request["name"]
        if owner not in self.owners:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        repository = Repository(bool(request.get("private")) or request.get("visibility") == "private")
        self.repositories.setdefault(f"{owner}/{name}", repository)
        return 200, {"url": f"{self.url}/{owner}/{name}"}

    def _lfs(self, entry: dict[str, Any]) -> dict[str, Any]:
        known = entry["oid"] in self.blobs
        upload = {} if known else {"actions": {"upload": {"href": f"{self.url}/upload/{entry['oid']}"}}}
        return {**entry, **upload}

    def _repository(self, name: str, repository: Repository, rest: list[str], body: bytes) -> tuple[int, Any]:
        if not rest or rest[0] == "revision":
            siblings = [{"rfilename": file} for file in repository.files]
            tags = ["tunesmith"] if b"tunesmith" in repository.files.get("README.md", b"") else []
            return 200, {"id": name, "sha": repository.commits[-1], "siblings": siblings, "tags": tags, "modelId": name}
        if rest[0] == "tree":
            return 200, [
                {"type": "file", "path": file, "size": len(content), "oid": _git_oid(content)}
                for file, content in repository.files.items()
            ]
        if rest[0] == "preupload":
            files = [
                {
                    "path": entry["path"], "uploadMode": "lfs" if entry["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": _git_oid(repository.files[entry["path"]]) if entry["path"] in repository.files else None,
                }
                for entry in json.loads(body)["files"]
            ]  # fmt: skip
            return 200, {"files": files}
        if rest[0] == "xet-write-token":
            return 200, {"accessToken": "xet", "exp": 2**40, "casUrl": self.url}
        assert rest[0] == "commit", rest
        return self._commit(name, repository, [json.loads(line) for line in body.splitlines()])

    def _xet(self, path: str) -> tuple[int, Any]:
        """Answer as the storage of hf_xet does, which takes blocks of files and lists of them."""
        if "/chunks/" in path or path.startswith("/v2/"):  # nothing is stored yet, and it is an older storage
            return 404, {}
        return 200, {"was_inserted": True, "result": 1}

    def _commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != repository.commits[-1]:
            return 412, {"error": "A commit has happened since."}
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs.get(value["oid"], value["oid"].encode())
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        repository.files = files
        commit = hashlib.sha1(repr(lines).encode()).hexdigest()
        repository.commits.append(commit)
        return 200, {"commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"}


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Yield a running hub."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = self._chunks()
            status, answer = hub.answer(self.command, self.path, body, self.headers.get("Authorization"))
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _chunks(self) -> bytes:
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _handle

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
