"""Fixtures for all tests: real scans, own settings, a phantom, and a look-out for threads."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
OUR_THREADS = "openmedlab"
WINDOW_FIXTURES = {"qtbot", "qapp", "make_napari_viewer", "make_napari_viewer_proxy"}


def _has_display() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that needs Qt: forgetting the marker would abort a run without a display."""
    for item in items:
        if WINDOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.gui)


def pytest_collection_finish() -> None:
    """Leave what the imports made out of later collections, which every napari test asks for."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep tests that open a window from aborting the process where there is no display."""
    if item.get_closest_marker("gui") is None or _has_display():
        return
    reason = "GUI TEST NOT RUN: no display (install Xvfb, or set DISPLAY)"
    if os.environ.get("REQUIRE_GUI") == "1":
        pytest.fail(f"{reason}, and REQUIRE_GUI=1 asks for one", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans, which are not part of the repository."""
    given = os.environ.get("OPENMEDLAB_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real scans: set OPENMEDLAB_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def full_golden() -> Path:
    """The full set of golden files; ``tests/golden`` holds what fits into the repository."""
    given = os.environ.get("OPENMEDLAB_GOLDEN")
    folder = Path(given) if given else ROOT.parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip("no full golden set: set OPENMEDLAB_GOLDEN to its folder")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The golden files that are part of the repository."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def _stand_in_store(tmp_path_factory):
    pytest.importorskip("torch", reason="networks need the extra 'models'")
    from stand_in_models import StandIns

    return StandIns(tmp_path_factory.mktemp("models"))


@pytest.fixture
def stand_ins(_stand_in_store, monkeypatch):
    """A model store in force for this test; ``add(network)`` puts stand-in weights into it."""
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(_stand_in_store.folder))
    return _stand_in_store


@pytest.fixture(autouse=True, scope="session")
def _napari_config(tmp_path_factory):
    """napari's settings live in a temporary folder: no test reads or writes the user's."""
    before = os.environ.get("NAPARI_CONFIG")
    os.environ["NAPARI_CONFIG"] = str(tmp_path_factory.mktemp("napari") / "settings.yaml")
    yield
    if before is None:
        os.environ.pop("NAPARI_CONFIG", None)
    else:
        os.environ["NAPARI_CONFIG"] = before


@pytest.fixture(autouse=True)
def _user_folders(tmp_path_factory, monkeypatch):
    """Autosaves and caches of a test go to a folder of its own, on every system."""
    home = tmp_path_factory.mktemp("home")
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "LOCALAPPDATA", "APPDATA"):
        monkeypatch.setenv(name, str(home / name.lower()))
    monkeypatch.delenv("OPENMEDLAB_MODELS", raising=False)


@pytest.fixture(autouse=True)
def _no_thread_left():
    """A test must end the worker and autosave threads it started."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5.0
    while left := _our_threads() - before:
        if time.monotonic() > deadline:
            pytest.fail(f"threads still running: {sorted(t.name for t in left)}")
        time.sleep(0.02)


def _our_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith(OUR_THREADS)}


@pytest.fixture
def marked_volume():
    """An asymmetric patient volume: what lies superior, anterior and left can be told apart.

    Display order (I, P, L), 3 x 2 x 1.5 mm. A grey body (30) with three bright blocks:
    superior 100, anterior 80, left 90.
    """
    from napari_openmedlab.geometry.volume import Geometry, Volume

    affine = [[0, 0, 1.5, -31], [0, 2, 0, -42], [-3, 0, 0, 57], [0, 0, 0, 1]]
    array = np.zeros((22, 34, 46), dtype=np.int16)
    array[3:19, 4:30, 5:41] = 30
    array[3:6, 13:21, 19:27] = 100
    array[10:13, 4:8, 19:27] = 80
    array[10:13, 13:21, 36:41] = 90
    return Volume(array, Geometry(array.shape, affine), name="phantom", modality="MR")
