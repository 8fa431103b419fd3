"""A web server on this machine that misbehaves as told: for downloads that must survive it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler"], None]


@dataclass
class FlakyServer:
    """What is served, how, and what was asked.

    ``script`` holds one answer per request, in order; the last one stays.
    """

    content: bytes = b""
    etag: str = '"one"'
    script: list[Answer] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    let_go: threading.Event = field(default_factory=threading.Event)

    def ranges(self) -> list[str]:
        """What each request asked for; "" for everything."""
        return [headers.get("Range", "") for _, headers in self.asked]

    def next_answer(self) -> Answer:
        if not self.script:
            return ok
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    flaky: FlakyServer

    def do_GET(self) -> None:
        self.flaky.asked.append((self.path, dict(self.headers.items())))
        self.close_connection = True
        self.flaky.next_answer()(self)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def head(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def cut(self) -> None:
        """End the connection as a broken cable does."""
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def rest(self) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body that an honest server sends for this request."""
        content, etag = self.flaky.content, self.flaky.etag
        headers = {"ETag": etag, "Accept_Ranges": "bytes"} if etag else {"Accept_Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is None or self.headers.get("If-Range", etag) != etag:
            return 200, headers, content
        start = int(wanted[1])
        if start >= len(content):
            return 416, {**headers, "Content_Range": f"bytes */{len(content)}"}, b""
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return 206, {**headers, "Content_Range": span}, content[start:]


def ok(handler: Handler, **more: str) -> None:
    status, headers, body = handler.rest()
    handler.head(status, len(body), **{**headers, **more})
    handler.wfile.write(body)


def with_headers(**headers: str) -> Answer:
    return lambda handler: ok(handler, **headers)


def ignoring_range(handler: Handler) -> None:
    del handler.headers["Range"]
    ok(handler)


def dropping(share: float = 0.5) -> Answer:
    """Send a share of what is asked for, then lose the connection."""

    def answer(handler: Handler) -> None:
        status, headers, body = handler.rest()
        handler.head(status, len(body), **headers)
        handler.wfile.write(body[: int(len(body) * share)])
        handler.cut()

    return answer


def longer_than_sent(extra: int = 1000) -> Answer:
    """Announce more bytes than there are, every time."""

    def answer(handler: Handler) -> None:
        status, headers, body = handler.rest()
        if status == 206:
            total = len(handler.flaky.content) + extra
            headers["Content_Range"] = headers["Content_Range"].rsplit("/")[0] + f"/{total}"
        handler.head(status, len(body) + extra, **headers)
        handler.wfile.write(body)
        handler.cut()

    return answer


def without_length(handler: Handler) -> None:
    status, headers, body = handler.rest()
    handler.head(status, None, Transfer_Encoding="chunked", **headers)
    for start in range(0, len(body), 50_000):
        piece = body[start : start + 50_000]
        handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


def status(code: int, **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        body = b"<html><body>no</body></html>"
        handler.head(code, len(body), Content_Type="text/html", **headers)
        handler.wfile.write(body)

    return answer


def page(kind: str = "text/html; charset=utf-8") -> Answer:
    """Send a web page as if it were the file."""

    def answer(handler: Handler) -> None:
        body = b"\n<!DOCTYPE html><html><body>Please log in to the hospital network</body></html>"
        handler.head(200, len(body), Content_Type=kind)
        handler.wfile.write(body)

    return answer


def redirect(location: str, code: int = 302, **headers: str) -> Answer:
    return lambda handler: handler.head(code, 0, Location=location, **headers)


def wrong_part(handler: Handler) -> None:
    """Send another part than the one asked for."""
    code, headers, body = handler.rest()
    if code == 206:
        headers["Content_Range"] = re.sub(r"bytes \d+", "bytes 7", headers["Content_Range"])
    handler.head(code, len(body), **headers)
    handler.wfile.write(body)


def stalling(before_headers: bool) -> Answer:
    """Say nothing more until the test lets go."""

    def answer(handler: Handler) -> None:
        if not before_headers:
            code, headers, body = handler.rest()
            handler.head(code, len(body), **headers)
            handler.wfile.write(body[:100_000])
            handler.wfile.flush()
        handler.flaky.let_go.wait(20)

    return answer


@contextmanager
def serving(content: bytes = b"") -> Iterator[FlakyServer]:
    """Run a server on a free port of this machine while the block runs."""
    flaky = FlakyServer(content)
    handler = type("OneHandler", (Handler,), {"flaky": flaky})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients go away
    flaky.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="test-server")
    thread.start()
    try:
        yield flaky
    finally:
        flaky.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()
