"""Where results lie in a real viewer: over the image they were made in, whatever its place is."""

import block_engines
import nibabel as nib
import numpy as np
import pytest
import tifffile
from block_engines import Smooth
from napari.utils.colormaps import DirectLabelColormap

from napari_openmedlab.io.ome_zarr_write import ImagePlace, create_image
from napari_openmedlab.models import catalogue

SHAPE = (24, 40, 36)
SIZE = (4.0, 2.0, 2.0)


@pytest.fixture(autouse=True)
def _engines(monkeypatch):
    Smooth.calls = 0
    specs = (*catalogue.OWN_ENGINES, block_engines.SPEC)
    monkeypatch.setattr(catalogue, "OWN_ENGINES", specs)


@pytest.fixture
def panel(viewer):
    return viewer.window.add_plugin_dock_widget("napari-openmedlab", "Axons")[1]


@pytest.fixture
def voxels():
    """Dim noise with a bright line along x through (12, 20)."""
    found = np.random.default_rng(4).integers(90, 110, SHAPE).astype(np.uint16)
    found[11:14, 19:22, :] = 3000
    return found


@pytest.fixture
def slices(tmp_path, voxels):
    folder = tmp_path / "slices"
    folder.mkdir()
    for z, plane in enumerate(voxels):
        tifffile.imwrite(folder / f"s{z:03}.tif", plane)
    return folder


@pytest.fixture
def cube(tmp_path, voxels):
    """A NIfTI cube whose axes run to right, posterior and superior, far from the origin."""
    affine = np.diag([0.004, -0.002, 0.003, 1.0])
    affine[:3, 3] = (3.5, -7.25, 11.0)
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "cube.nii.gz")
    return tmp_path / "cube.nii.gz"


def wait(qtbot, panel):
    qtbot.waitUntil(lambda: not panel.desk.busy, timeout=60_000)


def opened(panel, qtbot, path):
    panel.desk.open(path)
    wait(qtbot, panel)
    row = panel.method.engine.findData("smooth")
    panel.method.engine.setCurrentIndex(row)
    panel.method.engine.activated.emit(row)
    panel.find.threshold.setValue(70)
    return panel.image


def run(panel, qtbot, folder):
    panel.go.folder.setText(str(folder))
    panel.go.run.click()
    wait(qtbot, panel)
    assert panel.go.status.text().startswith("Done"), panel.go.status.text()


def named(viewer, name):
    return next(each for each in viewer.layers if each.name == name)


def assert_over(layer, image, start=(0, 0, 0)):
    """Every corner of a layer lies in the world where the image has that voxel."""
    shape = np.asarray(layer.data.shape)
    for corner in (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1):
        voxel = (shape - 1) * corner
        there = image.data_to_world(voxel + start)
        np.testing.assert_allclose(layer.data_to_world(voxel), there, atol=1e-9)
    assert layer.units == image.units
    assert layer.axis_labels == image.axis_labels


def assert_density_over(density, image, lengths, line=(12, 20)):
    """The brightest bin holds the line, and the map covers the image."""
    bins = np.asarray(density.scale) / np.asarray(image.scale)
    np.testing.assert_allclose(bins, 40.0 / np.asarray(lengths))
    brightest = np.unravel_index(np.argmax(density.data), density.data.shape)
    voxel = np.array(image.world_to_data(density.data_to_world(brightest)))
    assert (np.abs(voxel[:2] - line) <= bins[:2] / 2 + 0.5).all()
    # The first bin's centre is the first voxel's; the last voxel's lies in the last bin.
    beyond = (density.extent.world - image.extent.world) / density.scale
    np.testing.assert_allclose(beyond[0], 0, atol=1e-6)
    assert (np.abs(beyond[1]) <= 0.5).all()
    assert density.units == image.units


def test_results_lie_over_a_folder_of_slices_with_a_typed_voxel_size(
    viewer, panel, qtbot, slices, tmp_path
):
    image = opened(panel, qtbot, slices)
    panel.volume.size.setText("4, 2, 2")
    run(panel, qtbot, tmp_path / "run")
    assert tuple(image.scale) == (1.0, 1.0, 1.0)  # the user's layer is left alone
    for name in ("axons: probability", "axons"):
        assert_over(named(viewer, name), image)
    np.testing.assert_allclose(
        named(viewer, "axons").extent.world, named(viewer, image.name).extent.world
    )
    assert panel.results.spacing == SIZE  # files are in um all the same
    panel.exports.write_density(tmp_path / "density.nii.gz", 40.0, "voxels")
    wait(qtbot, panel)
    assert_density_over(named(viewer, "axons: axon voxels per mm3"), image, SIZE)
    panel.find.threshold.setValue(60)
    panel.find.apply.click()
    wait(qtbot, panel)
    assert_over(named(viewer, "axons"), image)


def test_results_of_a_part_lie_over_that_part(viewer, panel, qtbot, slices, tmp_path):
    image = opened(panel, qtbot, slices)
    panel.volume.size.setText("4, 2, 2")
    image.scale, image.translate = (1.0, 0.5, 0.5), (7.0, -3.0, 2.0)
    image.rotate = 20
    corners = np.array([[12, 6, 8], [12, 6, 29], [12, 33, 29], [12, 33, 8]], float)
    viewer.add_shapes([np.array([image.data_to_world(c) for c in corners])], name="box")
    panel.volume.region.setCurrentIndex(2)
    panel.volume.size.setText("4, 2, 2")
    run(panel, qtbot, tmp_path / "run")
    region = panel.results.region
    assert region.shape != SHAPE
    for name in ("axons: probability", "axons"):
        assert_over(named(viewer, name), image, region.start)


def test_results_lie_over_a_cube_of_a_patient_with_flipped_axes(
    viewer, panel, qtbot, cube, tmp_path
):
    image = opened(panel, qtbot, cube)
    assert np.abs(image.translate).max() > 3
    run(panel, qtbot, tmp_path / "run")
    for name in ("axons: probability", "axons"):
        assert_over(named(viewer, name), image)
    panel.exports.write_density(tmp_path / "density.nii.gz", 40.0, "voxels")
    wait(qtbot, panel)
    density = named(viewer, "axons: axon voxels per mm3")
    assert_density_over(density, image, panel.results.spacing, line=(11, 20))

    # The file lies over the cube where our reader opens both.
    viewer.open(tmp_path / "density.nii.gz", plugin="napari-openmedlab")
    again = named(viewer, "density")
    np.testing.assert_allclose(again.scale, density.scale, rtol=1e-5)
    np.testing.assert_allclose(again.translate, density.translate, atol=1e-6)
    np.testing.assert_allclose(again.data, density.data)


@pytest.mark.parametrize("ending", ["nii.gz", "ome.tif"])
def test_the_file_of_a_part_lies_over_a_volume_with_a_place_of_its_own(
    viewer, panel, qtbot, voxels, tmp_path, ending
):
    place = ImagePlace(SIZE, (400.0, 52.0, 7.0))
    array = create_image(tmp_path / "brain.zarr", SHAPE, np.uint16, SHAPE, place, "brain")
    array[:] = voxels
    image = opened(panel, qtbot, tmp_path / "brain.zarr")
    corners = np.array([[12, 6, 8], [12, 6, 29], [12, 33, 29], [12, 33, 8]], float)
    box = [np.array([image.data_to_world(corner) for corner in corners])]
    viewer.add_shapes(box, name="box", units=image.units, axis_labels=image.axis_labels)
    panel.volume.region.setCurrentIndex(2)
    run(panel, qtbot, tmp_path / "run")
    panel.exports.write_density(tmp_path / f"map.{ending}", 20.0, "voxels")
    wait(qtbot, panel)
    shown = named(viewer, "axons: axon voxels per mm3")
    panel.desk.open(tmp_path / f"map.{ending}")
    wait(qtbot, panel)
    found = viewer.layers[-1]
    assert found.name.startswith("map")
    factor = 1000 if ending == "nii.gz" else 1  # mm
    values = np.asarray(found.data)
    bright, there = np.argwhere(shown.data), np.argwhere(values)
    assert len(bright) == len(there) > 0
    for one, other in zip(bright, there, strict=True):
        np.testing.assert_allclose(
            shown.data_to_world(one), np.multiply(found.data_to_world(other), factor), rtol=1e-6
        )
        assert values[tuple(other)] == shown.data[tuple(one)]


def test_opened_results_lie_over_their_volume_or_where_their_files_say(
    viewer, panel, qtbot, slices, tmp_path, monkeypatch
):
    image = opened(panel, qtbot, slices)
    panel.volume.size.setText("4, 2, 2")
    run(panel, qtbot, tmp_path / "run")
    voxels = np.asarray(image.data)
    viewer.layers.clear()
    monkeypatch.setattr(
        "napari_openmedlab.widgets.axons.QFileDialog.getExistingDirectory",
        lambda *_: str(tmp_path / "run"),
    )

    def reopen():
        panel.go.open.click()
        wait(qtbot, panel)
        return named(viewer, "axons")

    alone = reopen()
    np.testing.assert_allclose(alone.scale, SIZE)
    assert [str(unit) for unit in alone.units] == ["micrometer"] * 3
    # Another volume of the same shape and type is not theirs; the same voxels are, in any layer.
    other = viewer.add_image(voxels + 1, scale=(9, 9, 9), name="other")
    np.testing.assert_allclose(reopen().scale, SIZE)
    viewer.layers.remove(other)
    mine = viewer.add_image(voxels, scale=(3, 3, 3), translate=(1, 2, 3), name="mine")
    viewer.add_image(voxels + 1, name="other")
    assert_over(reopen(), mine)
    assert isinstance(named(viewer, "axons").colormap, DirectLabelColormap)


def test_previews_lie_over_a_sheared_image(viewer, panel, qtbot, voxels):
    shear = np.array([[1, 0, 0.2], [0, 1, 0.3], [0, 0, 1]])
    image = viewer.add_image(voxels, scale=(2, 1, 1), shear=shear, translate=(5, 0, 0))
    row = panel.method.engine.findData("smooth")
    panel.method.engine.setCurrentIndex(row)
    panel.method.engine.activated.emit(row)
    panel.preview_at((12, 20, 18))
    wait(qtbot, panel)
    assert_over(named(viewer, "preview: axons"), image, panel.previews.found.box.start)
