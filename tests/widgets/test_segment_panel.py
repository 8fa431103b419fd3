"""The Segment panel, driven by real clicks and keys on the real canvas."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import pump, wait_for

from napari_openmedlab.bridge.view import show_plane
from napari_openmedlab.widgets.tools import Tool

pytestmark = pytest.mark.gui


def masked(panel):
    return panel.session is not None and bool(panel.session.labels.any())


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_click_in_every_plane_lands_on_the_voxel_under_the_mouse(scene, qtbot, plane):
    viewer, image, panel, hand = scene
    show_plane(viewer, plane)
    panel.prompts.tools[Tool.CLICK].click()
    pump()
    target = (7, 41, 33)
    hand.click(image, target)
    wait_for(qtbot, lambda: masked(panel))
    click = panel.session.active.prompts.clicks[0]
    index = panel.session.volume.geometry.to_index(click.point)
    np.testing.assert_allclose(index, target, atol=0.3)
    assert panel.session.labels[target] == panel.session.active_id
