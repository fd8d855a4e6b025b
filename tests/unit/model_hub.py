"""A hub of models and datasets on 127.0.0.1: what `huggingface_hub` asks for to download and to push, and no more."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
import threading
from collections import Counter
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
    """Models and datasets, each a list of commits; the last one is `main`. `requests` are the paths asked for, and
    `sent_bytes` how much of each was sent.

    Datasets are named `datasets/<owner>/<name>`. A file is sent from the byte on that a `Range` asks for. The files of
    those in `gated` need the token in `gated`; where there are such, any other token is rejected.

    Whoever pushes needs `write_token`. `visibility` has that of the models that were created by a push.
    """

    def __init__(self):
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []
        self.sent_bytes: Counter[str] = Counter()
        self.is_down = False
        self.faults: list[Fault] = []
        self.gated: dict[str, str] = {}
        self.write_token = "hf_writer"
        self.visibility: dict[str, str] = {}
        self._large_files: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ModelHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, model: str, folder: Path, commit: str | None = None) -> str:
        """Make the files of a folder the newest commit of a model, and return the commit's id, by default a hash."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        content = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())})
        commit = commit or hashlib.sha1(f"{model} {content}".encode()).hexdigest()
        self.commits.setdefault(model, {})[commit] = files
        return commit

    def commit_files(self, name: str, files: Mapping[str, bytes], commit: str | None = None) -> str:
        """Make files, by their paths, the newest commit of a model or dataset, and return the commit's id."""
        with tempfile.TemporaryDirectory() as folder:
            for path, data in files.items():
                (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / path).write_bytes(data)
            return self.commit(name, Path(folder), commit)

    def downloads(self) -> list[str]:
        """Return the files that were asked for, without their hubs and commits, in order, each once."""
        asked = (re.fullmatch(r".*/resolve/[^/]+/(.+)", path) for path in self.requests)
        return list(dict.fromkeys(match[1] for match in asked if match))

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
        is_api = path.startswith("/api/")
        # <owner>/<name>/revision/<revision>, .../tree/<revision>, or .../resolve/<revision>/<file>
        parts = path.removeprefix("/api").removeprefix("/models").removeprefix("/").split("/")
        size = 3 if parts[0] == "datasets" else 2
        if len(parts) < size + 2:
            return 404, {}, b""
        repository, (kind, revision, *file) = "/".join(parts[:size]), parts[size:]
        commits = self.commits.get(repository, {})
        commit = list(commits)[-1] if commits and revision == "main" else revision
        if commit not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound" if commits else "RepoNotFound"}, b""
        if not is_api and self.gated.get(repository, token) != token:
            return 401, {"X-Error-Code": "GatedRepo", "X-Repo-Commit": commit}, b""
        if is_api and kind == "tree":
            files = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in commits[commit].items()
            ]
            return 200, {}, json.dumps(files).encode()
        if is_api:
            files = [{"rfilename": path} for path in commits[commit]]
            info = {"id": repository.removeprefix("datasets/"), "sha": commit, "siblings": files}
            return 200, {}, json.dumps(info).encode()
        data = commits[commit].get("/".join(file))
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, data

    def _write(self, path: str, token: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        if path.startswith("/large/"):
            # The address itself is the permission, as with the hub's.
            self._large_files[path.removeprefix("/large/")] = body
            return 200, {}, b""
        if path == "/api/validate-yaml":
            return 200, {}, json.dumps({"errors": [], "warnings": []}).encode()
        if token != self.write_token:
            said = "Invalid credentials in Authorization header" if token else "Invalid username or password."
            return 401, {"X-Error-Message": said}, b""
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked["organization"], asked["name"])))
            answer = json.dumps({"url": f"{self.url}/{name}"}).encode()
            if name in self.commits:
                return 409, {"X-Error-Message": "You already created this model repo"}, answer
            self.commits[name] = {"0" * 40: {".gitattributes": b""}}
            self.visibility[name] = asked.get("visibility", "public")
            return 200, {}, answer
        if path.endswith("/preupload/main"):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {}, json.dumps({"files": modes}).encode()
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.url}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return 200, {}, json.dumps({"transfer": "basic", "objects": objects}).encode()
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = dict(list(self.commits[found[1]].values())[-1])
            files |= {
                one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"
            }
            files |= {
                one["value"]["path"]: self._large_files[one["value"]["oid"]] for one in lines if one["key"] == "lfsFile"
            }
            for one in lines:
                if one["key"] == "deletedFile":
                    del files[one["value"]["path"]]
            commit = self.commit_files(found[1], files)
            done = {"commitUrl": f"{self.url}/{found[1]}/commit/{commit}", "commitOid": commit}
            return 200, {}, json.dumps(done).encode()
        return 404, {}, b""

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
                if status == 200 and (first := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")):
                    headers = {**headers, "Content-Range": f"bytes {first[1]}-{len(body) - 1}/{len(body)}"}
                    status, body = 206, body[int(first[1]) :]
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    body = body[: fault.sent] if fault else body
                    hub.sent_bytes[path] += len(body)
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def do_POST(self) -> None:
                path = unquote(self.path.partition("?")[0])
                hub.requests.append(path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                if fault := hub._fault(path):
                    status, headers, answer = fault.status, fault.headers, b""
                else:
                    status, headers, answer = hub._write(path, token, body)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            do_PUT = do_POST  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return Handler
