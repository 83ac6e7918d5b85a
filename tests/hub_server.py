"""A small hub on loopback: creates repositories and takes commits, as the client sends them."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(BaseHTTPRequestHandler):
    """Keeps what it is sent in the server's `repos`: name -> path -> bytes."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self.headers.get("authorization") != "Bearer hf_good":
            return self._answer(401, {"error": "Invalid username or password."})
        repos = self.server.repos
        if self.path == "/api/repos/create":
            given = json.loads(body)
            owner = given.get("organization") or "me"
            name = f"{owner}/{given['name']}"
            repos.setdefault(name, {})
            self.server.private[name] = given.get("visibility") == "private"
            return self._answer(200, {"url": f"{self.server.address}/{name}", "name": name})
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            told = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            modes = [{"path": f["path"], **told} for f in files]
            return self._answer(200, {"files": modes})
        if "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    repos[name][value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "header":
                    self.server.messages.append(entry["value"]["summary"])
            url = f"{self.server.address}/{name}/commit/1"
            return self._answer(200, {"commitUrl": url, "commitOid": "1" * 40, "success": True})
        return self._answer(404, {"error": self.path})

    def do_GET(self):
        if self.path.startswith("/api/models/"):
            return self._answer(200, {"id": self.path, "siblings": [], "sha": "1" * 40})
        return self._answer(404, {"error": self.path})

    def _answer(self, code, value):
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def hub():
    """Run the server; what is yielded has `address`, `repos`, `private` and `messages`."""
    return serving(Hub, repos={}, private={}, messages=[])


@contextmanager
def serving(handler, **state):
    """Run a server on loopback; what is yielded has its `address` and the state."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    vars(server).update(state)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
