"""A training run in a thread of the test, in place of a program of its own."""

from __future__ import annotations

import socket
import threading

from napari_openmedlab.training.child import CANCEL, serve
from napari_openmedlab.training.wire import EventReader

__all__ = ["InAThread"]


class InAThread:
    """Trains in a thread instead of a program of its own: torch need not be loaded again."""

    def __init__(self, folder):
        self.folder, self._reader = folder, EventReader(folder)
        ours, theirs = socket.socketpair()
        self._line = ours
        work = lambda: serve(folder, theirs.makefile())  # noqa: E731
        self._thread = threading.Thread(target=work, name="openmedlab-test-run")
        self._thread.start()

    def events(self):
        return self._reader.read()

    def cancel(self):
        self._line.sendall(f"{CANCEL}\n".encode())

    def close(self, seconds=0.0):
        self._line.close()
        self._thread.join(60)
