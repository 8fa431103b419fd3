"""Large volumes and their results as napari layers: lazy, multiscale, in place."""

import block_engines
import dask.array as da
import numpy as np
import pytest
import tifffile
from napari.layers import Image, Labels, Shapes

from napari_openmedlab.axons.plan import Settings, make_plan
from napari_openmedlab.axons.run import execute
from napari_openmedlab.axons.source import open_source, source_of_array
from napari_openmedlab.bridge.axon_layers import (
    box_of_shape,
    image_layer,
    image_of_run,
    result_layers,
    source_of_layer,
    voxel_size_of,
)
from napari_openmedlab.errors import GeometryError, ReadError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.io.ome_zarr_write import ImagePlace, build_levels, create_image
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Monitor

SHAPE = (8, 210, 40)


@pytest.fixture
def brain(tmp_path):
    place = ImagePlace((4.0, 2.0, 2.0), (40.0, 20.0, 10.0))
    array = create_image(tmp_path / "brain.zarr", SHAPE, np.uint16, (8, 64, 64), place, "brain")
    array[:] = np.random.default_rng(2).integers(100, 900, SHAPE).astype(np.uint16)
    build_levels(tmp_path / "brain.zarr", place, "brain", "mean")
    return tmp_path / "brain.zarr"


@pytest.fixture
def layer(brain):
    data, arguments = image_layer(open_source(brain))
    return Image(data, **arguments)


def test_a_volume_with_coarser_levels_is_a_lazy_multiscale_layer(layer):
    assert layer.multiscale
    assert len(layer.data) == 2
    assert all(isinstance(level, da.Array) for level in layer.data)
    assert tuple(layer.scale) == (4.0, 2.0, 2.0)
    assert tuple(layer.translate) == (40.0, 20.0, 10.0)
    assert voxel_size_of(layer) == (4.0, 2.0, 2.0)


def test_a_layer_gives_back_its_volume_with_levels_and_file(layer, brain):
    source = source_of_layer(layer)
    opened = open_source(brain)
    assert source.fingerprint() == opened.fingerprint()
    assert source.spacing == opened.spacing
    assert [tuple(v.array.shape) for v in source.levels] == [(8, 105, 20)]
    assert source.address.path == str(brain)
    assert source_of_layer(layer, (5, 3, 3)).spacing == (5.0, 3.0, 3.0)
    bare = source_of_layer(Image(np.zeros((4, 5, 6)), name="bare"))
    assert (bare.spacing, bare.address) == (None, None)
    with pytest.raises(GeometryError, match="has 4 axes"):
        source_of_layer(Image(np.zeros((2, 4, 5, 6))))


def test_a_layer_remembers_how_its_folder_was_opened(tmp_path):
    for z in (0, 1, 2, 4):
        tifffile.imwrite(tmp_path / f"s{z}.tif", np.full((8, 9), z, np.uint16))
    data, arguments = image_layer(open_source(tmp_path, gaps="fill"))
    again = source_of_layer(Image(data, **arguments)).address
    assert again.gaps == "fill"
    assert again.path == str(tmp_path)


@pytest.mark.parametrize("unit", ["unknown", "mm"])
def test_a_nifti_without_a_unit_opened_from_the_menu_has_no_voxel_size(tmp_path, unit):
    import nibabel as nib

    from napari_openmedlab.bridge.layers import volume_to_layer_data
    from napari_openmedlab.io.api import read

    image = nib.Nifti1Image(np.zeros((8, 9, 10), np.int16), np.diag([0.002, 0.002, 0.004, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "cube.nii")
    data, arguments, _ = volume_to_layer_data(read(tmp_path / "cube.nii"))
    layer = Image(data, **arguments)
    found = voxel_size_of(layer)
    if unit == "unknown":
        assert found is source_of_layer(layer).spacing is None
        layer.scale = (0.005, 0.002, 0.002)  # stated by the user now
        assert voxel_size_of(layer) == pytest.approx((5.0, 2.0, 2.0))
    else:
        assert found == pytest.approx((4.0, 2.0, 2.0))


def test_results_of_a_region_lie_over_their_volume(layer, tmp_path, monkeypatch):
    block_engines.register(monkeypatch)
    source = source_of_layer(layer)
    region = Box((2, 5, 10), (8, 205, 40))
    engine = load_engine("smooth")
    plan = make_plan(source, Settings("smooth", region=region), engine, Monitor(), timed=False)
    results = execute(plan, tmp_path / "out", engine, Monitor())
    found = result_layers(results)
    assert [kind for kind, _, _ in found] == [Image, Labels]
    for kind, data, arguments in found:
        made = kind(data, **arguments)
        assert made.multiscale
        assert made.units == layer.units
        np.testing.assert_allclose(made.data_to_world((0, 0, 0)), layer.data_to_world((2, 5, 10)))
        np.testing.assert_allclose(made.scale, layer.scale)


def test_the_image_of_a_run_is_found_by_its_file_or_its_voxels(layer, tmp_path, monkeypatch):
    block_engines.register(monkeypatch)
    source = source_of_layer(layer)
    engine = load_engine("smooth")
    plan = make_plan(source, Settings("smooth"), engine, Monitor(), timed=False)
    results = execute(plan, tmp_path / "out", engine, Monitor())
    voxels = np.asarray(source.volume.array)
    copy, other = Image(voxels, name="copy"), Image(voxels + 1, name="other")
    small = Image(voxels[:4], name="small")

    def found(*layers):
        return image_of_run(results, [(each, source_of_layer(each)) for each in layers])

    assert found(small, other, layer, copy) is layer
    assert found(small, other, copy) is copy
    assert found(small, other) is None
    lazy = da.from_array(voxels).map_blocks(_torn, dtype=voxels.dtype, meta=voxels[:0])
    torn = source_of_array(lazy, name="torn")
    assert image_of_run(results, [(other, torn), (copy, source_of_layer(copy))]) is copy


def _torn(block):
    raise ReadError("cut short")


def test_the_voxels_under_a_drawn_shape(layer):
    corners = layer.data_to_world([3, 10, 5]), layer.data_to_world([3, 30, 25])
    (z, a, b), (_, c, d) = corners
    shapes = Shapes([np.array([[z, a, b], [z, c, b], [z, c, d], [z, a, d]])])
    assert box_of_shape(shapes, layer, SHAPE) == Box((0, 10, 5), (8, 31, 26))
    with pytest.raises(GeometryError, match="draw a rectangle in 'box'"):
        box_of_shape(Shapes(name="box", ndim=3), layer, SHAPE)
