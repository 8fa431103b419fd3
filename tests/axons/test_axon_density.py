"""Density maps: totals are exact, edges are right, files carry the grid."""

import json

import numpy as np
import pytest

from napari_openmedlab.axons.density import (
    DensityGrid,
    length_density,
    voxel_density,
    write_density,
)
from napari_openmedlab.axons.skeleton import Skeleton
from napari_openmedlab.axons.tracing import TracingSettings, trace
from napari_openmedlab.errors import GeometryError, SettingsError

SHAPE, SPACING = (23, 31, 37), (5.0, 2.0, 1.3)


@pytest.fixture(scope="module")
def mask():
    return np.random.default_rng(0).random(SHAPE) < 0.1


@pytest.mark.parametrize("edge", [5.0, 10.0, 25.0, 1000.0])
def test_totals_are_exact_whatever_the_bins_and_blocks(mask, edge):
    grid = DensityGrid(SHAPE, SPACING, edge)
    density = voxel_density(mask, grid, core=(8, 9, 16))
    assert density.total == pytest.approx(mask.sum(), rel=1e-12)
    assert grid.volumes.sum() == pytest.approx(mask.size * 13.0e-9)
    np.testing.assert_allclose(density.values, voxel_density(mask, grid).values)


def test_a_full_mask_is_equally_dense_up_to_the_edges():
    grid = DensityGrid(SHAPE, SPACING, 17.0)
    density = voxel_density(np.ones(SHAPE), grid)
    np.testing.assert_allclose(density.values, 1 / 13.0e-9)


def test_each_voxel_counts_where_its_centre_lies():
    mask = np.zeros((4, 4, 10))
    mask[0, 0, 4], mask[0, 0, 5] = 1, 1
    density = voxel_density(mask, DensityGrid(mask.shape, (1.0, 1.0, 1.0), 5.0))
    counts = density.values * density.grid.volumes
    np.testing.assert_allclose(counts, [[[1, 1]]])


def _forest(origin=(0.0, 0.0, 0.0)):
    points = np.array([(2, 3, x) for x in range(30)], dtype=np.int32)
    skeleton = Skeleton(points, np.ones(30, np.float32), SHAPE, SPACING)
    return trace(skeleton, TracingSettings(), origin)


def test_length_is_exact_and_lies_where_the_line_is():
    origin = (100.0, 0.0, -7.0)
    forest, grid = _forest(origin), DensityGrid(SHAPE, SPACING, 13.0, origin)
    density = length_density(forest, grid)
    assert density.total == pytest.approx(29 * 1.3)
    lengths = density.values * grid.volumes
    assert (lengths[1:] == 0).all()
    np.testing.assert_allclose(lengths[0, 0], [9.5 * 1.3, 10 * 1.3, 9.5 * 1.3, 0])


def test_nifti_is_in_mm_and_says_so(mask, tmp_path):
    import nibabel as nib

    density = voxel_density(mask, DensityGrid(SHAPE, SPACING, 25.0))
    image, facts = write_density(tmp_path / "d.nii.gz", density, {"threshold": 0.5})
    read = nib.load(image)
    assert read.shape == density.values.shape[::-1]
    assert read.header.get_zooms() == pytest.approx((0.025,) * 3)
    assert read.header.get_xyzt_units()[0] == "mm"
    data = np.asarray(read.dataobj)
    assert data.dtype == np.float32
    np.testing.assert_allclose(data.T, density.values, rtol=1e-6)
    stored = json.loads(facts.read_text())
    assert stored["total"] == pytest.approx(mask.sum())
    assert stored["file unit"] == "mm"
    assert stored["provenance"] == {"threshold": 0.5}


def test_nifti_of_a_region_lies_at_its_place(mask, tmp_path):
    import nibabel as nib

    grid = DensityGrid(SHAPE, SPACING, 25.0, origin=(500.0, 200.0, 100.0))
    image, _ = write_density(tmp_path / "d.nii", voxel_density(mask, grid))
    affine = nib.load(image).affine
    centre = np.array([100 - 0.65 + 12.5, 200 - 1 + 12.5, 500 - 2.5 + 12.5]) * 1e-3
    np.testing.assert_allclose(np.abs(affine[:3, 3]), centre, rtol=1e-6)
    np.testing.assert_allclose(grid.geometry.to_world((0, 0, 0)), centre * 1e3)


def test_ome_tiff_is_in_um(mask, tmp_path):
    import tifffile

    density = voxel_density(mask, DensityGrid(SHAPE, SPACING, 25.0))
    image, _ = write_density(tmp_path / "d.ome.tif", density)
    with tifffile.TiffFile(image) as file:
        np.testing.assert_allclose(
            file.asarray().reshape(density.values.shape), density.values, rtol=1e-6
        )
        assert 'PhysicalSizeZ="25.0"' in file.ome_metadata
        assert 'PhysicalSizeXUnit="µm"' in file.ome_metadata


def test_bad_input_is_named(mask, tmp_path):
    with pytest.raises(SettingsError, match="smaller than the voxels"):
        DensityGrid(SHAPE, SPACING, 4.0)
    grid = DensityGrid(SHAPE, SPACING, 25.0)
    with pytest.raises(GeometryError):
        voxel_density(mask[1:], grid)
    with pytest.raises(SettingsError, match=r"\.nii\.gz"):
        write_density(tmp_path / "d.png", voxel_density(mask, grid))
