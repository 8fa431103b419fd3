"""The Cohort panel in a real window: templates by clicks, a run, the review, the export."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import proportional_localizer
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from small_torsos import save, torso

from napari_openmedlab.bridge.layers import volume_to_layer_data
from napari_openmedlab.bridge.view import show_plane
from napari_openmedlab.cohort.library import Library
from napari_openmedlab.cohort.marks import marks_from_labels
from napari_openmedlab.cohort.results import Results
from napari_openmedlab.cohort.review import Reviewer
from napari_openmedlab.cohort.run import Plan, run_cohort
from napari_openmedlab.cohort.settings import Settings
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.io.api import read, read_labels
from napari_openmedlab.models import catalogue
from napari_openmedlab.training.pairs import pair_folders
from napari_openmedlab.widgets.box_handles import boundary_after, handles_on, outline_on
from napari_openmedlab.widgets.tools import Tool

pytestmark = pytest.mark.gui

ALT = Qt.KeyboardModifier.AltModifier


@pytest.fixture(autouse=True)
def _localizer(monkeypatch):
    monkeypatch.setattr(catalogue, "entry_points", proportional_localizer.points)


@pytest.fixture(scope="module")
def _files(tmp_path_factory):
    """A template scan, three scans and a broken file."""
    folder = tmp_path_factory.mktemp("cohort")
    save(folder / "template.nii.gz", torso(1)[0])
    for seed, size in ((11, 1.0), (12, 0.9), (13, 0.95)):
        save(folder / "scans" / f"case{seed}.nii.gz", torso(seed, size)[0])
    (folder / "scans" / "broken.nii.gz").write_bytes(b"no scan")
    return folder


@pytest.fixture
def files(_files, tmp_path):
    return shutil.copytree(_files, tmp_path / "files")


@pytest.fixture
def make_cohort_panel(qtbot):
    def make(viewer):
        _, panel = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Cohort")
        pump()
        return panel

    return make


def pump(ms=30):
    QTest.qWait(ms)


def wait_for(qtbot, condition, timeout=5000):
    qtbot.waitUntil(condition, timeout=timeout)
    pump()


def click(made):
    QTest.mouseClick(made, Qt.MouseButton.LeftButton)
    pump()


def extremes(mask):
    """Outermost voxels (z, y, x) by the wall they mark, in the order asked for."""
    index = np.argwhere(mask)
    walls = {
        "superior": (0, np.argmin), "inferior": (0, np.argmax), "right": (2, np.argmin),
        "left": (2, np.argmax), "anterior": (1, np.argmin), "posterior": (1, np.argmax),
    }  # fmt: skip
    return {
        wall: tuple(int(v) for v in index[pick(index[:, axis])])
        for wall, (axis, pick) in walls.items()
    }


def marked_library(files):
    labels = torso(1)[1]
    volume = read(files / "template.nii.gz")
    library = Library.create(files / "library")
    library.add(volume, marks_from_labels(labels, {1: "liver", 2: "kidney"}, volume.geometry))
    return library


def run_cohort_in(panel, files, qtbot):
    panel.templates.folder.set_path(files / "library")
    panel.run.scans.set_path(files / "scans")
    panel.run.out.set_path(files / "out")
    panel.run.localizer.choose("proportional")
    panel.run.engine.choose("built-in")
    panel.run.margin.setValue(6.0)
    panel.tabs.setCurrentIndex(1)
    click(panel.run.run)
    wait_for(qtbot, lambda: not panel.run.running, timeout=30_000)


def statuses(table):
    return {table.case_at(r): table.item(r, 3).text() for r in range(table.rowCount())}


def test_from_clicks_on_a_template_to_an_exported_cohort(
    viewer, make_cohort_panel, make_hand, files, qtbot
):
    data, keywords, _ = volume_to_layer_data(read(files / "template.nii.gz"))
    image = viewer.add_image(data, **keywords)
    panel, hand = make_cohort_panel(viewer), make_hand(viewer)
    tab = panel.templates
    tab.folder.set_path(files / "library")
    labels = torso(1)[1]

    # the liver: six clicks on the scan, the words say which comes next
    assert not tab.mark.isEnabled()
    QTest.keyClicks(tab.name, "liver")
    click(tab.mark)
    for word, voxel in extremes(labels == 1).items():
        assert f"the {word} end of 'liver'" in tab.guide.text()
        shown = viewer.canvas.overlays["openmedlab_template"].text
        assert shown.replace("\n", " ") == tab.guide.text()
        assert not tab.add.isEnabled()
        hand.click(image, voxel)
    assert "all six ends are marked" in tab.guide.text()
    click(tab.add)
    wait_for(qtbot, lambda: tab.library.structures == {"liver": 1})
    assert "openmedlab_template" not in viewer.canvas.overlays
    points = tab.library.entries[0].structure("liver").landmarks.points
    index = read(files / "template.nii.gz").geometry.to_index(points)
    truth = np.argwhere(labels == 1)
    assert np.abs(index.min(axis=0) - truth.min(axis=0)).max() <= 1
    assert np.abs(index.max(axis=0) - truth.max(axis=0)).max() <= 1

    # the kidney: from a mask in one click
    masks = viewer.add_labels((labels == 2).astype(np.uint8) * 5, name="masks", scale=image.scale)
    masks.selected_label = 5
    pump()
    tab.name.setText("kidney")
    click(tab.from_object)
    wait_for(qtbot, lambda: tab.library.structures == {"kidney": 1, "liver": 1})
    assert tab.tree.topLevelItemCount() == 1
    viewer.layers.clear()

    # the run: three scans and a broken file, the window stays alive
    run_cohort_in(panel, files, qtbot)
    assert statuses(panel.run.table) == {
        "broken": "failed", "case11": "to review", "case12": "to review", "case13": "to review",
    }  # fmt: skip
    assert "4 cases: 3 done, 1 failed" in panel.status.text()

    # the review: least certain first, by key
    panel.tabs.setCurrentIndex(2)
    desk = panel.review.desk
    order = desk.reviewer.queue()
    hand.key(Qt.Key.Key_N, ALT)
    wait_for(qtbot, lambda: desk.case == order[0])
    assert {o.name for o in desk.session.objects if o.voxels} == {"liver", "kidney"}
    assert desk.handles.points in viewer.layers
    results = Results(files / "out")

    # a wall is dragged in the axial view; on release the liver is segmented anew
    panel.review.structures.select("liver")
    row = results.record(order[0]).structure("liver")
    before = row.box
    slice_shown = round((before.start[0] + before.stop[0] - 1) / 2)
    middle = (before.start[1] + before.stop[1] - 1) / 2
    start = (slice_shown, middle, before.stop[2] - 0.5)
    shown = viewer.layers[order[0]]
    hand.drag(shown, start, (slice_shown, middle, before.stop[2] - 4.5))
    wait_for(qtbot, lambda: results.review(order[0]).walls != {})
    wall = results.review(order[0]).walls["liver"]["left"]
    assert abs(wall - (before.stop[2] - 4)) <= 1
    session = desk.session
    value = row.value
    wait_for(qtbot, lambda: session.get(value).voxels > 0, timeout=10_000)
    right_end = np.argwhere(session.labels == value)[:, 2].max()
    assert right_end < wall + 2  # 6 mm of margin

    hand.key(Qt.Key.Key_A, ALT)
    wait_for(qtbot, lambda: desk.case == order[1], timeout=10_000)
    assert order[0] not in viewer.layers
    assert results.review(order[0]).state == "accepted"
    assert results.review(order[0]).corrected == ("liver",)
    scan = read(files / "scans" / f"{order[0]}.nii.gz")
    kept, _ = read_labels(results.case_folder(order[0]) / "masks.nii.gz", like=scan)
    assert np.argwhere(np.asarray(kept.array) == value)[:, 2].max() == right_end

    hand.key(Qt.Key.Key_S, ALT)
    wait_for(qtbot, lambda: desk.case == order[2])
    hand.key(Qt.Key.Key_R, ALT)
    wait_for(qtbot, lambda: desk.case == order[1])  # the skipped one comes back at the end
    click(panel.review.export)
    wait_for(qtbot, lambda: "Written:" in panel.status.text())
    with (files / "out" / "cohort.csv").open() as file:
        words = {r["case"]: r["review"] for r in csv.DictReader(file) if r["status"] != "failed"}
    assert words == {order[0]: "accepted", order[1]: "skipped", order[2]: "rejected"}


def test_a_case_is_looked_at_corrected_and_put_to_use(
    viewer, make_cohort_panel, make_panel, make_hand, files, qtbot
):
    marked_library(files)
    panel, hand = make_cohort_panel(viewer), make_hand(viewer)
    run_cohort_in(panel, files, qtbot)
    review, desk = panel.review, panel.review.desk
    review.do("following")
    wait_for(qtbot, lambda: desk.case != "")
    case, session = desk.case, desk.session

    # the box follows slice and plane
    review.structures.select("liver")
    box = desk.handles.box
    assert len(desk.handles.points.data) == 4
    viewer.dims.set_current_step(0, box.stop[0] + 1)
    assert len(desk.handles.points.data) == 0
    viewer.dims.set_current_step(0, box.start[0])
    show_plane(viewer, "coronal")
    assert set(desk.handles.points.features["wall"]) == {"S", "I", "R", "L"}
    viewer.dims.ndisplay = 3
    assert len(desk.handles.points.data) == 6
    viewer.dims.ndisplay = 2
    viewer.layers.remove(desk.handles.points)  # by the user: back at the next selection
    review.structures.select("kidney")
    assert desk.handles.points in viewer.layers

    # the Segment panel works on the same session: a click outside corrects the mask
    segment = make_panel(viewer)
    assert segment.session is session
    kidney = next(o for o in session.objects if o.name == "kidney")
    session.set_active(kidney.id)
    show_plane(viewer, "axial")
    centre = np.rint(np.argwhere(session.labels == kidney.id).mean(axis=0)).astype(int)
    segment.controller.choose_tool(Tool.CLICK)
    hand.click(viewer.layers[case], centre, Qt.KeyboardModifier.ShiftModifier)
    wait_for(qtbot, lambda: session.labels[tuple(centre)] != kidney.id, timeout=10_000)

    # what was changed is saved by itself, soon after
    reviewer = desk.reviewer
    desk.saver.start(50)
    wait_for(qtbot, lambda: reviewer.results.review(case).corrected == ("kidney",))
    assert reviewer.open(case)[1][tuple(centre)] != kidney.id

    # one press: accepted, and a template; another: training data
    click(review.template)
    wait_for(qtbot, lambda: len(panel.templates.library.entries) == 2, timeout=10_000)
    assert reviewer.row(case).status == "accepted"
    wait_for(qtbot, lambda: panel.templates.tree.topLevelItemCount() == 2)
    review.training.set_path(files / "training")
    click(review.pair)
    wait_for(qtbot, lambda: "openmedlab finetune" in panel.status.text(), timeout=10_000)
    pairs, left_out = pair_folders(files / "training" / "images", files / "training" / "labels")
    assert [pair.name for pair in pairs] == [case]
    assert left_out == []

    # the next case takes the place of this one, in the Segment panel too
    review.do("following")
    wait_for(qtbot, lambda: desk.case not in ("", case), timeout=10_000)
    wait_for(qtbot, lambda: segment.session is desk.session)
    assert len(panel.workplace.sessions.sessions) == 1


def test_cancel_keeps_what_is_finished_and_run_goes_on(viewer, make_cohort_panel, files, qtbot):
    marked_library(files)
    panel = make_cohort_panel(viewer)
    run = panel.run
    run.localizer.choose("proportional")
    run.localizer.form.input_of("steps").setValue(40)
    run.localizer.form.input_of("pause").setValue(0.02)
    panel.templates.folder.set_path(files / "library")
    run.scans.set_path(files / "scans")
    run.out.set_path(files / "out")
    click(run.run)
    assert not run.run.isEnabled()
    done = lambda: sum(s == "to review" for s in statuses(run.table).values())  # noqa: E731
    wait_for(qtbot, lambda: done() >= 1, timeout=20_000)
    click(run.cancel)
    wait_for(qtbot, lambda: not run.running, timeout=10_000)
    assert "Run goes on" in panel.status.text()
    first = done()
    assert 1 <= first < 3
    click(run.run)
    wait_for(qtbot, lambda: not run.running, timeout=20_000)
    assert f"{first} finished before" in panel.status.text()
    assert done() == 3


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (lambda panel, files: None, "choose a template library"),
        (
            lambda panel, files: panel.templates.folder.set_path(files / "library"),
            "choose the folder with the scans",
        ),
        (
            lambda panel, files: (
                panel.templates.folder.set_path(files / "library"),
                panel.run.scans.set_path(files / "nowhere"),
                panel.run.out.set_path(files / "out"),
            ),
            "does not exist",
        ),
    ],
)
def test_what_is_missing_is_said(viewer, make_cohort_panel, files, qtbot, prepare, text):
    marked_library(files)
    panel = make_cohort_panel(viewer)
    prepare(panel, files)
    panel.run.start()
    wait_for(qtbot, lambda: not panel.run.running)
    assert text in panel.status.text()
    panel.review.do("accept")
    assert "results" in panel.status.text()
    panel.review.out.set_path(files)
    assert "holds no results" in panel.status.text()


def test_a_point_beside_the_scan_is_refused_and_the_points_stay(
    viewer, make_cohort_panel, files, qtbot
):
    data, keywords, _ = volume_to_layer_data(read(files / "template.nii.gz"))
    viewer.add_image(data, **keywords)
    panel = make_cohort_panel(viewer)
    tab = panel.templates
    tab.folder.set_path(files / "new")
    tab.name.setText("liver")
    click(tab.mark)
    for voxel in ((5, 9, 9), (9, 9, 9), (7, 9, -6), (7, 9, 13), (7, 5, 9), (7, 13, 9)):
        tab.marks.layer.add(voxel)
    assert "outside the scan" in tab.guide.text()
    assert not tab.add.isEnabled()
    assert tab.library.entries == ()
    assert len(tab.marks.layer.data) == 6  # nothing the user did is lost


def test_closing_the_dock_in_the_middle_of_a_run_ends_it(viewer, make_cohort_panel, files, qtbot):
    marked_library(files)
    panel = make_cohort_panel(viewer)
    run = panel.run
    panel.templates.folder.set_path(files / "library")
    run.localizer.choose("proportional")
    run.localizer.form.input_of("steps").setValue(5000)
    run.localizer.form.input_of("pause").setValue(0.01)
    run.scans.set_path(files / "scans")
    run.out.set_path(files / "out")
    click(run.run)
    pump(300)
    viewer.window.remove_dock_widget(panel)
    pump()


@pytest.mark.parametrize("close", ["dock", "window"])
def test_what_was_painted_is_saved_when_the_panel_goes(
    viewer, make_cohort_panel, files, qtbot, close
):
    library = marked_library(files)
    settings = Settings("proportional", engine="brittle")
    run_cohort(Plan(files / "scans", files / "out", library.templates(), settings))
    panel = make_cohort_panel(viewer)
    panel.review.out.set_path(files / "out")
    desk = panel.review.desk
    desk.open("case11")
    wait_for(qtbot, lambda: desk.case == "case11")
    layer = panel.workplace.sessions.labels_of(desk.session)
    layer.brush_size = 1
    layer.paint((2, 3, 4), 1)
    pump(100)
    assert desk.session.labels[2, 3, 4] == 1
    handles = desk.handles.points
    if close == "dock":
        viewer.window.remove_dock_widget(panel)
        pump()
        assert handles not in viewer.layers
        assert "case11" in viewer.layers  # the scan and its objects stay
    else:
        viewer.close()
    again = Reviewer(files / "out")
    assert again.open("case11")[1][2, 3, 4] == 1
    assert again.results.review("case11").corrected


# -- boxes on slices -----------------------------------------------------------------------

BOX = Box((4, 8, 10), (9, 20, 26))


def test_a_slice_shows_the_four_walls_that_cut_it():
    places = handles_on(BOX, (0, 6))
    assert set(places) == {"posterior", "right", "anterior", "left"}
    assert np.array_equal(places["left"], (6, 13.5, 25.5))
    assert np.array_equal(places["anterior"], (6, 7.5, 17.5))
    assert handles_on(BOX, (0, 9)) == {}
    assert set(handles_on(BOX, None)) == {*places, "superior", "inferior"}
    assert set(handles_on(BOX, (2, 12))) == {"posterior", "anterior", "superior", "inferior"}


def test_the_outline_runs_along_the_voxels_faces():
    (line,) = outline_on(BOX, (0, 6))
    assert np.array_equal(line[0], line[-1])
    assert np.array_equal(line.min(axis=0), (6, 7.5, 9.5))
    assert np.array_equal(line.max(axis=0), (6, 19.5, 25.5))
    assert outline_on(BOX, (0, 3)) == []
    edges = outline_on(BOX, None)
    assert len(edges) == 12
    assert np.array_equal(np.concatenate(edges).max(axis=0), np.array(BOX.stop) - 0.5)


@pytest.mark.parametrize(
    ("wall", "place", "boundary"),
    [
        ("left", 25.5, 26), ("left", 22.4, 23), ("left", 99.0, 30), ("left", 2.0, 11),
        ("right", 9.5, 10), ("right", -7.0, 0), ("right", 40.0, 25), ("superior", 1.6, 2),
    ],
)  # fmt: skip
def test_a_wall_snaps_to_a_face_inside_the_scan(wall, place, boundary):
    assert boundary_after(BOX, wall, place, (20, 30, 30)) == boundary
