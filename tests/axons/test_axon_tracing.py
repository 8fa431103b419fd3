"""Skeletons become trees in um that a second program reads; branches are measured."""

import csv

import numpy as np
import pytest
from skimage.morphology import skeletonize

from benchmarks.axon_tubes import TubeScene, make_tubes
from napari_openmedlab.axons.skeleton import Skeleton, skeletonise
from napari_openmedlab.axons.swc import write_swc
from napari_openmedlab.axons.tracing import TracingSettings, branch_table, trace, write_branches
from napari_openmedlab.errors import SettingsError, WriteError

PLAIN = TracingSettings(smoothing=0)


def _skeleton(points, shape=(40, 40, 40), spacing=(1.0, 1.0, 1.0), radius=1.5):
    points = np.unique(np.array(points, dtype=np.int32), axis=0)
    return Skeleton(points, np.full(len(points), radius, np.float32), shape, spacing)


def _line(start, step, count):
    return [tuple(np.add(start, np.multiply(step, i))) for i in range(count)]


def _is_forest(forest):
    later = forest.parents >= 0
    assert (forest.parents[later] < np.flatnonzero(later)).all()  # parents first: no loops
    assert (forest.trees[forest.parents[later]] == forest.trees[later]).all()
    assert (np.diff(forest.trees) >= 0).all()
    assert (forest.parents < 0).sum() == len(np.unique(forest.trees))


def test_a_y_has_three_branches_with_their_lengths():
    fork = (20, 20, 20)
    points = [
        *_line(fork, (0, 0, 1), 11), *_line(fork, (0, 1, -1), 9), *_line(fork, (0, -1, -1), 7),
    ]  # fmt: skip
    forest = trace(_skeleton(points, spacing=(2.0, 0.5, 0.5)), PLAIN)
    _is_forest(forest)
    table = branch_table(forest)
    expected = sorted([5.0, 8 * np.sqrt(0.5), 6 * np.sqrt(0.5)])
    assert sorted(table.length) == pytest.approx(expected)
    assert table.tortuosity == pytest.approx(1.0)
    assert table.radius == pytest.approx(1.5)
    assert (table.tree == 0).all()
    ends = np.concatenate([table.start, table.end])
    assert (np.abs(ends - np.multiply(fork, (2.0, 0.5, 0.5))).max(axis=1) < 1e-9).sum() == 3


def test_a_ring_is_opened_and_keeps_its_voxels():
    angle = np.linspace(0, 2 * np.pi, 400)
    circle = np.stack([np.full(400, 5), 20 + 12 * np.sin(angle), 20 + 12 * np.cos(angle)], axis=1)
    ring = np.zeros((40, 40, 40), bool)
    ring[tuple(np.rint(circle).astype(int).T)] = True
    points = np.argwhere(skeletonize(ring))
    forest = trace(_skeleton(points), PLAIN)
    _is_forest(forest)
    assert len(forest.parents) == len(points)
    assert len(np.unique(forest.trees)) == 1
    assert (forest.degrees == 1).sum() >= 2


def test_voxels_across_the_border_of_a_row_do_not_touch():
    forest = trace(_skeleton([(3, 4, 9), (3, 5, 0)], shape=(10, 10, 10)), PLAIN)
    assert len(np.unique(forest.trees)) == 2
    assert len(branch_table(forest).length) == 0


def test_positions_are_world_um_with_the_origin():
    forest = trace(
        _skeleton([(1, 2, 3)], spacing=(4.0, 1.0, 0.5)), PLAIN, origin=(100.0, 10.0, -1.0)
    )
    np.testing.assert_allclose(forest.positions, [[104.0, 12.0, 0.5]])


def test_short_spurs_go_and_trees_of_short_branches_stay():
    line = _line((20, 20, 5), (0, 0, 1), 30)
    spur = _line((20, 20, 15), (0, 1, 0), 3)
    small = [*_line((5, 5, 5), (0, 0, 1), 3), *_line((5, 5, 6), (0, 1, 0), 3)]
    settings = TracingSettings(smoothing=0, shortest_spur=4.0)
    forest = trace(_skeleton([*line, *spur, *small]), settings)
    _is_forest(forest)
    table = branch_table(forest)
    in_long = table.length[table.start[:, 0] == 20]
    assert in_long == pytest.approx([29.0])
    assert (table.start[:, 0] == 5).any()


def test_short_trees_go_when_asked():
    long, short = _line((3, 3, 3), (0, 0, 1), 20), _line((30, 3, 3), (0, 0, 1), 4)
    forest = trace(_skeleton([*long, *short]), TracingSettings(shortest_tree=5.0))
    _is_forest(forest)
    assert len(forest.parents) == 20


def test_lengths_of_drawn_axons_are_right_after_smoothing():
    truth = make_tubes(TubeScene(shape=(64, 80, 80), axons=6, branching=0, edge=False, seed=2))
    skeleton = skeletonise(truth.mask)
    rough = trace(skeleton, PLAIN).lengths.sum()
    forest = trace(skeleton, TracingSettings(shortest_spur=3.0))
    tips = forest.radii[forest.degrees == 1].sum()  # thinning stops about a radius short of a tip
    assert abs((forest.lengths.sum() + tips) / truth.length - 1) < 0.03
    assert abs((rough + tips) / truth.length - 1) > 0.05


def test_swc_is_read_by_another_program(tmp_path):
    import morphio

    truth = make_tubes(TubeScene(shape=(48, 64, 64), axons=5, edge=False, blobs=0, seed=4))
    skeleton = skeletonise(truth.mask, (2.0, 0.65, 0.65))
    forest = trace(skeleton, TracingSettings(shortest_tree=5.0), origin=(10.0, 20.0, 30.0))
    _is_forest(forest)
    path = write_swc(tmp_path / "axons.swc", forest, provenance={"threshold": 0.5})
    text = path.read_text()
    assert text.startswith("# napari-openmedlab")
    assert "# threshold: 0.5" in text
    morphio.set_maximum_warnings(0)
    read = morphio.Morphology(str(path))
    assert len(read.root_sections) >= len(np.unique(forest.trees))
    rows = np.loadtxt(path)
    np.testing.assert_allclose(rows[:, 2:5], forest.positions[:, ::-1], atol=6e-4)
    assert set(rows[:, 1]) == {2}
    points = np.concatenate([s.points for s in read.iter()])
    low, high = forest.positions[:, ::-1].min(axis=0), forest.positions[:, ::-1].max(axis=0)
    np.testing.assert_allclose(points.min(axis=0), low, atol=1e-3)
    np.testing.assert_allclose(points.max(axis=0), high, atol=1e-3)
    length = sum(np.linalg.norm(np.diff(s.points, axis=0), axis=1).sum() for s in read.iter())
    assert length == pytest.approx(forest.lengths.sum(), rel=1e-3)


def test_branches_as_csv(tmp_path):
    forest = trace(_skeleton(_line((5, 5, 5), (0, 0, 2), 1) + _line((9, 9, 1), (0, 0, 1), 8)))
    path = write_branches(tmp_path / "b.csv", branch_table(forest), unit="voxel")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    assert float(rows[0]["length_voxel"]) == pytest.approx(7.0)
    assert {float(rows[0]["start_x_voxel"]), float(rows[0]["end_x_voxel"])} == {1.0, 8.0}
    assert float(rows[0]["start_z_voxel"]) == 9.0


def test_nothing_to_write_is_said_and_bad_settings_too(tmp_path):
    empty = trace(_skeleton(np.zeros((0, 3))))
    assert branch_table(empty).length.size == 0
    with pytest.raises(WriteError, match="no centre-line"):
        write_swc(tmp_path / "a.swc", empty)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SettingsError):
        TracingSettings(smoothing=-1)
