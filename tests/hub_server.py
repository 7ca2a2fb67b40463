"""A stand-in for the Hugging Face Hub on the loopback, as far as the real client needs it.

Repositories, commits and large files live in memory. Everything the client asks is written down with the
bytes that were sent, and single downloads can be made to go wrong. Nothing of croppable is known here.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_stand_in"
LARGE = 2000  # bytes from which a file is a "large file", stored outside git
PART = 1 << 20  # bytes of one part of a multi-part upload


@dataclass
class Repository:
    """Commits (each a whole tree of path -> content) and the branches that point at them."""

    private: bool = False
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, tree: dict[str, bytes], branch: str, summary: str) -> str:
        text = f"{len(self.trees)}{summary}{sorted(tree)}".encode()
        oid = hashlib.sha1(text).hexdigest()
        self.trees[oid] = tree
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        oid = self.branches.get(revision, revision)
        return oid if oid in self.trees else None


@dataclass
class Request:
    """One request as it was answered."""

    method: str
    path: str
    status: int
    sent: int


class Hub(ThreadingHTTPServer):
    """The server; use as a context manager.

    Attributes:
        log: Every request, in order of its answer.
        ignore_range: Answer a Range request with the whole file, as some proxies do.
        break_off: File name -> how many bytes of it to send before the connection is cut, every time.
        break_once: As ``break_off``, but only the next time.
        spoil: File name -> function of the bytes that are sent instead.
        lose: File names that the server answers with status 500.
        errors: What went wrong inside the stand-in.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.log: list[Request] = []
        self.ignore_range = False
        self.break_off: dict[str, int] = {}
        self.break_once: dict[str, int] = {}
        self.spoil: dict[str, Callable[[bytes], bytes]] = {}
        self.lose: set[str] = set()
        self.errors: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        # Large files come from another host, as they do on the Hub; the client treats that case differently.
        self.storage_url = f"http://localhost:{self.server_address[1]}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    def sent(self, since: int = 0) -> int:
        """Return the bytes of all bodies since the request of that number."""
        return sum(request.sent for request in self.log[since:])

    def files_sent(self, since: int = 0) -> list[str]:
        """Return the names of the files whose content was sent since the request of that number."""
        gets = (request for request in self.log[since:] if request.method == "GET" and request.sent)
        return [request.path.rpartition("/")[2] for request in gets if "/resolve/" in request.path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what went wrong in the stand-in itself; connections that were cut on purpose are no error."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | ValueError):
            self.errors.append(repr(error))


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        """Keep the terminal quiet; `Hub.log` has it all."""

    # --- plumbing

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        length = {"Content-Length": str(len(body))}
        for key, value in {**length, **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        sent = 0
        if self.command != "HEAD":
            self.wfile.write(body)
            sent = len(body)
        self.server.log.append(Request(self.command, self.path, status, sent))

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(
            status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def _authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, repo_id: str, write: bool = False) -> Repository | None:
        """Return the repository, or refuse and return None."""
        repository = self.server.repositories.get(repo_id)
        if self.headers.get("Authorization") and not self._authorized():
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and not self._authorized()):
            # The Hub does not tell who may not know that a private repository exists.
            self._refuse(404 if self._authorized() else 401, "RepoNotFound", "Repository not found")
        elif write and not self._authorized():
            self._refuse(403, "", "This token may not write")
        else:
            return repository
        return None

    def _tree(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(repo_id)
        if repository is None:
            return None
        oid = repository.resolve(unquote(revision))
        if oid is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return oid, repository.trees[oid]

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        for method, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                getattr(self, action)(**match.groupdict())
                return
        self._body()
        self._refuse(404, "", f"the stand-in does not know {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _route

    # --- uploads

    def create(self) -> None:
        wanted = json.loads(self._body())
        if not self._authorized():
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        link = {"url": f"{self.server.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.server.repositories:
            return self._json({**link, "error": "You already created this model repo"}, 409)
        repository = Repository(private=bool(wanted.get("private") or wanted.get("visibility") == "private"))
        repository.commit({".gitattributes": b"*.safetensors filter=lfs"}, "main", "initial commit")
        self.server.repositories[repo_id] = repository
        return self._json(link)

    def validate(self) -> None:
        content = json.loads(self._body())["content"]
        valid = content.startswith("---\n")
        errors = [] if valid else [{"message": "no front matter"}]
        self._json({"errors": errors, "warnings": []}, 200 if valid else 400)

    def preupload(self, repo: str, revision: str) -> None:
        files = json.loads(self._body())["files"]
        if self._repository(repo, write=True) is None:
            return
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs"
                if file["size"] >= LARGE and file["path"].endswith(".safetensors")
                else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        self._json({"files": modes})

    def batch(self, repo: str) -> None:
        objects = json.loads(self._body())["objects"]
        if self._repository(repo, write=True) is None:
            return
        self._json({"transfer": "basic", "objects": [self._upload_plan(item) for item in objects]})

    def _upload_plan(self, item: dict[str, Any]) -> dict[str, Any]:
        oid, size = item["oid"], item["size"]
        if oid in self.server.large:
            return {"oid": oid, "size": size}
        verify = {"href": f"{self.server.url}/lfs/verify", "header": {}}
        if size <= PART:
            upload: dict[str, Any] = {"href": f"{self.server.url}/lfs/{oid}"}
        else:
            numbers = range(1, -(-size // PART) + 1)
            parts = {f"{number:05d}": f"{self.server.url}/lfs/{oid}/{number}" for number in numbers}
            upload = {
                "href": f"{self.server.url}/lfs/complete",
                "header": {"chunk_size": str(PART), **parts},
            }
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def put_whole(self, oid: str) -> None:
        data = self._body()
        if hashlib.sha256(data).hexdigest() != oid:
            return self._refuse(400, "", "sha256 differs")
        self.server.large[oid] = data
        return self._send(200)

    def put_part(self, oid: str, number: str) -> None:
        self.server.parts.setdefault(oid, {})[int(number)] = self._body()
        self._send(200, headers={"ETag": f'"{number}"'})

    def complete(self) -> None:
        wanted = json.loads(self._body())
        parts = self.server.parts.pop(wanted["oid"])
        data = b"".join(parts[item["partNumber"]] for item in wanted["parts"])
        if hashlib.sha256(data).hexdigest() != wanted["oid"]:
            return self._refuse(400, "", "sha256 differs")
        self.server.large[wanted["oid"]] = data
        return self._json({})

    def verify(self) -> None:
        wanted = json.loads(self._body())
        known = len(self.server.large.get(wanted["oid"], b"")) == wanted["size"]
        self._json({}, 200 if known else 404)

    def commit(self, repo: str, revision: str) -> None:
        lines = [json.loads(line) for line in self._body().splitlines() if line]
        repository = self._repository(repo, write=True)
        if repository is None:
            return
        tree = dict(repository.trees[repository.branches.get(revision, repository.branches["main"])])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        oid = repository.commit(tree, revision, lines[0]["value"]["summary"])
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"})

    # --- downloads

    def info(self, repo: str, revision: str | None = None) -> None:
        found = self._tree(repo, revision or "main")
        if found is not None:
            oid, tree = found
            siblings = [{"rfilename": path} for path in sorted(tree)]
            private = self.server.repositories[repo].private
            self._json(
                {
                    "id": repo,
                    "modelId": repo,
                    "sha": oid,
                    "private": private,
                    "siblings": siblings,
                    "tags": [],
                }
            )

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        sha256 = hashlib.sha256(data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _git_oid(data)}
        if sha256 in self.server.large:
            entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
        return entry

    def tree(self, repo: str, revision: str) -> None:
        found = self._tree(repo, revision)
        if found is not None:
            self._json([self._entry(path, data) for path, data in sorted(found[1].items())])

    def paths_info(self, repo: str, revision: str) -> None:
        paths = parse_qs(self._body().decode())["paths"]
        found = self._tree(repo, revision)
        if found is not None:
            self._json([self._entry(path, found[1][path]) for path in paths if path in found[1]])

    def resolve(self, repo: str, revision: str, path: str) -> None:
        found = self._tree(repo, revision)
        if found is None:
            return None
        oid, tree = found
        commit = {"X-Repo-Commit": oid}
        if path not in tree:
            headers = {**commit, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self._json({"error": "Entry not found"}, 404, headers)
        data = tree[path]
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self.server.large:
            return self._content(path, data, {**commit, "ETag": f'"{_git_oid(data)}"'})
        large = {
            **commit,
            "X-Linked-Etag": f'"{sha256}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"{self.server.storage_url}/storage/{sha256}/resolve/{path}",
        }
        return self._send(302, headers=large)

    def storage(self, oid: str, path: str) -> None:
        self._content(path, self.server.large[oid], {"ETag": f'"{oid}"'})

    def _content(self, path: str, data: bytes, headers: dict[str, str]) -> None:
        server = self.server
        if path in server.lose:
            return self._refuse(500, "", "something went wrong")
        data = server.spoil.get(path, bytes)(data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, start = 200, 0
        if wanted and not server.ignore_range:
            start = int(wanted[1])
            if start >= len(data):
                return self._send(416, headers={"Content-Range": f"bytes */{len(data)}"})
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        body = data[start:]
        limit = server.break_once.pop(path, None) if self.command == "GET" else None
        limit = server.break_off.get(path) if limit is None and self.command == "GET" else limit
        if limit is None:
            return self._send(status, body, {"Accept-Ranges": "bytes", **headers})
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:limit])
        self.wfile.flush()
        server.log.append(Request(self.command, self.path, status, min(limit, len(body))))
        self.close_connection = True
        return self.connection.close()


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


REPO = r"(?P<repo>[^/]+/[^/]+?)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate"),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", "preupload"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "put_whole"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<number>\d+)", "put_part"),
    ("POST", "/lfs/complete", "complete"),
    ("POST", "/lfs/verify", "verify"),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", "commit"),
    ("GET", f"/api/models/{REPO}", "info"),
    ("GET", f"/api/models/{REPO}/revision/{REVISION}", "info"),
    ("GET", f"/api/models/{REPO}/tree/{REVISION}", "tree"),
    ("POST", f"/api/models/{REPO}/paths-info/{REVISION}", "paths_info"),
    ("GET HEAD", "/storage/(?P<oid>[0-9a-f]{64})/resolve/(?P<path>.+)", "storage"),
    ("GET HEAD", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
]
