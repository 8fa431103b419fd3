"""A local web server that hands out one file, slowly if asked, and remembers who asked for what."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = 64 * 1024


class FileServer:
    """Serves ``content`` under any path; ``pause`` seconds between chunks of 64 KiB."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.pause = 0.0
        self.status = 200
        self.ranges: list[str] = []
        self._stop = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                wanted = self.headers.get("Range", "")
                server.ranges.append(wanted)
                if server.status != 200:
                    self.send_error(server.status)
                    return
                start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
                rest = server.content[start:]
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("ETag", '"one"')
                if wanted:
                    total = len(server.content)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                self.end_headers()
                for place in range(0, len(rest), CHUNK):
                    if server._stop.is_set():
                        self.close_connection = True
                        return
                    try:
                        self.wfile.write(rest[place : place + CHUNK])
                    except OSError:  # the other side has had enough
                        self.close_connection = True
                        return
                    time.sleep(server.pause)

            def log_message(self, *_):
                pass

        return Handler
