"""Make the documentation's screenshots: a real window, the real panels, the samples.

Usage: ``python tools/make_screenshots.py`` on a machine with a screen, or under ``xvfb-run -a -s
"-screen 0 1600x1000x24"``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

SETTINGS = tempfile.TemporaryDirectory()  # neither reads nor writes the user's settings
os.environ["NAPARI_CONFIG"] = str(Path(SETTINGS.name) / "settings.yaml")
os.environ["XDG_DATA_HOME"] = os.environ["HOME"] = SETTINGS.name

import napari  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from qtpy.QtTest import QTest  # noqa: E402

from napari_openmedlab.bridge.layers import spatial, volume_to_layer_data  # noqa: E402
from napari_openmedlab.geometry.prompts import BoxPrompt, PromptSet, as_point  # noqa: E402
from napari_openmedlab.sample_data import extreme_points, load, prompts_path  # noqa: E402
from napari_openmedlab.widgets.export import ExportWidget  # noqa: E402
from napari_openmedlab.widgets.models import ModelsWidget  # noqa: E402
from napari_openmedlab.widgets.segment import SegmentWidget  # noqa: E402
from napari_openmedlab.widgets.tools import Tool  # noqa: E402

ORGANS = ("liver", "spleen", "kidney right", "kidney left", "stomach", "gallbladder")
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def open_panel(sample: str) -> tuple[napari.Viewer, SegmentWidget]:
    """Return a window with the sample and the Segment panel."""
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1500, 950)
    data, keywords, _ = volume_to_layer_data(load(sample)[0])
    viewer.add_image(data, **keywords)
    panel = SegmentWidget(viewer)
    viewer.window.add_dock_widget(panel, name="Segment (OpenMedLab)")
    QTest.qWait(500)
    return viewer, panel


def wait_for_answer(panel: SegmentWidget) -> None:
    """Wait until every object that has prompts has its mask."""
    for _ in range(300):
        QTest.qWait(100)
        session = panel.session
        if session is not None and all(o.voxels for o in session.objects if o.prompts.has_positive):
            return
    raise SystemExit("the engine gave no answer")


def shoot(viewer: napari.Viewer, name: str) -> None:
    """Save the window as a small PNG."""
    QTest.qWait(500)
    pixels = np.asarray(viewer.screenshot(canvas_only=False, flash=False))[..., :3]
    Image.fromarray(pixels).save(IMAGES / f"{name}.png", optimize=True)


def show_extreme_point(viewer: napari.Viewer, panel: SegmentWidget) -> None:
    """Go to the axial slice of the rightmost extreme point of the active object."""
    session = panel.session
    rightmost = min(session.active.prompts.extreme_points)  # LPS x grows to the left
    viewer.dims.set_current_step(0, round(session.volume.geometry.to_index(rightmost)[0]))


def ct_pictures() -> None:
    """Show five organs of the CT in three planes, in 3D, and the Export panel."""
    viewer, panel = open_panel("ct_torso")
    panel.load_prompts(prompts_path("ct_torso"))
    wait_for_answer(panel)
    panel.session.set_active(panel.session.objects[0].id)
    panel.prompts.tools[Tool.EXTREME].click()
    for plane in ("axial", "coronal", "sagittal", "3d"):
        panel.image.views[plane].click()
        panel.objects.jump.click()
        viewer.reset_view()
        if plane == "axial":
            show_extreme_point(viewer, panel)
        if plane == "3d":  # from the front and a little from the left, head up
            viewer.scene.camera.set_view_direction((0.1, 1, -0.35), up_direction=(-1, 0, 0))
        shoot(viewer, f"segment_{plane}")
    panel.image.views["axial"].click()
    panel.objects.jump.click()
    viewer.window.add_dock_widget(ExportWidget(viewer), name="Export (OpenMedLab)", tabify=True)
    shoot(viewer, "export")
    viewer.close()


def mr_picture() -> None:
    """Show the MR with a locked spleen and a kidney from a click."""
    viewer, panel = open_panel("mr_abdomen")
    volume, labels, names = load("mr_abdomen")
    value = {name: number for number, name in names.items()}
    session = panel.session
    spleen = session.active or session.add_object()
    session.update_object(spleen.id, name="spleen")
    session.set_prompts(
        PromptSet(tuple(extreme_points(labels, value["spleen"], volume.geometry))), spleen.id
    )
    panel.run.run.click()
    wait_for_answer(panel)
    panel.objects.accept.click()
    session.update_object(session.active_id, name="kidney left")
    panel.prompts.tools[Tool.CLICK].click()
    middle = np.argwhere(labels == value["kidney left"]).mean(axis=0)
    session.set_prompts(session.active.prompts.with_click(volume.geometry.to_world(middle)))
    panel.run.run.click()
    wait_for_answer(panel)
    panel.objects.jump.click()
    viewer.reset_view()
    shoot(viewer, "tutorial_mr")
    viewer.close()


def models_pictures() -> None:
    """Show the Models panel with one model imported (untrained), and a licence to accept."""
    import torch

    from napari_openmedlab.models import networks

    weights = Path(SETTINGS.name) / "medlam.pth"
    torch.save(networks.build("medlam").state_dict(), weights)
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1500, 950)
    panel = ModelsWidget()
    viewer.window.add_dock_widget(panel, name="Models (OpenMedLab)")
    panel.take([weights])
    for _ in range(300):
        QTest.qWait(100)
        if not panel.busy:
            break
    panel.list.table.select("sam-med3d-turbo")
    QTest.qWait(500)
    panel.grab().save(str(IMAGES / "models.png"))
    panel.list.table.select("medsam")
    panel.actions.download.click()
    QTest.qWait(300)
    panel.licence.grab().save(str(IMAGES / "models_licence.png"))
    panel.licence.reject()
    viewer.close()


def bring_untrained(network: str, name: str) -> None:
    """Put a network with random numbers for weights into the model folder, named as such."""
    import torch

    from napari_openmedlab.models import networks
    from napari_openmedlab.models.checkpoints.store import ModelStore

    torch.manual_seed(4)
    weights = Path(SETTINGS.name) / f"{name}.pth"
    torch.save(networks.build(network).state_dict(), weights)
    ModelStore().import_file(weights, name, as_=network)
    weights.unlink()


def choose_engine(panel: SegmentWidget, title: str) -> None:
    """Choose the first engine whose title begins so, as a user does."""
    box = panel.engine.choice
    row = next(n for n in range(box.count()) if box.itemText(n).startswith(title))
    box.setCurrentIndex(row)
    box.activated.emit(row)
    QTest.qWait(300)


def click_in(panel: SegmentWidget, labels: np.ndarray, value: int) -> None:
    """Give the active object a click in the middle of a structure of the sample."""
    session = panel.session
    places = np.argwhere(labels == value)
    middle = places[np.linalg.norm(places - places.mean(axis=0), axis=1).argmin()]
    point = session.volume.geometry.to_world(middle)
    panel.controller.set_prompts(session.get().prompts.with_click(point))


def prompt_pictures() -> None:
    """Show a missing model, SAM-Med3D with weights that are random numbers, many at once."""
    viewer, panel = open_panel("ct_torso")
    volume, labels, names = load("ct_torso")
    value = {name: number for number, name in names.items()}
    panel.session.add_object("spleen")
    choose_engine(panel, "SAM-Med3D")
    panel.prompts.tools[Tool.CLICK].click()
    click_in(panel, labels, value["spleen"])
    panel.objects.jump.click()
    shoot(viewer, "prompt_missing_model")
    bring_untrained("sam-med3d", "untrained")
    wait_for_engine(panel)
    panel.engine.more.click()
    panel.objects.jump.click()
    viewer.reset_view()
    shoot(viewer, "prompt_sam_med3d")
    panel.objects.delete.click()
    panel.engine.more.click()
    choose_engine(panel, "Built-in")
    panel.image.views["coronal"].click()
    organs = {name: number for name, number in value.items() if name in ORGANS}
    layer = viewer.add_shapes(
        [face for number in organs.values() for face in faces_of(labels == number)],
        shape_type="rectangle",
        face_color="transparent",
        name="one box per organ",
        features={"name": [name for name in organs for _ in range(2)]},
        **spatial(volume.geometry),
    )
    panel.take_prompts_of(layer)
    wait_for_answer(panel)
    panel.objects.jump.click()
    shoot(viewer, "prompt_many")
    viewer.close()


def slices_picture() -> None:
    """Show SAM-Med2D, with weights that are random numbers, on a coronal slice."""
    bring_untrained("ft-sam", "untrained-2d")
    viewer, panel = open_panel("ct_torso")
    choose_engine(panel, "SAM-Med2D")
    panel.image.views["coronal"].click()
    panel.session.add_object("liver")
    panel.prompts.tools[Tool.BOX].click()
    _, labels, names = load("ct_torso")
    liver = next(number for number, name in names.items() if name == "liver")
    places = np.argwhere(labels == liver)
    row = round(places[:, 1].mean())
    on_slice = places[places[:, 1] == row]
    ends = np.array([on_slice.min(axis=0), on_slice.max(axis=0)], dtype=float)
    corners = panel.session.volume.geometry.to_world(ends)
    box = BoxPrompt(as_point(corners[0]), as_point(corners[1]))
    panel.controller.set_prompts(panel.session.get().prompts.with_box(box))
    wait_for_engine(panel)
    panel.objects.jump.click()
    shoot(viewer, "prompt_sam_med2d")
    viewer.close()


def faces_of(mask: np.ndarray) -> list[np.ndarray]:
    """Return the first and the last slice of a structure's box as rectangles (4, 3)."""
    places = np.argwhere(mask)
    low, high = places.min(axis=0), places.max(axis=0)
    sides = ((low[1], low[2]), (low[1], high[2]), (high[1], high[2]), (high[1], low[2]))
    return [np.array([(z, *side) for side in sides], dtype=float) for z in (low[0], high[0])]


def wait_for_engine(panel: SegmentWidget) -> None:
    """Wait until the active object's prompts have an answer, be it an empty mask."""
    for _ in range(600):
        QTest.qWait(100)
        active = panel.session.active
        if active.answered == active.prompts:
            return
    raise SystemExit(f"the engine gave no answer: {panel.run.status.text()}")


if __name__ == "__main__":
    ct_pictures()
    mr_picture()
    models_pictures()
    prompt_pictures()
    slices_picture()
