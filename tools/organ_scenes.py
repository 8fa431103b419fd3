"""Make the screenshots of docs/organs.md: the real panel, with a stand-in for the network.

Usage: as ``tools/make_screenshots.py``. Published weights are not part of the package. What takes
their place knows the answer: it takes structures from the sample's own reference.
"""

from __future__ import annotations

from pathlib import Path

import napari
import numpy as np
import torch
from make_screenshots import IMAGES, SETTINGS, shoot
from qtpy.QtTest import QTest
from torch import nn

from napari_openmedlab.bridge.layers import volume_to_layer_data
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models import networks
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.stu_net.plan import Plan
from napari_openmedlab.models.engines.stu_net.preparing import prepare
from napari_openmedlab.models.organs import TOTAL_SEGMENTATOR
from napari_openmedlab.models.tiling.placement import Windows
from napari_openmedlab.models.tiling.resampling import AxisMap
from napari_openmedlab.sample_data import load
from napari_openmedlab.widgets.organs import OrgansWidget
from napari_openmedlab.widgets.segment import SegmentWidget


class KnowsTheAnswer(nn.Module):
    """Takes the network's place: is asked for window after window, answers with the reference."""

    memory_format = torch.contiguous_format

    def __init__(self) -> None:
        super().__init__()
        volume, labels, names = load("ct_torso")
        whole = Box.whole(volume.geometry.shape)
        ready = prepare(
            volume, whole, Plan(TOTAL_SEGMENTATOR), spacing=3.0, orientation="RAS",
            monitor=Monitor(),
        )  # fmt: skip
        turned = ready.order.apply(labels)[ready.crop.slices]
        maps = (AxisMap.nearest(a, b) for a, b in zip(turned.shape, ready.grid, strict=True))
        self.answer = turned[np.ix_(*(line.first for line in maps))][None].astype(np.float32)
        known = [(n, name.replace(" ", "_")) for n, name in names.items()]
        known = [(n, name) for n, name in known if name in TOTAL_SEGMENTATOR]
        self.values = [0, *(n for n, _ in known)]
        head = nn.Conv3d(len(self.values), len(TOTAL_SEGMENTATOR), 1)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(-30.0)
            for channel, name in enumerate(["background", *(name for _, name in known)]):
                head.weight[TOTAL_SEGMENTATOR.index(name), channel] = 36.0
        self.seg_outputs = nn.ModuleList([head])
        self.windows = list(Windows.nnunet(ready.grid, (128, 128, 128)))
        self.cut = Windows.nnunet(ready.grid, (128, 128, 128)).cut

    def features(self, patches: torch.Tensor) -> torch.Tensor:
        """Return which structure each voxel belongs to."""
        window = self.windows.pop(0)
        self.windows.append(window)
        here = torch.from_numpy(self.cut(self.answer, window))[None]
        return torch.cat([(here == value).float() for value in self.values], 1)


def stand_in() -> None:
    """Put a model of 104 structures into the folder, and the stand-in in its network's place."""
    torch.manual_seed(0)
    weights = Path(SETTINGS.name) / "stand-in.pth"
    torch.save(networks.build("stu-net-s").state_dict(), weights)
    ModelStore().import_file(weights, "stand-in")
    weights.unlink()
    network = KnowsTheAnswer().eval()
    ModelStore.load = lambda _store, _name: network  # type: ignore[method-assign, assignment]


def wait(panel: OrgansWidget) -> None:
    """Wait until structures are named and measured."""
    for _ in range(900):
        QTest.qWait(200)
        if not panel.desk.busy and panel.results.table.rowCount():
            QTest.qWait(800)
            return
    raise SystemExit(f"no structures: {panel.go.status.text()}")


def main() -> None:
    """Show the panel before and after a run, the table, and an organ being refined."""
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1500, 1000)
    data, keywords, _ = volume_to_layer_data(load("ct_torso")[0])
    viewer.add_image(data, **keywords)
    panel = OrgansWidget(viewer)
    viewer.window.add_dock_widget(panel, name="Organs (OpenMedLab)")
    QTest.qWait(500)
    shoot(viewer, "organs_no_model")
    stand_in()
    panel._local.look()
    panel.model.grid.setCurrentIndex(1)
    panel.structures.search.setText("kidney")
    shoot(viewer, "organs_search")
    panel.structures.search.setText("")
    panel.go.run.click()
    wait(panel)
    table = panel.results.table
    rows = range(table.rowCount())
    liver = next((r for r in rows if table.item(r, 0).toolTip() == "liver"), 0)
    table.selectRow(liver)
    viewer.reset_view()
    area = panel.layout().itemAt(0).widget()
    area.verticalScrollBar().setValue(area.verticalScrollBar().maximum())
    shoot(viewer, "organs_named")
    segment = SegmentWidget(viewer)
    viewer.window.add_dock_widget(segment, name="Segment (OpenMedLab)", tabify=True)
    shoot(viewer, "organs_refine")
    print(panel.go.status.text(), panel.go.notes.text(), IMAGES)
    viewer.close()


if __name__ == "__main__":
    main()
