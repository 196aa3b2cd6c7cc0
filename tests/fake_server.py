"""An OpenAI-compatible server in this process that answers, errs or hangs up as a test has it, and its engine."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from specforge.config.steps import Regenerate
from specforge.regenerate.engine import Block
from specforge.regenerate.http import HttpEngine


class Fake(ThreadingHTTPServer):
    """Answers with what `reply` returns for a request: (status, JSON or bytes[, headers]), or None to hang up."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.seen, self.lock = reply, [], threading.Lock()
        self.now = self.peak = 0

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Healthy."""
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers), body))
            self.server.now += 1
            self.server.peak = max(self.server.peak, self.server.now)
        answer = self.server.reply(body)
        with self.server.lock:
            self.server.now -= 1
        if answer is None:
            self.close_connection = True
            return
        status, content, *headers = answer
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers[0].items() if headers else ():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *words):
        """Silence."""


def says(text, reason="stop", tokens=3):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return 200, {"choices": [choice], "usage": {"completion_tokens": tokens}}


def echo(body):
    return says(f"answer {len(body['messages'])} to {body['messages'][-1]['content']}")


@contextmanager
def serving(*replies):
    servers = [Fake(reply) for reply in replies]
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield servers
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def engine_for(servers, key=None, patience=60.0, template_kwargs=None, opened=None, **changes):
    options = {
        "engine": "endpoint",
        "endpoints": [server.url for server in servers],
        "max_tokens": 9,
    } | changes
    settings = Regenerate(**options)
    words = {"api_key": key, "backoff": 0.01, "patience": patience, "opened": opened}
    return HttpEngine(settings.endpoints, "tiny", settings, template_kwargs, **words)


def rows_of(servers, records, done=(), **changes):
    return {row["id"]: row for row in engine_for(servers, **changes).run([Block(records, done)])}
