"""A real HTTP server that speaks OpenAI's chat completions, well or as badly as a test asks."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NO_SUCH = {"error": {"message": "no such option", "param": "seed", "code": "unsupported"}}
FILTERED = {"error": {"message": "the prompt was filtered", "param": None, "code": "filter"}}


class Server(ThreadingHTTPServer):
    """Speaks chat completions; answers what `script` says first, then always well."""

    retry_after = "0.2"
    """Seconds that a 429 asks to wait."""

    def __init__(self, script=(), delay=0.0):
        self.script, self.delay = list(script), delay
        self.requests, self.at_once, self.most_at_once = [], 0, 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    def say(self, body):
        """Return the text of a good answer."""
        text = body["messages"][-1]["content"].removeprefix("Input: ").upper()
        return f'Output: "{text} {body["seed"]}"'

    def step(self, body):
        """Return how a request is answered of which the script says nothing."""
        return 200

    def more(self, body, answer):
        """Change a good answer before it is sent."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """Say nothing of a client that went away."""


@contextmanager
def serving(kind=Server):
    """Yield a function that starts a server of a kind; all are stopped at the end."""
    running = []

    def start(*arguments, **options):
        server = kind(*arguments, **options)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append(body)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            step = server.script.pop(0) if server.script else server.step(body)
        try:
            time.sleep(1.0 if step == "late" else server.delay)
        finally:
            # Before the answer: once the client has it, its next request may already be here.
            with server.lock:
                server.at_once -= 1
        self.answer(step, body)

    def answer(self, step, body):
        said = "" if step == "silent" else self.server.say(body)
        message = {"role": "assistant", "content": said}
        good = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        good["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        self.server.more(body, good)
        wanted = {"empty": {**good, "choices": []}, "no such": NO_SUCH, "filtered": FILTERED}
        payload = json.dumps(wanted.get(step, good)).encode()
        status = step if isinstance(step, int) else 400 if step in ("no such", "filtered") else 200
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if step == 429:
            self.send_header("Retry-After", self.server.retry_after)
        if step == "malformed":
            payload = b"{not json"
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass
