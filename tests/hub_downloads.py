"""A hub on loopback from which the client downloads: folders under the names of repositories."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.hub_server import serving

COMMITS = {"main": "1" * 40, "older": "2" * 40}
"""Branches; the second serves what `older` holds."""


class Downloads(BaseHTTPRequestHandler):
    """Serves the server's `folders`: branch -> name -> folder."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._serve(body=False)

    def do_GET(self):
        self._serve(body=True)

    def _serve(self, *, body):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.server.asked.append("/".join(parts))
        if parts[:2] == ["api", "models"]:
            return self._about("/".join(parts[2:4]), parts[4:])
        if len(parts) > 4 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body)
        return self._send(404, {"error": "Not found"}, {"X-Error-Code": "RepoNotFound"})

    def _folder(self, name, revision):
        branch = next((b for b, commit in COMMITS.items() if revision in (b, commit)), None)
        return COMMITS.get(branch), self.server.folders.get(branch, {}).get(name)

    def _about(self, name, rest):
        revision = rest[1] if rest[:1] in (["revision"], ["tree"]) else "main"
        commit, folder = self._folder(name, revision)
        if folder is None:
            return self._send(404, {"error": "Not found"}, {"X-Error-Code": "RevisionNotFound"})
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if rest[:1] == ["tree"]:
            sizes = zip(names, files, strict=True)
            entries = [
                {"type": "file", "path": one, "size": path.stat().st_size, "oid": "3" * 40}
                for one, path in sizes
            ]
            return self._send(200, entries)
        siblings = [{"rfilename": one} for one in names]
        about = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
        return self._send(200, {**about, "private": False, "tags": [], "downloads": 0})

    def _file(self, name, revision, path, body):
        commit, folder = self._folder(name, revision)
        if folder is None:
            return self._send(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})
        target = folder / path
        headers = {"X-Repo-Commit": commit}
        if not target.is_file():
            missing = {**headers, "X-Error-Code": "EntryNotFound"}
            return self._send(404, {"error": "Entry not found"}, missing, body=body)
        content = target.read_bytes()
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        return self._send(200, content, headers, body=body)

    def _send(self, code, value, headers=None, *, body=True):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        for key, header in (headers or {}).items():
            self.send_header(key, header)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def downloads(folders: dict[str, dict[str, Path]]):
    """Run the server; what is yielded has its `address` and what was `asked` for."""
    return serving(Downloads, folders=folders, asked=[])
