"""Downloads against a server that drops, lies, refuses and redirects; loopback only."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import flaky_server as server_that
import numpy as np
import pytest
from flaky_server import FlakyServer, serving
from model_files import save_medlam

from napari_openmedlab.errors import (
    Cancelled,
    CheckpointError,
    DownloadError,
    SettingsError,
    WriteError,
)
from napari_openmedlab.models.catalogue import get_checkpoint
from napari_openmedlab.models.checkpoints import disk
from napari_openmedlab.models.checkpoints.download import (
    Patience,
    Source,
    discard,
    download,
    fetch,
    unfinished,
)
from napari_openmedlab.models.checkpoints.http_source import mirrored, next_address
from napari_openmedlab.models.checkpoints.locks import locked
from napari_openmedlab.models.checkpoints.settings import ModelSettings
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor, Progress

QUICK = Patience(attempts=3, pause=0.01)
CONTENT = np.random.default_rng(4).bytes(400_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server():
    with serving(CONTENT) as flaky:
        yield flaky


def source_of(server: FlakyServer, **more) -> Source:
    return Source(f"{server.url}/w.pth", "Weights", page="https://example.org/page", **more)


def get(server: FlakyServer, folder: Path, monitor: Monitor | None = None, **more) -> Path:
    return fetch(source_of(server, **more), folder / "w.pth", "", monitor, QUICK)


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- that end well -----------------------------------------------------------------------------


def test_a_file_comes_whole_with_its_bytes_reported(server, tmp_path):
    reports: list[Progress] = []
    path = get(server, tmp_path, Monitor(reports.append, interval=0), sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert not (tmp_path / "w.pth.part").exists()
    bytes_done = [r.done for r in reports if r.total == len(CONTENT)]
    assert bytes_done == sorted(bytes_done)
    assert bytes_done[-1] == len(CONTENT)
    assert any("400 kB" in r.text and "/s" in r.text for r in reports)


def test_a_dropped_connection_goes_on_where_it_stopped(server, tmp_path):
    server.script = [server_that.dropping(0.5), server_that.dropping(0.5), server_that.ok]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges() == ["", "bytes=200000-", "bytes=300000-"]
    assert server.asked[1][1]["If-Range"] == '"one"'


def test_a_later_call_goes_on_with_what_an_earlier_one_left(server, tmp_path):
    server.script = [server_that.dropping(0.4), server_that.status(503)]
    with pytest.raises(DownloadError, match="goes on from 160 kB"):
        get(server, tmp_path)
    assert left_in(tmp_path) == {"w.pth.part", "w.pth.part.json"}
    server.script = [server_that.ok]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges()[-1] == "bytes=160000-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    server.script = [server_that.dropping(0.5), server_that.status(404)]
    with pytest.raises(DownloadError):
        get(server, tmp_path)
    server.content, server.etag = CONTENT[::-1], '"two"'
    server.script = [server_that.ok]
    assert get(server, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_part_of_another_address_is_not_continued(server, tmp_path):
    server.script = [server_that.dropping(0.5), server_that.status(404)]
    with pytest.raises(DownloadError):
        get(server, tmp_path)
    server.script = [server_that.ok]
    other = Source(f"{server.url}/other.pth", "Other")
    assert fetch(other, tmp_path / "w.pth", "", None, QUICK).read_bytes() == CONTENT
    assert server.ranges()[-1] == ""


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_sure_sign_that_the_file_is_the_same_it_starts_again(server, tmp_path, etag):
    server.etag = etag
    server.script = [server_that.dropping(0.5), server_that.ok]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges() == ["", ""]


def test_a_server_that_ignores_ranges_is_asked_from_the_start(server, tmp_path):
    server.script = [server_that.dropping(0.5), server_that.ignoring_range]
    assert get(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT


def test_a_wrong_part_is_not_appended(server, tmp_path):
    server.script = [server_that.dropping(0.5), server_that.wrong_part, server_that.ok]
    assert get(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT
    assert server.ranges() == ["", "bytes=200000-", ""]


def test_a_complete_part_is_not_fetched_again(server, tmp_path):
    get(server, tmp_path)
    get(server, tmp_path)
    assert server.ranges() == ["", f"bytes={len(CONTENT)}-"]
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(server, tmp_path, code):
    server.script = [server_that.status(code), server_that.status(code), server_that.ok]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_the_server_may_ask_for_a_pause(server, tmp_path):
    server.script = [server_that.status(503, Retry_After="1"), server_that.ok]
    began = time.monotonic()
    get(server, tmp_path)
    assert time.monotonic() - began >= 1.0


def test_a_file_of_unstated_length_comes_whole(server, tmp_path):
    server.script = [server_that.without_length]
    assert get(server, tmp_path, sha256=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed_relative_ones_too(server, tmp_path, code):
    server.script = [server_that.redirect("/elsewhere/w.pth?x=1", code), server_that.ok]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1][0] == "/elsewhere/w.pth?x=1"


# -- that end in a sentence --------------------------------------------------------------------


@pytest.mark.parametrize(("code", "words"), [(403, "login"), (404, "moved it"), (410, "any more")])
def test_a_refusal_is_final_and_names_the_way_out(server, tmp_path, code, words):
    server.script = [server_that.status(code)]
    with pytest.raises(DownloadError, match=words) as caught:
        get(server, tmp_path)
    assert "https://example.org/page" in str(caught.value)
    assert len(server.asked) == 1
    assert not (tmp_path / "w.pth").exists()


def test_a_server_that_stays_in_trouble_is_given_up(server, tmp_path):
    server.script = [server_that.status(500)]
    with pytest.raises(DownloadError, match=r"answer 500\) \(3 attempts\)"):
        get(server, tmp_path)
    assert len(server.asked) == 3


def test_a_wrong_length_is_given_up_and_no_file_appears(server, tmp_path):
    server.script = [server_that.longer_than_sent()]
    with pytest.raises(DownloadError, match="3 attempts"):
        get(server, tmp_path)
    assert not (tmp_path / "w.pth").exists()


def test_another_length_than_the_published_one_is_refused(server, tmp_path):
    with pytest.raises(DownloadError, match="offers 400000 bytes, published are 5"):
        get(server, tmp_path, size=5)
    assert left_in(tmp_path) == set()


def test_a_wrong_hash_is_refused_and_nothing_is_kept(server, tmp_path):
    with pytest.raises(DownloadError, match="not the published file") as caught:
        get(server, tmp_path, sha256="0" * 64)
    assert SHA256 in str(caught.value)
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize("right", [True, False])
def test_the_hash_that_the_hub_states_is_checked(server, tmp_path, right):
    stated = SHA256 if right else "1" * 64
    first = server_that.redirect("/cdn/w", X_Linked_ETag=f'"{stated}"', X_Linked_Size="400000")
    server.script = [first, server_that.ok]
    if right:
        assert get(server, tmp_path).read_bytes() == CONTENT
    else:
        with pytest.raises(DownloadError, match="not the published file"):
            get(server, tmp_path)


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_not_taken_for_weights(server, tmp_path, kind):
    server.script = [server_that.page(kind)]
    with pytest.raises(DownloadError, match="web page came instead"):
        get(server, tmp_path)
    assert not (tmp_path / "w.pth").exists()


def test_a_login_page_half_way_does_not_cost_what_came_before(server, tmp_path):
    server.script = [server_that.dropping(0.5), server_that.page()]
    with pytest.raises(DownloadError, match="web page"):
        get(server, tmp_path)
    server.script = [server_that.ok]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges()[-1] == "bytes=200000-"


def test_a_packed_answer_is_refused(server, tmp_path):
    server.script = [server_that.with_headers(Content_Encoding="gzip")]
    with pytest.raises(DownloadError, match="packed"):
        get(server, tmp_path)


def test_redirects_without_end_are_given_up(server, tmp_path):
    server.script = [server_that.redirect("/again")]
    with pytest.raises(DownloadError, match="without end"):
        get(server, tmp_path)
    assert len(server.asked) == 11


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/w.pth", "file:///etc/passwd", "", "data:,x"])
def test_redirects_away_from_the_web_are_not_followed(server, tmp_path, location):
    server.script = [server_that.redirect(location)]
    with pytest.raises(DownloadError, match="can't be fetched"):
        get(server, tmp_path)


def test_redirects_from_https_to_http_are_not_followed():
    with pytest.raises(DownloadError, match="unprotected address"):
        next_address("https://example.org/w.pth", "http://example.org/w.pth")
    there = next_address("https://example.org/a/w.pth", "//cdn.example.org/b")
    assert there == "https://cdn.example.org/b"
    assert next_address("http://example.org/w", "https://example.org/w").startswith("https:")


def test_nobody_there_is_a_sentence(tmp_path):
    with serving() as gone:
        pass
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1 can't be reached"):
        get(gone, tmp_path)


def test_a_full_disk_is_noticed_before_it_is(server, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_SPARE", 2**60)
    with pytest.raises(WriteError, match="disk is too full"):
        get(server, tmp_path)
    assert not (tmp_path / "w.pth").exists()


# -- cancel ------------------------------------------------------------------------------------


def test_a_cancel_keeps_what_came_for_later(server, tmp_path):
    server.content = CONTENT * 20
    monitor = Monitor(interval=0)
    monitor._on_progress = lambda report: monitor.cancel() if report.done > 10**6 else None
    with pytest.raises(Cancelled):
        get(server, tmp_path, monitor)
    came = (tmp_path / "w.pth.part").stat().st_size
    assert came > 10**6
    assert get(server, tmp_path).read_bytes() == server.content
    assert server.ranges()[-1] == f"bytes={came}-"


@pytest.mark.parametrize("before_headers", [True, False])
def test_a_cancel_does_not_wait_for_a_server_that_says_nothing(server, tmp_path, before_headers):
    server.script = [server_that.stalling(before_headers)]
    monitor = Monitor()
    timer = threading.Timer(0.4, monitor.cancel)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        get(server, tmp_path, monitor)
    assert time.monotonic() - began < 3.0
    server.let_go.set()
    timer.join()


def test_a_cancel_ends_the_pause_between_attempts(server, tmp_path):
    server.script = [server_that.status(503, Retry_After="30")]
    monitor = Monitor()
    timer = threading.Timer(0.3, monitor.cancel)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        get(server, tmp_path, monitor)
    assert time.monotonic() - began < 5.0
    timer.join()


# -- mirror and proxy --------------------------------------------------------------------------

HUB_URL = get_checkpoint("sam-med3d-turbo").url


def test_a_mirror_stands_for_hugging_face_only():
    path = "blueyo0/SAM-Med3D/resolve/main/sam_med3d_turbo.pth"
    assert mirrored(HUB_URL, "http://mirror.local/hf/") == f"http://mirror.local/hf/{path}"
    assert mirrored(HUB_URL, "") == HUB_URL
    meta = get_checkpoint("sam-vit-b").url
    assert mirrored(meta, "http://mirror.local") == meta


def test_a_proxy_from_the_settings_is_used(server, tmp_path):
    source = Source("http://models.invalid/w.pth", "Weights")
    fetch(source, tmp_path / "w.pth", server.url, None, QUICK)
    assert server.asked[0][0] == "http://models.invalid/w.pth"


def test_a_proxy_from_the_environment_is_used_and_its_exceptions_kept(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("HTTP_PROXY", server.url)
    source = Source("http://models.invalid/w.pth", "Weights")
    fetch(source, tmp_path / "w.pth", "", None, QUICK)
    assert server.asked[0][0] == "http://models.invalid/w.pth"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    get(server, tmp_path)
    assert server.asked[-1][0] == "/w.pth"
    fetch(source_of(server), tmp_path / "x.pth", "http://nobody.invalid:1", None, QUICK)
    assert server.asked[-1][0] == "/w.pth"


def test_a_proxy_that_asks_for_a_password_is_a_sentence(server, tmp_path):
    server.script = [server_that.status(407)]
    source = Source("http://models.invalid/w.pth", "Weights")
    with pytest.raises(DownloadError, match="name and password"):
        fetch(source, tmp_path / "w.pth", server.url, None, QUICK)


def test_a_dead_proxy_is_a_sentence(tmp_path):
    with serving() as gone:
        pass
    source = Source("http://models.invalid/w.pth", "Weights")
    with pytest.raises(DownloadError, match="proxy"):
        fetch(source, tmp_path / "w.pth", gone.url, None, QUICK)


@pytest.mark.parametrize("address", ["mirror.org", "ftp://mirror.org", "http://", "http://a:b:c"])
def test_settings_refuse_what_is_no_address(address):
    with pytest.raises(SettingsError, match="web address"):
        ModelSettings(mirror=address)


# -- a checkpoint, from the click to the model folder ------------------------------------------


@pytest.fixture(scope="module")
def medlam_bytes(tmp_path_factory) -> bytes:
    return save_medlam(tmp_path_factory.mktemp("published") / "medlam.pth").read_bytes()


def as_direct(server: FlakyServer, **more):
    """MedLAM as if its publisher had a direct link."""
    return replace(get_checkpoint("medlam"), how="direct", url=f"{server.url}/medlam.pth", **more)


def test_a_download_ends_in_the_model_folder_and_is_not_repeated(server, tmp_path, medlam_bytes):
    server.content = medlam_bytes
    server.script = [server_that.dropping(0.5), server_that.ok]
    store = ModelStore(tmp_path / "models")
    record = download(as_direct(server), store, ModelSettings(), None, QUICK)
    assert (record.name, record.checkpoint, record.network) == ("medlam", "medlam", "medlam")
    assert record.source_name == "medlam.pth"
    assert record.source_sha256 == hashlib.sha256(medlam_bytes).hexdigest()
    assert store.load("medlam") is not None
    assert not list((tmp_path / "models" / ".downloads").glob("medlam/*"))
    asked = len(server.asked)
    assert download(as_direct(server), store, ModelSettings(), None, QUICK) == record
    assert len(server.asked) == asked


def test_a_cancelled_download_is_listed_continued_and_can_be_thrown_away(
    server, tmp_path, medlam_bytes
):
    server.content = medlam_bytes
    store = ModelStore(tmp_path)
    monitor = Monitor(interval=0)
    monitor._on_progress = lambda report: monitor.cancel() if report.done > 10**7 else None
    with pytest.raises(Cancelled):
        download(as_direct(server), store, ModelSettings(), monitor, QUICK)
    assert 10**7 < unfinished(store)["medlam"] < len(medlam_bytes)
    assert store.entries() == ()
    discard("medlam", store)
    assert unfinished(store) == {}
    download(as_direct(server), store, ModelSettings(), None, QUICK)
    assert server.ranges() == ["", ""]


def test_a_cancel_while_importing_keeps_the_download(server, tmp_path, medlam_bytes):
    server.content = medlam_bytes
    store = ModelStore(tmp_path)
    monitor = Monitor(interval=0)
    monitor._on_progress = lambda report: monitor.cancel() if report.text == "writing" else None
    with pytest.raises(Cancelled):
        download(as_direct(server), store, ModelSettings(), monitor, QUICK)
    assert store.entries() == ()
    download(as_direct(server), store, ModelSettings(), None, QUICK)
    assert server.ranges() == ["", f"bytes={len(medlam_bytes)}-"]
    assert store.get("medlam")


def test_what_is_no_checkpoint_is_deleted_again(server, tmp_path):
    store = ModelStore(tmp_path)
    with pytest.raises(CheckpointError, match="downloaded file was deleted"):
        download(as_direct(server), store, ModelSettings(), None, QUICK)
    assert unfinished(store) == {}
    assert store.entries() == ()
    assert not list(tmp_path.glob("**/medlam.pth*"))


def test_two_programs_do_not_fetch_the_same_file(server, tmp_path):
    folder = tmp_path / ".downloads"
    folder.mkdir()
    with locked(folder / "medlam.lock", "busy"), pytest.raises(WriteError, match="another program"):
        download(as_direct(server), ModelStore(tmp_path), ModelSettings(), None, QUICK)
    assert server.asked == []


def test_a_taken_name_is_noticed_before_anything_is_fetched(server, tmp_path):
    store = ModelStore(tmp_path / "models")
    store.import_file(save_medlam(tmp_path / "mine.pth", "other"), "medlam", "medlam")
    record = store.get("medlam")
    path = tmp_path / "models" / "medlam.json"
    path.write_text(json.dumps({**record.as_json(), "checkpoint": ""}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="already is a model 'medlam'"):
        download(as_direct(server), store, ModelSettings(), None, QUICK)
    assert server.asked == []


def test_a_file_without_a_stable_link_is_left_to_the_user(tmp_path):
    with pytest.raises(DownloadError, match=r"drive\.google\.com") as caught:
        download(get_checkpoint("medlam"), ModelStore(tmp_path), ModelSettings())
    assert "--as medlam" in str(caught.value)
