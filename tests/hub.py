"""A small server with the routes of the Hugging Face hub by which data sets are read."""

import hashlib
import json
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Hub:
    """Serves `folder`/OWNER/NAME as the data set OWNER/NAME; with `token` only to who has it."""

    folder: Path
    token: str = ""
    revision: str = "main"
    asked: list[tuple[str, str]] = field(default_factory=list)  # paths, and the Authorization

    def __enter__(self) -> "Hub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None: ...

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_POST = do_GET  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        size = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(size)
        path = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path)
        self.asked.append((path, request.headers.get("Authorization") or ""))
        parts = path.strip("/").split("/")
        is_api = parts[0] == "api"
        _, owner, name, *rest = parts[1:] if is_api else parts
        repository = self.folder / owner / name
        allowed = not self.token or self.asked[-1][1] == f"Bearer {self.token}"
        if not (allowed and repository.is_dir()):
            return self._send(request, 401, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
        if len(rest) > 1 and rest[1] != self.revision:
            return self._send(
                request, 404, {"error": "none"}, {"X-Error-Code": "RevisionNotFound"}
            )
        if is_api and (not rest or rest[0] == "revision"):
            about = {"id": f"{owner}/{name}", "sha": "0" * 40, "siblings": [], "tags": []}
            return self._send(request, 200, about | {"private": False})
        if is_api and rest[0] == "tree":
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(request.path).query)
            below = repository.joinpath(*rest[2:])
            deep = query.get("recursive", ["false"])[0].lower() == "true"
            if not below.is_dir():
                return self._send(
                    request, 404, {"error": "none"}, {"X-Error-Code": "EntryNotFound"}
                )
            found = sorted(below.rglob("*") if deep else below.iterdir())
            return self._send(request, 200, [self._entry(repository, each) for each in found])
        if is_api and rest[0] == "paths-info":
            wanted = json.loads(body)["paths"] if body[:1] == b"{" else []
            wanted = wanted or urllib.parse.parse_qs(body.decode())["paths"]
            found = [repository / each for each in wanted if (repository / each).exists()]
            return self._send(request, 200, [self._entry(repository, each) for each in found])
        file = repository.joinpath(*rest[2:])
        if is_api or rest[0] != "resolve" or not file.is_file():
            return self._send(request, 404, {"error": "none"}, {"X-Error-Code": "EntryNotFound"})
        data, status, headers = file.read_bytes(), 200, {"ETag": f'"{self._digest(file)}"'}
        if unit := request.headers.get("Range"):
            first, _, last = unit.removeprefix("bytes=").partition("-")
            stop = min(int(last) + 1 if last else len(data), len(data))
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{len(data)}"
            data, status = data[int(first) : stop], 206
        return self._send(request, status, data, headers)

    def _entry(self, repository: Path, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(repository))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
        size = path.stat().st_size
        return {"type": "file", "path": name, "oid": self._digest(path), "size": size}

    def _digest(self, path: Path) -> str:
        return hashlib.sha1(path.read_bytes()).hexdigest()

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: Any,
        headers: dict[str, str] | None = None,
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)
