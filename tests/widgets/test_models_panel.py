"""The Models panel: in a real viewer, with real weights, files and a local web server."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from model_server import FileServer
from panel_hands import pump
from qtpy.QtCore import QMimeData, QPointF, Qt, QTimer, QUrl
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QApplication, QWidget

from napari_openmedlab.models import catalogue, networks
from napari_openmedlab.models.catalogue import checkpoints, get_checkpoint
from napari_openmedlab.models.checkpoints import settings
from napari_openmedlab.models.checkpoints.bundle import SUFFIX
from napari_openmedlab.models.checkpoints.download import Patience

pytestmark = pytest.mark.gui

KEY, FILE = "medlam", "medlam.pth"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The model folder of a test."""
    made = tmp_path / "models"
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(made))
    file = tmp_path / "config" / "models.json"
    monkeypatch.setattr(settings, "settings_file", lambda: file)
    return made


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """MedLAM, untrained, in the layout that is published: 60 MB."""
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("published") / FILE
    state = networks.build(KEY).state_dict()
    torch.save({f"module.{key}": value for key, value in state.items()}, path)
    return path


@pytest.fixture
def panel(viewer):
    _, made = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Models")
    pump()
    return made


@pytest.fixture
def server(weights):
    made = FileServer(weights.read_bytes())
    yield made
    made.close()


@pytest.fixture
def offered(server, monkeypatch):
    """The catalogue says that MedLAM can be fetched from the local server."""
    spec = replace(get_checkpoint(KEY), how="direct", url=f"{server.address}/{FILE}")
    rest = tuple(other for other in catalogue.PUBLISHED if other.id != KEY)
    monkeypatch.setattr(catalogue, "PUBLISHED", (spec, *rest))
    return spec


def quiet(panel):
    return not panel.busy


def wait(qtbot, panel, timeout=30000):
    qtbot.waitUntil(lambda: quiet(panel), timeout=timeout)
    pump()


def status(panel, key):
    return panel.list.table.status(key)


def drop(panel, *paths):
    """Drop files on the panel, as the desktop does."""
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    copy, left = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton
    none = Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(QPointF(20, 20).toPoint(), copy, data, left, none)
    QApplication.sendEvent(panel, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(panel, QDropEvent(QPointF(20, 20), copy, data, left, none))


def import_weights(panel, qtbot, weights):
    """Have MedLAM in the store, imported as a published checkpoint."""
    panel.list.table.select(KEY)
    panel.imports.awaited.add(KEY)
    drop(panel, weights)
    wait(qtbot, panel)
    assert status(panel, KEY) == "ready", panel.work.status.text()


# -- the table ---------------------------------------------------------------------------------


def test_every_published_checkpoint_is_listed_with_its_terms(panel):
    rows = panel.list.table.rows()
    assert [row.key for row in rows] == [spec.id for spec in checkpoints()]
    assert {status(panel, row.key) for row in rows} == {"not here"}
    panel.list.table.select("medlam")
    told = panel.list.details.toPlainText()
    for part in ("CC BY-NC 4.0", "Apache-2.0", "non-commercial", "drive.google.com", "3 mm"):
        assert part in told
    assert panel.actions.download.text() == "Get in browser…"
    assert not panel.actions.remove.isEnabled()


def test_words_of_a_search_narrow_the_table_and_keep_the_selection(panel):
    table = panel.list.table
    table.select("axon-seg-joint")
    panel.list.search.setText("axon dense")
    assert {row.key for row in table.rows()} == {
        "axon-seg-serotonergic-dense",
        "axon-seg-gabaergic-dense",
        "axon-seg-dopaminergic-dense",
    }
    assert table.row is None
    assert panel.list.details.toPlainText() == ""
    panel.list.search.setText("no such model")
    assert table.rows() == []
    panel.list.search.clear()
    assert len(table.rows()) == len(checkpoints())


def test_columns_sort_by_what_they_mean(panel):
    table = panel.list.table
    table.select("medlam")
    table.sortByColumn(2, Qt.SortOrder.DescendingOrder)
    sizes = [row.size for row in table.rows()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 4 * 10**9  # more than Qt's integers hold
    assert table.row.key == "medlam"
    table.sortByColumn(-1, Qt.SortOrder.AscendingOrder)
    assert [row.key for row in table.rows()] == [spec.id for spec in checkpoints()]


# -- downloads ---------------------------------------------------------------------------------


def test_nothing_is_fetched_before_the_licence_is_accepted(panel, offered, server):
    panel.refresh()
    panel.list.table.select(KEY)
    panel.actions.download.click()
    dialog = panel.licence
    assert not dialog.go_on.isEnabled()
    dialog.go_on.click()
    dialog.reject()
    pump(100)
    assert server.ranges == []
    assert panel.licence is None
    assert status(panel, KEY) == "not here"


def test_an_accepted_download_ends_in_a_model_that_loads(panel, offered, server, qtbot):
    panel.refresh()
    panel.list.table.select(KEY)
    panel.actions.download.click()
    panel.licence.accept_box.click()
    panel.licence.go_on.click()
    wait(qtbot, panel)
    assert panel.work.status.severity == "done", panel.work.status.text()
    assert status(panel, KEY) == "ready"
    assert panel.work.bar.isHidden()
    assert len(server.ranges) == 1
    panel.actions.verify.click()
    wait(qtbot, panel)
    assert "is sound" in panel.work.status.text()
    network = panel._shelf.store.load(KEY)
    assert not network.training


def test_a_cancelled_download_says_so_and_goes_on_where_it_stopped(
    panel, offered, server, qtbot, folder
):
    server.pause = 0.02  # long enough to be stopped half-way
    panel.refresh()
    panel.fetch(offered)
    qtbot.waitUntil(lambda: "%" in status(panel, KEY), timeout=10000)
    assert panel.work.bar.isVisibleTo(panel)
    panel.work.cancel.click()
    wait(qtbot, panel)
    assert panel.work.status.text() == "Cancelled: downloading MedLAM."
    assert status(panel, KEY).startswith("partly here: ")
    panel.list.table.select(KEY)
    assert panel.actions.download.text() == "Go on…"
    assert panel.work.cancel.isHidden()
    server.pause = 0.0
    panel.fetch(offered)
    wait(qtbot, panel)
    assert server.ranges[-1].startswith("bytes=")


def test_the_rest_of_a_cancelled_download_can_be_deleted(panel, offered, server, qtbot):
    server.pause = 0.02
    panel.refresh()
    panel.fetch(offered)
    qtbot.waitUntil(lambda: "%" in status(panel, KEY), timeout=10000)
    panel.work.cancel.click()
    wait(qtbot, panel)
    panel.list.table.select(KEY)
    panel.actions.remove.click()
    panel.work.question.buttons[0].click()
    wait(qtbot, panel)
    assert status(panel, KEY) == "not here"
    assert not panel._shelf.partly()


@pytest.mark.parametrize("code", [403, 404, 500])
def test_a_refused_download_is_a_sentence_in_the_panel(panel, offered, server, qtbot, code):
    server.status = code
    panel._shelf.patience = Patience(attempts=2, pause=0.05)
    panel.refresh()
    panel.fetch(offered)
    wait(qtbot, panel, timeout=60000)
    assert panel.work.status.severity == "error"
    assert str(code) in panel.work.status.text()
    assert QApplication.activeModalWidget() is None
    assert status(panel, KEY) == "not here"


def test_a_file_without_a_link_opens_its_page_and_waits(panel, qtbot, monkeypatch, weights):
    opened = []
    open_url = "napari_openmedlab.widgets.models.QDesktopServices.openUrl"
    monkeypatch.setattr(open_url, lambda url: opened.append(url.toString()) or True)
    panel.list.table.select(KEY)
    panel.actions.download.click()
    assert panel.licence.go_on.text() == "Open the page"
    panel.licence.accept_box.click()
    panel.licence.go_on.click()
    assert opened == [get_checkpoint(KEY).page]
    assert status(panel, KEY) == "waiting for the file"
    panel.list.table.select("ft-sam")  # the name of the file says what is meant
    drop(panel, weights)
    wait(qtbot, panel)
    assert status(panel, KEY) == "ready"
    assert panel._shelf.store.get(KEY).checkpoint == KEY


# -- imports -----------------------------------------------------------------------------------


def test_dropped_files_are_imported_one_by_one_and_a_web_page_is_refused(
    panel, qtbot, tmp_path, weights
):
    page = tmp_path / "sam-med2d_b.pth"
    page.write_text("<!DOCTYPE html><html><title>Google Drive - Virus scan</title></html>")
    said = []
    panel.worker.failed.connect(lambda job, error: said.append(str(error)))
    drop(panel, page, weights)
    wait(qtbot, panel)
    assert len(said) == 1
    assert "sam-med2d_b.pth" in said[0]
    assert "web page" in said[0]
    assert QApplication.activeModalWidget() is None
    assert [r.network for r in panel._shelf.store.records()] == [KEY]


def test_a_plan_alone_is_no_model(panel, tmp_path):
    plan = tmp_path / "plans.pkl"
    plan.write_bytes(b"")
    drop(panel, plan)
    assert not panel.busy
    assert "plans.pkl is a plan" in panel.work.status.text()


def test_a_folder_can_be_dropped(panel, qtbot, weights):
    drop(panel, weights.parent)
    wait(qtbot, panel)
    assert status(panel, KEY) == "ready", panel.work.status.text()


def test_a_lone_web_page_is_named_as_one(panel, qtbot, tmp_path):
    page = tmp_path / "sam-med2d_b.pth"
    page.write_text("<!DOCTYPE html><html><title>Google Drive - Virus scan</title></html>")
    drop(panel, page)
    wait(qtbot, panel)
    assert panel.work.status.severity == "error"
    assert "web page" in panel.work.status.text()
    assert "sam-med2d_b.pth" in panel.work.status.text()


def test_twins_are_asked_about_in_the_panel(panel, qtbot, tmp_path):
    torch = pytest.importorskip("torch")
    state = networks.build("medsam", device="meta").state_dict()
    path = tmp_path / "vit_b.pth"
    torch.save({key: torch.zeros(tensor.shape) for key, tensor in state.items()}, path)
    drop(panel, path)
    wait(qtbot, panel)
    question = panel.work.question
    assert question.isVisibleTo(panel)
    assert "vit_b.pth" in question.label.text()
    assert [made.text() for made in question.buttons] == [
        "SAM ViT-B",
        "MedSAM ViT-B",
        "Don't import",
    ]
    question.buttons[1].click()
    wait(qtbot, panel)
    assert question.isHidden()
    assert status(panel, "medsam") == "ready"
    assert status(panel, "sam-vit-b") == "not here"


def test_no_part_of_the_panel_keeps_a_dropped_file_to_itself(panel):
    assert [part for part in panel.findChildren(QWidget) if part.acceptDrops()] == []


def test_text_dragged_over_the_panel_is_left_alone(panel):
    data = QMimeData()
    data.setText("hello")
    event = QDragEnterEvent(
        QPointF(20, 20).toPoint(),
        Qt.DropAction.CopyAction,
        data,
        Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )
    event.ignore()
    QApplication.sendEvent(panel, event)
    assert not event.isAccepted()


def test_the_window_stays_alive_while_a_file_is_imported(panel, qtbot, weights):
    beats = []
    timer = QTimer()
    timer.setInterval(10)
    timer.timeout.connect(lambda: beats.append(time.monotonic()))
    timer.start()
    drop(panel, weights)
    wait(qtbot, panel)
    timer.stop()
    gaps = [b - a for a, b in itertools.pairwise(beats)]
    assert max(gaps) < 1.0  # loading torch's libraries holds Python's lock for 0.2 s


# -- looking after them ------------------------------------------------------------------------


def test_a_changed_file_is_found_damaged_and_can_be_deleted(panel, qtbot, weights):
    import_weights(panel, qtbot, weights)
    path = panel._shelf.store.path(KEY)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    panel.list.table.select(KEY)
    panel.actions.verify.click()
    wait(qtbot, panel)
    assert panel.work.status.severity == "error"
    assert status(panel, KEY) == "damaged"
    panel.actions.remove.click()
    assert "MedLAM" in panel.work.question.label.text()
    panel.work.question.buttons[1].click()  # Keep
    assert status(panel, KEY) == "damaged"
    panel.actions.remove.click()
    panel.work.question.buttons[0].click()
    wait(qtbot, panel)
    assert status(panel, KEY) == "not here"
    assert not path.exists()


def test_a_file_that_went_away_is_called_missing(panel, qtbot, weights):
    import_weights(panel, qtbot, weights)
    panel._shelf.store.path(KEY).unlink()
    panel.refresh()
    assert status(panel, KEY) == "file missing"
    panel.list.only_here.click()
    assert [row.key for row in panel.list.table.rows()] == [KEY]


def test_a_bundle_carries_models_to_another_computer(
    panel, viewer, qtbot, weights, tmp_path, monkeypatch
):
    import_weights(panel, qtbot, weights)
    bundle = tmp_path / f"carried{SUFFIX}"
    ask = "napari_openmedlab.widgets.models.QFileDialog.getSaveFileName"
    monkeypatch.setattr(ask, lambda *a, **k: (str(bundle), ""))
    panel.actions.bundle.click()
    wait(qtbot, panel)
    assert panel.work.status.severity == "done", panel.work.status.text()
    sha256 = panel._shelf.store.get(KEY).sha256
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "hospital"))
    panel.refresh()
    assert status(panel, KEY) == "not here"
    drop(panel, bundle)
    wait(qtbot, panel)
    assert status(panel, KEY) == "ready", panel.work.status.text()
    assert panel._shelf.store.get(KEY).sha256 == sha256


def test_the_environment_goes_before_a_chosen_folder(panel, folder):
    assert panel.folder.folder.text() == str(folder)
    assert not panel.folder.change_folder.isEnabled()
    assert "OPENMEDLAB_MODELS" in panel.folder.change_folder.toolTip()


@pytest.mark.parametrize("moved", [True, False])
def test_the_folder_can_be_changed_and_models_move_along_if_wanted(
    viewer, qtbot, monkeypatch, tmp_path, weights, moved
):
    monkeypatch.delenv("OPENMEDLAB_MODELS")
    _, panel = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Models")
    import_weights(panel, qtbot, weights)
    old = panel._shelf.folder
    other = tmp_path / "elsewhere"
    other.mkdir()
    ask = "napari_openmedlab.widgets.models.QFileDialog.getExistingDirectory"
    monkeypatch.setattr(ask, lambda *a, **k: str(other))
    panel.folder.change_folder.click()
    assert panel.folder.folder.text() == str(other)
    assert status(panel, KEY) == "not here"
    panel.work.question.buttons[0 if moved else 1].click()
    wait(qtbot, panel)
    assert status(panel, KEY) == ("ready" if moved else "not here")
    assert bool(list(old.glob("*.safetensors"))) != moved


def test_mirror_and_proxy_are_kept(panel, viewer, monkeypatch):
    panel.folder.mirror.setText("https://hf-mirror.example")
    panel.folder.proxy.setText("http://proxy.example:3128")
    panel.folder.proxy.editingFinished.emit()
    viewer.window.remove_dock_widget(panel)
    pump(50)
    _, again = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Models")
    assert again.folder.mirror.text() == "https://hf-mirror.example"
    assert again.folder.proxy.text() == "http://proxy.example:3128"


def test_damaged_settings_are_named_and_the_catalogue_is_shown(viewer):
    settings.settings_file().parent.mkdir()
    settings.settings_file().write_text("{", encoding="utf-8")
    _, made = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Models")
    assert made.work.status.severity == "error"
    assert "models.json" in made.work.status.text()
    assert len(made.list.table.rows()) == len(checkpoints())


def test_a_wrong_proxy_is_refused_in_a_sentence(panel):
    panel.folder.proxy.setText("proxy without address")
    panel.folder.proxy.editingFinished.emit()
    assert panel.work.status.severity == "error"
    assert "proxy must be a web address" in panel.work.status.text()


# -- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["dock", "window"])
def test_a_panel_closed_in_the_middle_of_a_download_ends_it(
    panel, viewer, offered, server, qtbot, way, folder
):
    server.pause = 0.02
    panel.refresh()
    panel.fetch(offered)
    qtbot.waitUntil(lambda: "%" in status(panel, KEY), timeout=10000)
    if way == "dock":
        viewer.window.remove_dock_widget(panel)
    else:
        viewer.close()
    qtbot.waitUntil(lambda: not _ours(), timeout=5000)
    assert not list(folder.rglob("*.safetensors"))


def _ours():
    return [t for t in threading.enumerate() if t.name.startswith("openmedlab-models")]


def test_the_menu_command_opens_the_panel(viewer):
    from napari_openmedlab.bridge.commands import open_models_panel

    open_models_panel(viewer)
    pump()
    assert any("Models" in name for name in viewer.window.dock_widgets)


def test_the_panel_loads_no_torch():
    code = (
        "import sys; import napari_openmedlab.widgets.models; "
        "assert 'torch' not in sys.modules and 'safetensors' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_page_names_every_checkpoint_with_its_licence():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for spec in checkpoints():
        (row,) = [line for line in rows if f"`{spec.id}`" in line.split("|")[1]]
        licence = spec.weights_licence.partition(":")[0]
        assert licence in row
        assert ("direct" if spec.how == "direct" else "browser") in row.split("|")[-2]
