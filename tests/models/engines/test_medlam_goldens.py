"""MedLAM's steps equal the published ones: preparation, both stages, similarity, orientation."""

from itertools import product

import numpy as np
import pytest
import torch
from golden_networks import load_filled
from knowing_medlam import body, loaded, stored
from medlam_upstream import file_index, prepared_as_upstream, volume_of
from scipy import ndimage
from torch.nn import functional

from napari_openmedlab.geometry.extreme_points import slabs_of_mask, walls_of_mask
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models import networks
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.engines.medlam.grid import HALF, WorkingGrid, resample
from napari_openmedlab.models.engines.medlam.jumps import REACH_MM, jump, start_voxels
from napari_openmedlab.models.engines.medlam.patches import Steps, embeddings, point_features
from napari_openmedlab.models.engines.medlam.preparing import AIR, prepare
from napari_openmedlab.models.engines.medlam.search import look_at, refine
from napari_openmedlab.models.engines.medlam.similarity import correlate, peak_of, total_similarity
from napari_openmedlab.models.engines.medlam.templates import Known

SCALES = (0, 1, 2)


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def steps():
    return Steps(Monitor())


def filled(width, scaled=True):
    network = load_filled(networks.build("medlam", device="meta", base_channels=width), "module.")
    if scaled:
        with torch.no_grad():
            network.fc3.weight *= 0.05
            network.fc3.bias *= 0.05
    return loaded(network.to(memory_format=network.memory_format))


# -- preparation -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["template0", "template1", "query"])
def test_the_prepared_scan_is_the_published_one(golden, name):
    """But for the last plane that SciPy leaves at 0 HU in template1: ours goes on there."""
    wanted = arrays(golden / "medlam" / "preprocess.npz")
    prepared = prepare(volume_of(golden / "medlam" / f"{name}_ct.nii.gz"), Monitor())
    assert prepared.grid.shape == tuple(wanted[f"{name}_pre_shape"])
    inner = prepared.padded[HALF:-HALF:2, HALF:-HALF:2, HALF:-HALF:2]
    stored_part = wanted[f"{name}_pre_s2"]
    if name == "template1":
        assert np.count_nonzero(stored_part[:, -1] == 0.5) > 0.9 * stored_part[:, -1].size
        inner, stored_part = inner[:, :-1], stored_part[:, :-1]
    assert np.abs(inner - stored_part).max() < 1e-6
    assert prepared.padded[:HALF].max() == prepared.padded[-HALF:].max() == 0.0


@pytest.mark.parametrize("shape", [(20, 31, 9), (44, 12, 25), (30, 25, 26)])
def test_resampling_equals_scipy(shape):
    array = np.random.default_rng(0).normal(scale=500, size=(30, 25, 26)).astype(np.float32)
    wanted = ndimage.zoom(array.astype(float), np.divide(shape, array.shape), order=3)
    found = resample(array, shape)
    inside = (slice(None, -1),) * 3  # the last plane may be zero in SciPy's
    assert np.abs(found - wanted)[inside].max() < 2e-3
    np.testing.assert_allclose(found[-1, -1, -1], array[-1, -1, -1], rtol=1e-5)


@pytest.mark.parametrize("template", ["template0", "template1"])
def test_extreme_points_and_slabs_are_the_published_ones(golden, template):
    stored_arrays = arrays(golden / "medlam" / "preprocess.npz")
    shape = tuple(stored_arrays[f"{template}_label_shape"])
    bits = np.unpackbits(stored_arrays[f"{template}_label_pre"], count=int(np.prod(shape)))
    affine = np.array([[0, 0, 3, 0], [0, -3, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1.0]])
    geometry = Geometry(shape, affine)
    mask = bits.reshape(shape).astype(bool)

    def voxels(points):
        return np.rint(geometry.to_index(points)).astype(int)

    walls = voxels(walls_of_mask(mask, geometry))
    assert walls.tolist() == stored_arrays[f"{template}_extreme_c1"].tolist()
    for count in (1, 2, 3, 6):
        slabs = voxels(slabs_of_mask(mask, geometry, count)).reshape(-1, 3)
        assert slabs.tolist() == stored_arrays[f"{template}_split{count}_c1"].tolist()


# -- both stages -------------------------------------------------------------------------------


def check_stages(wanted, prefix, known, query, given):
    """Compare both stages with stored numbers; maxima are of sums over templates there."""
    found = query.jump_to(known)
    assert np.abs(known.positions.mean(0) - wanted[f"{prefix}support_latent_mean"]).max() < 1e-4
    assert np.abs(found.offset_mm - wanted[f"{prefix}relative_mm_zyx"]).max() < 0.1
    assert np.abs(found.place_mm - wanted[f"{prefix}coarse_mm_padded_zyx"]).max() < 0.1
    assert np.array_equal(found.voxel, wanted[f"{prefix}coarse_voxel_rounded"])
    assert np.array_equal(found.clamped, wanted[f"{prefix}coarse_voxel_clamped"])
    located = refine(given, query, {"c": found}, {"c": known}, SCALES, steps())["c"]
    assert np.array_equal(located.voxels, wanted[f"{prefix}fine_voxel_unpadded"])
    count = len(known.templates)
    best = [1 + len(SCALES) * count * peak.similarity for peak in located.peaks]
    np.testing.assert_allclose(best, wanted[f"{prefix}sim_max"], atol=1e-4)
    return located


def learnt(given, prepared, wanted, prefix, keys):
    features = []
    for scan, key in zip(prepared, keys, strict=True):
        marks = wanted[f"{prefix}{key}_support_points_padded_zyx"].astype(int)
        features.append(point_features(given, scan, marks, SCALES, steps()))
    kernels = [
        sum(each) / len(features) for each in zip(*(f.kernels for f in features), strict=True)
    ]
    return Known(
        "c",
        tuple(keys),
        np.stack([each.positions for each in features]),
        tuple(kernels),
        np.full((len(features), 3), 30.0),
    )


def test_two_templates_find_the_published_voxels(golden):
    """Both stages at a small width, jumps not saturated, starts as pinned."""
    folder = golden / "medlam" / "unsaturated"
    wanted = arrays(folder / "wpl_base4.npz")
    given = filled(4)
    scans = [prepare(volume_of(folder / f"template{n}.nii.gz"), Monitor()) for n in (0, 1)]
    known = learnt(given, scans, wanted, "c1_", ("t0", "t1"))
    for scale in (0, 1):
        kernel = wanted[f"c1_feature{scale}_template_kernel"]
        assert np.abs(2 * known.kernels[scale] - kernel).max() < 1e-4
    scan = prepare(volume_of(folder / "query.nii.gz"), Monitor())
    part = scan.padded[HALF:-HALF:4, HALF:-HALF:4, HALF:-HALF:4]
    assert np.abs(part - wanted["query_3mm_sub4"]).max() < 1e-6
    query = look_at(given, scan, wanted["start_voxel_padded_zyx"], steps())
    assert np.abs(query.embeddings - wanted["query_latent"]).max() < 1e-4
    located = check_stages(wanted, "c1_", known, query, given)
    points, box = file_index(
        located.voxels[None], wanted["query_zoom_zyx"], "LPI", wanted["query_ori_shape_xyz"]
    )
    assert np.array_equal(points, wanted["c1_extreme_points_file_zyx"])
    assert np.array_equal(box, wanted["c1_corners_file_zyx"])


def test_slabs_jump_to_the_published_voxels(full_golden):
    """Each slab's lowest point; the fine stage does not know slabs from others."""
    folder = full_golden / "medlam" / "unsaturated"
    wanted = arrays(folder / "spl_base4.npz")
    given = filled(4)
    positions = []
    for number in (0, 1):
        scan = prepare(volume_of(folder / f"template{number}.nii.gz"), Monitor())
        marks = wanted[f"c1_t{number}_support_points_padded_zyx"][::6].astype(int)
        positions.append(embeddings(given, scan, marks, steps()))
    found = np.mean(positions, axis=0)
    assert np.abs(found - wanted["c1_support_latent_mean"][::6]).max() < 1e-4
    scan = prepare(volume_of(folder / "query.nii.gz"), Monitor())
    query = look_at(given, scan, wanted["start_voxel_padded_zyx"], steps())
    jumped = jump(np.stack(positions), query.embeddings, query.starts, scan.grid.padded_shape)
    assert np.abs(jumped.place_mm - wanted["c1_coarse_mm_padded_zyx"][::6]).max() < 0.1
    assert np.array_equal(jumped.voxel, wanted["c1_coarse_voxel_rounded"][::6])
    assert np.array_equal(jumped.clamped, wanted["c1_coarse_voxel_clamped"][::6])
    _, box = file_index(
        wanted["c1_fine_voxel_unpadded"].reshape(-1, 6, 3),
        wanted["query_zoom_zyx"],
        "LPI",
        wanted["query_ori_shape_xyz"],
    )
    assert np.array_equal(box, wanted["c1_corners_file_zyx"])


def test_saturated_jumps_of_the_published_width_are_clamped_as_published(full_golden):
    folder = full_golden / "medlam"
    wanted = arrays(folder / "localise_wpl.npz")
    given = filled(24, scaled=False)
    scan = prepared_as_upstream(folder / "query_ct.nii.gz")
    query = look_at(given, scan, wanted["start_voxels_padded"][:2], steps())
    assert np.abs(query.embeddings - wanted["query_embedding"][:2]).max() < 1e-4
    template = prepared_as_upstream(folder / "template1_ct.nii.gz")
    marks = wanted["support_points_padded"][1, :1].astype(int)
    found = embeddings(given, template, marks, steps())
    assert np.abs(found - wanted["support_embedding"][1, :1]).max() < 1e-4
    found = jump(
        wanted["support_embedding"],
        wanted["query_embedding"],
        wanted["start_voxels_padded"],
        scan.grid.padded_shape,
    )
    assert np.abs(found.offset_mm - wanted["rdr_offset_mm"]).max() < 0.1
    assert np.array_equal(found.voxel, wanted["coarse_voxel_padded"])
    assert np.array_equal(found.clamped, wanted["coarse_voxel_clamped"])
    patches = scan.patches(found.clamped)[..., ::4, ::4, ::4]
    assert np.array_equal(patches, wanted["query_patches_s4"])


def test_points_on_one_voxel_are_answered_as_if_each_were_alone(golden):
    given = filled(2)
    scan = prepare(body(high=(40, 40, 40)), Monitor())
    marks = np.array([[44, 50, 47]] * 2 + [[52, 48, 49]] * 4)
    features = point_features(given, scan, marks, SCALES, steps())
    known = Known("c", ("t",), features.positions[None], features.kernels, np.full((1, 3), 30.0))
    query = look_at(given, scan, start_voxels(scan, 0, 2), steps())
    counted = steps()
    both = {"a": query.jump_to(known), "b": query.jump_to(known)}
    found = refine(given, query, both, {"a": known, "b": known}, SCALES, counted)
    assert counted.done == len(np.unique(both["a"].clamped, axis=0))
    alone = refine(given, query, {"a": both["a"]}, {"a": known}, SCALES, steps())["a"]
    for name in "ab":
        assert np.array_equal(found[name].voxels, alone.voxels)
        assert found[name].peaks == alone.peaks


# -- similarity --------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(16, 2), (32, 4), (64, 8)])
def test_fourier_correlation_equals_the_convolution(n, k):
    random = torch.Generator().manual_seed(0)
    features = torch.rand((20, n, n, n), generator=random)  # more channels than one chunk
    features = functional.normalize(features, dim=0)
    kernels = functional.normalize(torch.rand((2, 20, k, k, k), generator=random), dim=1)
    wanted = functional.conv3d(features[None], kernels, padding=k // 2)[0] / k**3
    assert (correlate(features, kernels) - wanted).abs().max() < 1e-5


def test_planted_surroundings_are_found_within_a_voxel():
    random = torch.Generator().manual_seed(1)
    fine = functional.normalize(torch.randn((6, 64, 64, 64), generator=random), dim=0)
    for shift in ((5, -7, 3), (0, 0, 0), (-15, 10, -2)):
        corner = [32 - 4 + each for each in shift]
        kernel = fine[(slice(None), *(slice(c, c + 8) for c in corner))][None]
        peak = peak_of(total_similarity([fine], [kernel])[0], 1)
        assert np.abs(np.subtract(peak.shift, shift)).max() <= 1
        assert peak.margin > 0.05
        assert not peak.at_edge


def test_the_first_of_equal_places_wins_and_the_edge_is_known():
    total = torch.ones((64, 64, 64))
    total[31, 31, 40] = total[31, 40, 31] = 2.0
    assert peak_of(total, 1).shift == (0, 0, 9)
    assert peak_of(total, 1).margin == 0.0
    total[0, 31, 31] = 3.0
    assert peak_of(total, 2).at_edge
    assert peak_of(total, 2).similarity == 1.0


# -- starts ------------------------------------------------------------------------------------


def test_starts_lie_near_the_middle_never_in_air_and_follow_from_the_scan():
    scan = prepare(body(high=(70, 64, 50)), Monitor())
    first = start_voxels(scan, 2023)
    assert first.shape == (10, 3)
    assert np.array_equal(first, start_voxels(scan, 2023))
    assert not np.array_equal(first, start_voxels(scan, 7))
    middle = np.array(scan.padded.shape) // 2
    many = start_voxels(scan, 1, 500)
    assert (many >= middle - 10).all()
    assert (many < middle + 10).all()
    assert (scan.padded[tuple(many.T)] >= AIR).all()
    assert np.abs(many.mean(0) - middle + 0.5).max() < 1.0
    other = prepare(body((1, 0, 0), (71, 64, 50)), Monitor())
    assert not np.array_equal(first, start_voxels(other, 2023))
    turned = prepare(stored(body(high=(70, 64, 50)), "RIP"), Monitor())
    assert np.array_equal(first, start_voxels(turned, 2023))


def test_starts_are_found_where_the_middle_is_air():
    scan = body(high=(90, 80, 80))
    hollow = np.array(scan.array)
    hollow[25:65, 25:55, 25:55] = -1000
    volume = type(scan)(hollow, scan.geometry, None, "hollow", "CT")
    prepared = prepare(volume, Monitor())
    starts = start_voxels(prepared, 0)
    assert (prepared.padded[tuple(starts.T)] >= AIR).all()


# -- orientation -------------------------------------------------------------------------------

CODES = ["".join(each) for each in product("RLAPSI", repeat=3)]
ALL_CODES = [c for c in CODES if all(any(x in pair for x in c) for pair in ("RL", "AP", "SI"))]


def grid_of(codes, shape_zyx, spacing_zyx):
    """A scan of given extent stored in NIfTI axis codes; where its voxels lie does not change."""
    size = dict(zip("SAL", shape_zyx, strict=True))
    step = dict(zip("SAL", spacing_zyx, strict=True))
    same = dict(zip("ISPARL", "SSAALL", strict=True))
    towards = {"S": (0, 0, 1), "A": (0, -1, 0), "L": (1, 0, 0)}
    affine, shape = np.eye(4), []
    for axis, code in enumerate(reversed(codes)):  # array axes (z, y, x) of the file
        kind = same[code]
        sign = 1 if code == kind else -1
        affine[:3, axis] = sign * step[kind] * np.array(towards[kind])
        if sign < 0:
            affine[:3, 3] += step[kind] * (size[kind] - 1) * np.array(towards[kind])
        shape.append(int(size[kind]))
    return Geometry(tuple(shape), affine)


def test_every_orientation_leads_back_to_the_same_place(golden):
    """All 48; for the eight that upstream has right, to its voxels by its own rule too."""
    wanted = arrays(golden / "medlam" / "orientation.npz")
    assert len(ALL_CODES) == 48
    shape, spacing = wanted["shape_zyx"], wanted["spacing_zyx"]
    straight = WorkingGrid(grid_of("LAS", shape, spacing))
    positions = np.arctanh(wanted["rdr_offset_mm"].astype(np.float64) / REACH_MM)
    found = jump(
        positions[None].astype(np.float32),
        np.zeros((10, 3), np.float32),
        wanted["start_voxels_padded"],
        straight.padded_shape,
    )
    working = found.clamped + wanted["mss_shift"] - HALF
    world = straight.world(working)
    right = 0
    for codes in ALL_CODES:
        grid = WorkingGrid(grid_of(codes, shape, spacing))
        assert grid.shape == straight.shape
        np.testing.assert_allclose(grid.world(working), world, atol=1e-9)
        np.testing.assert_allclose(grid.working(world), working, atol=1e-9)
        if codes in ("LAS", "LAI", "LPS", "LPI", "RAS", "RAI", "RPS", "RPI"):
            zoom = spacing.astype(np.float32).astype(np.float64) / 3.0  # as in the header
            points, box = file_index(
                working.reshape(2, 6, 3), zoom, codes, wanted[f"{codes}_ori_shape"]
            )
            assert np.array_equal(points, wanted[f"{codes}_extreme"])
            assert np.array_equal(box, wanted[f"{codes}_box"])
            right += 1
    assert right == 8


def test_the_exact_rule_keeps_corners_where_upstreams_moves_them():
    grid = WorkingGrid(grid_of("LAS", (26, 34, 40), (4.0, 2.4, 2.1)))
    last = np.array(grid.shape) - 1
    np.testing.assert_allclose(grid.indices([last])[0], [25, 33, 39], atol=1e-9)
    upstream = last / (np.array([4.0, 2.4, 2.1]) / 3.0)
    assert np.abs(upstream - [25, 33, 39]).max() > 0.3


def test_no_patient_axes_means_display_order():
    geometry = Geometry.from_spacing((20, 30, 40), (3.0, 3.0, 3.0), unit="mm")
    grid = WorkingGrid(geometry)
    np.testing.assert_allclose(grid.indices([[0, 0, 0]])[0], [19, 29, 0])
