"""A hub of models on 127.0.0.1: what `huggingface_hub.snapshot_download` asks for, and no more."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Fault:
    """What happens to the next `times` requests of paths that `match` (a regular expression).

    They are answered with `status`; or, where that is 0, only the first `sent` bytes of the answer come.
    """

    match: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: int = 0
    times: int = 10**9


class ModelHub:
    """Models, each a list of commits; the last one is `main`. `requests` are the paths that were asked for.

    The files of those in `gated` need the token in `gated`; where there are such, any other token is rejected.
    """

    def __init__(self):
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []
        self.is_down = False
        self.faults: list[Fault] = []
        self.gated: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ModelHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, model: str, folder: Path) -> str:
        """Make the files of a folder the newest commit of a model, and return the commit's id."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        content = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())})
        commit = hashlib.sha1(f"{model} {content}".encode()).hexdigest()
        self.commits.setdefault(model, {})[commit] = files
        return commit

    def _fault(self, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.search(fault.match, path):
                fault.times -= 1
                return fault
        return None

    def _answer(self, path: str, token: str = "") -> tuple[int, Mapping[str, str], bytes]:
        if self.is_down:
            return 503, {}, b""
        if self.gated and token and token not in self.gated.values():
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        is_api = path.startswith("/api/models/")
        # <owner>/<name>/revision/<revision>, .../tree/<revision>, or .../resolve/<revision>/<file>
        owner, name, kind, revision, *file = path.removeprefix("/api/models/").lstrip("/").split("/")
        commits = self.commits.get(f"{owner}/{name}", {})
        commit = list(commits)[-1] if commits and revision == "main" else revision
        if commit not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound" if commits else "RepoNotFound"}, b""
        if not is_api and self.gated.get(f"{owner}/{name}", token) != token:
            return 401, {"X-Error-Code": "GatedRepo", "X-Repo-Commit": commit}, b""
        if is_api and kind == "tree":
            files = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in commits[commit].items()
            ]
            return 200, {}, json.dumps(files).encode()
        if is_api:
            files = [{"rfilename": path} for path in commits[commit]]
            return 200, {}, json.dumps({"id": f"{owner}/{name}", "sha": commit, "siblings": files}).encode()
        data = commits[commit].get("/".join(file))
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, data

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = unquote(self.path.partition("?")[0])
                hub.requests.append(path)
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                fault = hub._fault(path) if self.command == "GET" else None
                if fault and fault.status:
                    status, headers, body = fault.status, fault.headers, b""
                else:
                    status, headers, body = hub._answer(path, token)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body[: fault.sent] if fault else body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return Handler
