"""Density maps: totals are exact, edges are right, files carry the grid."""

import json

import nibabel as nib
import numpy as np
import pytest
import tifffile

from napari_openmedlab.axons.density import (
    DensityGrid,
    Patient,
    length_density,
    voxel_density,
    write_density,
)
from napari_openmedlab.axons.plan import Settings, make_plan
from napari_openmedlab.axons.products import density_of, write_density_map
from napari_openmedlab.axons.run import execute
from napari_openmedlab.axons.skeleton import Skeleton
from napari_openmedlab.axons.source import open_source
from napari_openmedlab.axons.store import Results
from napari_openmedlab.axons.tracing import TracingSettings, trace
from napari_openmedlab.errors import GeometryError, SettingsError
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.io.api import read as read_volume
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Monitor

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
    np.testing.assert_allclose(counts[0, 0], [0, 2, 0])  # bins end at 2.5 and 7.5 um
    assert counts.sum() == pytest.approx(2)
    np.testing.assert_allclose(density.grid.volumes[0, 0] * 1e9, [27, 45, 18])


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
    # The line lies at z = 110, y = 6, x = -7 to 30.7 um; bins of x end at -6.5, 6.5, 19.5, 32.5.
    assert grid.first == (8, 0, -1)
    np.testing.assert_allclose(lengths[0, 0], [0.5 * 1.3, 10 * 1.3, 10 * 1.3, 8.5 * 1.3, 0])
    assert lengths.sum() == pytest.approx(lengths[0, 0].sum())


def test_maps_of_two_parts_fit_together():
    mask = np.random.default_rng(1).random((9, 8, 40)) < 0.3
    whole = voxel_density(mask, DensityGrid(mask.shape, (2.0, 2.0, 2.0), 14.0))
    counts = np.zeros(whole.grid.bins)
    for start, stop in (0, 17), (17, 40):
        part = mask[:, :, start:stop]
        origin = (0.0, 0.0, 2.0 * start)
        found = voxel_density(part, DensityGrid(part.shape, (2.0, 2.0, 2.0), 14.0, origin))
        x = found.grid.first[2]
        counts[:, :, x : x + found.grid.bins[2]] += found.values * found.grid.volumes
    np.testing.assert_allclose(counts, whole.values * whole.grid.volumes)


def test_nifti_is_in_mm_and_says_so(mask, tmp_path):
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


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (500.0, 200.0, 100.0)])
def test_without_orientation_nifti_states_none_and_lies_over_its_source(mask, tmp_path, origin):
    grid = DensityGrid(SHAPE, SPACING, 20.0, origin)
    density = voxel_density(mask, grid)
    image, facts = write_density(tmp_path / "d.nii", density)
    header = nib.load(image).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)
    for name in ("srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "qoffset_y", "qoffset_z"):
        assert not np.any(header[name])
    assert float(header["pixdim"][0]) == 1.0
    volume = read_volume(image)
    assert volume.geometry.frame == "image"
    # Each bin is where it was counted, in mm of the source's world; before it all are empty.
    np.testing.assert_allclose(volume.geometry.affine[:3, 3], 0)
    cut = tuple(slice(n, None) for n in grid.first)
    np.testing.assert_allclose(volume.array[cut], density.values, rtol=1e-6)
    assert volume.array.sum() == pytest.approx(density.values.sum())
    np.testing.assert_allclose(
        volume.geometry.to_world(grid.first), grid.geometry.to_world((0, 0, 0)) * 1e-3, rtol=1e-6
    )
    stored = json.loads(facts.read_text())
    assert stored["first bin centre um (z, y, x)"] == [0, 0, 0]
    assert [start for start, _ in stored["volume um (z, y, x)"]] == list(origin)


@pytest.mark.parametrize("origin", [(-40.0, 0.0, 0.0), (2e5, 2e5, 2e5)])
def test_a_volume_before_or_far_behind_the_origin_gets_no_empty_bins(mask, tmp_path, origin):
    density = voxel_density(mask, DensityGrid(SHAPE, SPACING, 20.0, origin))
    image, facts = write_density(tmp_path / "d.nii", density)
    assert nib.load(image).shape == density.values.shape[::-1]
    first = json.loads(facts.read_text())["first bin centre um (z, y, x)"]
    np.testing.assert_allclose(first, np.rint(np.array(origin) / 20) * 20)


TURNED = [[0.004, 0.001, 0, 3.5], [-0.001, 0.004, 0, -7.25], [0, 0, -0.005, 11.0], [0, 0, 0, 1]]
FLIPPED = [[0, -0.002, 0, 3.5], [0.0013, 0, 0, -7.25], [0, 0, 0.005, 11.0], [0, 0, 0, 1]]


@pytest.mark.parametrize("affine", [TURNED, FLIPPED])
@pytest.mark.parametrize("codes", [(1, 1), (4, 0), (0, 2)])
def test_nifti_of_a_nifti_source_keeps_its_world(tmp_path, affine, codes):
    source = nib.Nifti1Image(np.zeros((37, 31, 23), np.uint8), None)
    source.header.set_xyzt_units("mm")
    for form, code in zip((source.set_sform, source.set_qform), codes, strict=True):
        form(np.array(affine) if code else None, code)
    nib.save(source, tmp_path / "source.nii")
    volume = read_volume(tmp_path / "source.nii")
    spacing = tuple(1000 * v for v in volume.geometry.spacing)
    mask = np.zeros(volume.geometry.shape, bool)
    mask[14, 20, 25] = True
    # A part of the source, from voxel (6, 4, 5) on.
    start = np.array((6, 4, 5))
    part = mask[6:, 4:, 5:]
    edge = 3 * max(spacing)
    grid = DensityGrid(part.shape, spacing, edge, tuple(start * spacing))
    density = voxel_density(part, grid).lying_in(Patient.of(volume))
    image, _ = write_density(tmp_path / "d.nii.gz", density)

    code = codes[0] or codes[1]
    read = nib.load(image)
    assert (int(read.header["sform_code"]), int(read.header["qform_code"])) == (code, code)
    size = edge / np.array(spacing)
    index = np.eye(4)  # bins (z, y, x) to voxels (z, y, x)
    index[:3, :3], index[:3, 3] = np.diag(size), np.array(grid.first) * size
    lps = volume.geometry.affine @ index
    expected = (np.diag([-1, -1, 1, 1]) @ lps)[:, [2, 1, 0, 3]]
    np.testing.assert_allclose(read.affine, expected, atol=1e-6)
    np.testing.assert_allclose(read.get_qform(), expected, atol=1e-6)
    # Another way round: the bin with the voxel lies in the world within half a bin of it.
    bright = np.argwhere(np.asarray(read.dataobj))
    assert len(bright) == 1
    there = nib.affines.apply_affine(read.affine, bright[0])
    voxel = volume.geometry.to_world((14, 20, 25)) * (-1, -1, 1)
    inside = np.linalg.solve(read.affine[:3, :3], voxel - there)
    assert (np.abs(inside) <= 0.5 + 1e-6).all()


def test_a_run_remembers_the_world_of_its_nifti_source(tmp_path):
    image = np.random.default_rng(2).normal(300, 10, (30, 26, 24))
    image[:, 12:15, 10:13] += 400
    source = nib.Nifti1Image(image.astype(np.int16), np.array(FLIPPED))
    source.header.set_xyzt_units("mm")
    nib.save(source, tmp_path / "source.nii")
    opened = open_source(tmp_path / "source.nii")
    engine = load_engine("axon-filter")
    plan = make_plan(opened, Settings("axon-filter"), engine, Monitor(), timed=False)
    execute(plan, tmp_path / "run", engine, Monitor())
    results = Results.open(tmp_path / "run")
    edge = 4 * max(results.spacing)
    density = density_of(results, edge, "voxels", Monitor())
    path, _ = write_density_map(results, density, tmp_path / "d.nii.gz")
    read = nib.load(path)
    brightest = np.unravel_index(np.argmax(read.get_fdata()), read.shape)
    there = nib.affines.apply_affine(read.affine, brightest)
    back = nib.affines.apply_affine(np.linalg.inv(source.affine), there)
    reach = edge / 1000 / np.array(source.header.get_zooms())
    assert (np.abs(back - (back[0], 13, 11)) <= reach).all()
    assert int(read.header["sform_code"]) == int(source.header["sform_code"]) == 2


def test_tiff_of_a_nifti_source_lies_along_the_source_s_own_axes(tmp_path):
    patient = Patient(Geometry(SHAPE, np.diag([-0.005, 0.002, 0.0013, 1])))
    density = voxel_density(np.ones(SHAPE), DensityGrid(SHAPE, SPACING, 25.0)).lying_in(patient)
    image, facts = write_density(tmp_path / "d.ome.tif", density)
    assert tifffile.imread(image).shape == density.values.shape
    assert json.loads(facts.read_text())["file unit"] == "um"


@pytest.mark.parametrize("name", ["d.ome.tif", "d.tif"])
@pytest.mark.parametrize("origin", [(50.0, 0.0, 75.0), (-110.0, 40.0, 7.0)])
def test_ome_tiff_states_sizes_and_positions_in_um(mask, tmp_path, name, origin):
    grid = DensityGrid(SHAPE, SPACING, 25.0, origin)
    density = voxel_density(mask, grid)
    image, _ = write_density(tmp_path / name, density)
    empty = np.array(grid.first) if min(origin) >= 0 else np.zeros(3, int)
    with tifffile.TiffFile(image) as file:
        values = file.asarray().reshape(np.array(grid.bins) + empty)
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    np.testing.assert_allclose(values[tuple(slice(n, None) for n in empty)], density.values, 1e-6)
    for axis in "XYZ":
        assert pixels[f"PhysicalSize{axis}"] == 25.0
        assert pixels[f"PhysicalSize{axis}Unit"] == "µm"
    planes = pixels["Plane"]
    assert len(planes) == len(values)
    first = (np.array(grid.first) - empty) * 25.0
    for z, plane in enumerate(planes):
        assert plane["TheZ"] == z
        position = [plane[f"Position{axis}"] for axis in "ZYX"]
        assert position == pytest.approx([first[0] + 25 * z, *first[1:]])
        assert {plane[f"Position{axis}Unit"] for axis in "XYZ"} == {"µm"}


def test_bad_input_is_named(mask, tmp_path):
    with pytest.raises(SettingsError, match="smaller than the voxels"):
        DensityGrid(SHAPE, SPACING, 4.0)
    grid = DensityGrid(SHAPE, SPACING, 25.0)
    with pytest.raises(GeometryError):
        voxel_density(mask[1:], grid)
    with pytest.raises(SettingsError, match=r"\.nii\.gz"):
        write_density(tmp_path / "d.png", voxel_density(mask, grid))
