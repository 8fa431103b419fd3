"""One HTTP request for a big file, read in a thread of its own so that a cancel never waits.

``requests`` does the talking: it knows proxies and their exceptions (``HTTPS_PROXY``,
``NO_PROXY``), and an organisation's own certificates (``REQUESTS_CA_BUNDLE``). Importing this
module does not import it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urljoin, urlsplit

from napari_openmedlab import __version__
from napari_openmedlab.errors import DownloadError
from napari_openmedlab.models.contract import Monitor

if TYPE_CHECKING:
    import requests

__all__ = ["Answer", "Interrupted", "Request", "mirrored", "next_address"]

HUB = "https://huggingface.co/"
_PIECE = 2**16
_WAITING = 32  # pieces between the two threads
_REDIRECTS = 10
_MOVED = (301, 302, 303, 307, 308)
_TIMEOUTS = (20.0, 90.0)  # seconds to connect and between two pieces: a proxy may scan first
_POLL = 0.1


class Interrupted(Exception):
    """The transfer failed in a way that may be over soon.

    Parameters
    ----------
    reason : str
        For the user.
    pause : float
        Seconds that the server asks to wait.
    """

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Answer:
    """Head of the server's answer.

    Attributes
    ----------
    status : int
    headers : mapping of str to str
        Names in any case.
    url : str
        Address that answered, after redirects.
    linked : mapping of str to str
        ``X-Linked-...`` headers met on the way: what the Hugging Face hub says about the file
        before it points to the server that has it.
    """

    status: int
    headers: Mapping[str, str]
    url: str
    linked: Mapping[str, str] = field(default_factory=dict)


class Request:
    """A GET request under way; use as a context manager.

    Parameters
    ----------
    url : str
    headers : mapping of str to str
        Besides those that every request has.
    proxy : str
        Address of a proxy; ``""``: the environment's.
    monitor : Monitor
        Asked ten times a second whether to stop, whatever the network does.
    """

    def __init__(self, url: str, headers: Mapping[str, str], proxy: str, monitor: Monitor) -> None:
        self._url = url
        self._headers = {
            "User-Agent": f"napari-openmedlab/{__version__}",
            "Accept-Encoding": "identity",  # the length must be that of the file
            **headers,
        }
        self._proxy = proxy
        self._monitor = monitor
        self._items: queue.Queue[Any] = queue.Queue(_WAITING)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="openmedlab-download", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The thread is not waited for: it may hang in the network for a while.
        self._stopped.set()

    def answer(self) -> Answer:
        """Wait for the head of the answer.

        Raises
        ------
        Interrupted
            If the server can't be reached just now.
        DownloadError
            If trying again would not help.
        Cancelled
            After a cancel.
        """
        found = self._next()
        assert isinstance(found, Answer)
        return found

    def pieces(self) -> Iterator[bytes]:
        """Yield the body; raises as :meth:`answer` does."""
        while (piece := self._next()) is not None:
            yield piece

    def _next(self) -> Any:
        while True:
            self._monitor.step()
            try:
                item = self._items.get(timeout=_POLL)
            except queue.Empty:
                if self._thread.is_alive() or not self._items.empty():
                    continue
                item = Interrupted("the connection ended")
            if isinstance(item, Exception):
                raise item
            return item

    # -- in the thread ---------------------------------------------------------------------

    def _work(self) -> None:
        import requests
        import urllib3

        try:
            with requests.Session() as session:
                response, linked = self._opened(session)
                with closing(response):
                    head = Answer(response.status_code, response.headers, response.url, linked)
                    self._hand_over(head)
                    # Not requests' own iter_content: it loses what came before a cut.
                    for piece in response.raw.stream(_PIECE, decode_content=False):
                        if not self._hand_over(piece):
                            return
            self._hand_over(None)
        except DownloadError as error:
            self._hand_over(error)
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            self._hand_over(_told(error, self._url))

    def _opened(self, session: requests.Session) -> tuple[requests.Response, dict[str, str]]:
        """Follow redirects one by one: each is looked at before it is followed."""
        url = self._url
        linked: dict[str, str] = {}
        for _ in range(_REDIRECTS + 1):
            response = session.get(
                url,
                headers=self._headers,
                proxies=_proxies(url, self._proxy),
                stream=True,
                allow_redirects=False,
                timeout=_TIMEOUTS,
            )
            linked |= {
                name.lower(): value
                for name, value in response.headers.items()
                if name.lower().startswith("x-linked-")
            }
            if response.status_code not in _MOVED:
                return response, linked
            response.close()
            url = next_address(url, response.headers.get("Location", ""))
        raise DownloadError(f"{self._url} leads from one address to the next without end")

    def _hand_over(self, item: Any) -> bool:
        """Return whether anyone still wants it."""
        while not self._stopped.is_set():
            try:
                self._items.put(item, timeout=_POLL)
            except queue.Full:
                continue
            return True
        return False


def next_address(url: str, location: str) -> str:
    """Return where a redirect leads.

    Raises
    ------
    DownloadError
        If it leads nowhere, away from http(s), or from https to http, where anybody on the way
        could change the file.
    """
    target = urljoin(url, location)
    here, there = urlsplit(url), urlsplit(target)
    if not location or there.scheme not in ("http", "https") or not there.hostname:
        raise DownloadError(f"{url} leads to '{location}', which can't be fetched")
    if here.scheme == "https" and there.scheme != "https":
        raise DownloadError(
            f"{url} leads to the unprotected address {target}; that is not followed. Get the file "
            "in your browser and import it"
        )
    return target


def mirrored(url: str, mirror: str) -> str:
    """Return a Hugging Face address at a mirror; other addresses stay as they are.

    Examples
    --------
    >>> mirrored("https://huggingface.co/a/b/resolve/main/c.pth", "https://mirror.org/hf/")
    'https://mirror.org/hf/a/b/resolve/main/c.pth'
    """
    if not mirror or not url.startswith(HUB):
        return url
    return f"{mirror.rstrip('/')}/{url.removeprefix(HUB)}"


def _proxies(url: str, proxy: str) -> dict[str, str]:
    """Return the proxy for an address; empty: ``requests`` asks the environment itself."""
    from requests.utils import should_bypass_proxies

    if not proxy or should_bypass_proxies(url, no_proxy=None):
        return {}
    return {"http": proxy, "https": proxy}


def _told(error: Exception, url: str) -> Exception:
    """Return what went wrong in words: to be tried again, or final."""
    from requests import exceptions
    from urllib3.exceptions import ProtocolError, ReadTimeoutError

    host = urlsplit(url).hostname
    if isinstance(error, exceptions.SSLError):
        return DownloadError(
            f"{host} can't be trusted: its certificate is not valid here. Where the network "
            "inspects traffic (hospitals), set REQUESTS_CA_BUNDLE to the file with your "
            "organisation's certificates"
        )
    if isinstance(error, exceptions.ProxyError):
        return DownloadError(
            f"the proxy on the way to {host} refuses or can't be reached; check it in the "
            "settings of the models, or in HTTPS_PROXY. A proxy that asks for a name and password "
            "is written http://name:password@host:port"
        )
    if isinstance(error, (exceptions.Timeout, ReadTimeoutError)):
        return Interrupted(f"{host} does not answer")
    if isinstance(error, (exceptions.InvalidURL, exceptions.InvalidSchema)):
        return DownloadError(f"{url} is no address that can be fetched")
    if isinstance(error, ProtocolError):
        return Interrupted("the connection was lost on the way")
    if isinstance(error, exceptions.ConnectionError):
        return Interrupted(f"{host} can't be reached")
    return Interrupted(f"the connection failed ({type(error).__name__})")
