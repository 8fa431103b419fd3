"""Make the screenshots of the Cohort panel: a template being marked, a case under review.

Usage: ``python tools/cohort_pictures.py`` on a machine with a screen, or under ``xvfb-run -a -s
"-screen 0 1600x1000x24"``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

SETTINGS = tempfile.TemporaryDirectory()  # neither reads nor writes the user's settings
os.environ["NAPARI_CONFIG"] = str(Path(SETTINGS.name) / "settings.yaml")
os.environ["XDG_DATA_HOME"] = os.environ["HOME"] = SETTINGS.name
os.chdir(SETTINGS.name)  # the panel shows paths as they are given: short ones, no machine's

import napari  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from qtpy.QtTest import QTest  # noqa: E402

from napari_openmedlab.bridge.layers import volume_to_layer_data  # noqa: E402
from napari_openmedlab.cohort.library import Library  # noqa: E402
from napari_openmedlab.cohort.marks import marks_from_labels  # noqa: E402
from napari_openmedlab.io.api import read, read_labels  # noqa: E402
from napari_openmedlab.sample_data.cohort import SampleCohort, make_cohort  # noqa: E402
from napari_openmedlab.widgets.cohort import CohortWidget  # noqa: E402

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def shoot(viewer: napari.Viewer, name: str) -> None:
    """Save the window as a small PNG."""
    QTest.qWait(800)
    pixels = np.asarray(viewer.screenshot(canvas_only=False, flash=False))[..., :3]
    picture = Image.fromarray(pixels).quantize(128, dither=Image.Dither.NONE)
    picture.save(IMAGES / f"{name}.png", optimize=True)


def wait(condition: object, what: str) -> None:
    """Wait until something holds, two minutes at most."""
    for _ in range(1200):
        QTest.qWait(100)
        if condition():  # type: ignore[operator]
            return
    raise SystemExit(f"waited in vain for {what}")


def extremes(mask: np.ndarray) -> list[np.ndarray]:
    """Return the outermost voxels in the order asked for: S, I, R, L, A, P."""
    index = np.argwhere(mask)
    picks = [(axis, pick) for axis in (0, 2, 1) for pick in (np.argmin, np.argmax)]
    return [index[pick(index[:, axis])] for axis, pick in picks]


def mark_and_shoot(viewer: napari.Viewer, panel: CohortWidget, made: SampleCohort) -> None:
    """Mark the liver on the template by its points; three organs are in the library already."""
    scan = read(made.template)
    labels, objects = read_labels(made.labels, like=scan)
    array = np.asarray(labels.array)
    names = {value: info.name for value, info in objects.items()}
    library = Library.create("cohort/library")
    others = {value: name for value, name in names.items() if name != "liver"}
    library.add(scan, marks_from_labels(array, others, scan.geometry), title="first")
    data, keywords, _ = volume_to_layer_data(scan)
    viewer.add_image(data, **{**keywords, "name": "template"})
    tab = panel.templates
    tab.folder.set_path("cohort/library")
    panel.status.say("Four structures are enough to start with.")
    tab.name.setText("liver")
    tab.mark.setChecked(True)
    points = extremes(array == next(value for value, name in names.items() if name == "liver"))
    for point in points[:5]:
        tab.marks.layer.add(point)
    viewer.dims.set_current_step(0, int(points[4][0]))
    tab.marks.layer.selected_data = set()
    shoot(viewer, "cohort_templates")
    tab.marks.layer.add(points[5])
    tab.add.click()
    wait(lambda: "liver" in tab.library.structures, "the library")
    viewer.layers.clear()


def main() -> None:
    """Take all pictures."""
    made = make_cohort("cohort")
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1500, 950)
    panel = CohortWidget(viewer)
    viewer.window.add_dock_widget(panel, name="Cohort (OpenMedLab)")
    mark_and_shoot(viewer, panel, made)

    panel.tabs.setCurrentIndex(1)
    panel.run.scans.set_path("cohort/scans")
    panel.run.out.set_path("cohort/results")
    panel.run.localizer.choose("atlas")
    panel.run.start()
    wait(lambda: not panel.run.running, "the run")

    panel.tabs.setCurrentIndex(2)
    panel.review.do("following")
    wait(lambda: panel.review.desk.case, "the case")
    panel.review.structures.select("liver")
    shoot(viewer, "cohort_review")
    panel.tabs.setCurrentIndex(1)
    shoot(viewer, "cohort_run")
    viewer.close()


if __name__ == "__main__":
    main()
