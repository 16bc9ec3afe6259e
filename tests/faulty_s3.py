"""An S3 server reached over HTTP, with a proxy before it that can be told to misbehave."""

import http.client
import logging
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "bucket"
SLOW_DOWN = (503, "SlowDown", "Please reduce your request rate.")
DENIED = (403, "AccessDenied", "Access Denied")


class FaultyS3:
    """What the proxy does, and has done; `share_refused` and `shards_allowed` may be changed."""

    def __init__(self) -> None:
        self.share_refused = 0.0  # of all requests, with 503
        self.shards_allowed: int | None = None  # once so many were put, nothing may be
        self.n_refused = self.n_requests = 0
        self._random, self._lock = random.Random(0), threading.Lock()

    def answer(self, method: str, path: str) -> tuple[int, str, str] | None:
        """What the proxy answers itself, None to pass the request on."""
        with self._lock:
            self.n_requests += 1
            if self._random.random() < self.share_refused:
                self.n_refused += 1
                return SLOW_DOWN
            if method in {"PUT", "DELETE"} and self.shards_allowed is not None:
                if self.shards_allowed == 0:
                    return DENIED
                self.shards_allowed -= "/images-" in path
        return None


def _handler(faults: FaultyS3, port: int) -> type[BaseHTTPRequestHandler]:
    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            refused = faults.answer(self.command, self.path)
            if refused is not None:
                status, code, message = refused
                text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
                self.reply(status, [("Content-Type", "application/xml")], text)
                return
            server = http.client.HTTPConnection("127.0.0.1", port)
            server.request(self.command, self.path, body, dict(self.headers))
            answer = server.getresponse()
            self.reply(answer.status, answer.getheaders(), answer.read())
            server.close()

        def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value  # of the body that a GET would have
                elif name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: pytest shows what went wrong."""

    return Proxy


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a worker that is stopped drops its connections, a reader ends early."""


@contextmanager
def faulty_s3() -> Iterator[FaultyS3]:
    """A server with one bucket; this process and those it starts reach it as ``s3://bucket``."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line per request
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    faults = FaultyS3()
    proxy = QuietServer(("127.0.0.1", 0), _handler(faults, moto.get_host_and_port()[1]))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "sEcReT/KeY")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv(
            "AWS_MAX_ATTEMPTS", "1"
        )  # the patience is to be this package's, not botocore's
        fs = fsspec.filesystem("s3")
        fs.clear_instance_cache()
        fsspec.filesystem("s3").makedirs(BUCKET, exist_ok=True)  # moto keeps it
        yield faults
        fs.clear_instance_cache()
    proxy.shutdown()
    proxy.server_close()
    moto.stop()
