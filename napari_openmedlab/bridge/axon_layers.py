"""Volumes larger than memory and what was found in them, as napari layers in place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from napari.layers import Image, Labels, Layer, Shapes
from napari.utils.transforms import Affine
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.axons.density import Density
from napari_openmedlab.axons.preview import Preview
from napari_openmedlab.axons.source import Address, Source, open_source, source_of_array
from napari_openmedlab.axons.store import Results
from napari_openmedlab.bridge.layers import layer_spatial, spatial, tag_of, volume_of_layer
from napari_openmedlab.bridge.positions import volume_points
from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.boxes import Box, box_of_points
from napari_openmedlab.geometry.volume import Volume

__all__ = [
    "box_of_shape",
    "density_layer",
    "image_layer",
    "image_of_run",
    "label_arguments",
    "preview_layers",
    "result_layers",
    "source_of_layer",
    "voxel_size_of",
]

_UM = {"um": 1.0, "mm": 1000.0}
_FLAT = 64  # slices on either side of a flat rectangle
_COLOUR = {1: (1.0, 0.32, 0.24, 1.0), None: (0.0, 0.0, 0.0, 0.0)}


def voxel_size_of(layer: Layer) -> tuple[float, float, float] | None:
    """Return a layer's voxel size (z, y, x) in um, ``None`` if nothing states it."""
    volume = volume_of_layer(layer)
    return _spacing(volume)


def source_of_layer(layer: Image, spacing: Sequence[float] | None = None) -> Source:
    """Return an image layer as a source; nothing is read.

    Parameters
    ----------
    layer : Image
        Three axes, one resolution or several.
    spacing : three floats, optional
        Voxel size (z, y, x) in um stated by the user.

    Raises
    ------
    GeometryError
        If the layer is RGB or has more than three axes.
    """
    volume = volume_of_layer(layer)
    if volume.array.ndim != 3:
        raise GeometryError(f"'{layer.name}' is no volume of (z, y, x)")
    coarser = list(layer.data[1:]) if layer.multiscale else []
    levels = source_of_array(volume.array, name=layer.name, coarser=coarser).levels
    source = Source(volume, levels, _spacing(volume), _address(layer))
    return source if spacing is None else source.with_spacing(spacing)


def image_layer(source: Source) -> tuple[Any, dict[str, Any]]:
    """Return data and arguments of an image layer that reads as it is looked at."""
    from dataclasses import replace

    from napari_openmedlab.bridge.layers import volume_to_layer_data

    info = {
        **source.volume.info, "levels": source.levels, "lazy": True, "address": source.address
    }  # fmt: skip
    data, arguments, _ = volume_to_layer_data(replace(source.volume, info=info))
    return data, arguments


def preview_layers(
    layer: Layer, found: Preview, threshold: float
) -> tuple[tuple[NDArray[Any], dict[str, Any]], tuple[NDArray[Any], dict[str, Any]]]:
    """Return data and arguments of a probability and a labels layer that lie over the image.

    Parameters
    ----------
    layer : Layer
        The image the preview was made in.
    found : Preview
    threshold : float
    """
    place = _over(layer, found.box.start)
    probability = {
        **place, "name": "preview: probability", "colormap": "magma", "blending": "additive",
        "contrast_limits": (0, 255), "opacity": 0.6,
    }  # fmt: skip
    labels = {**label_arguments(layer, found.box), "name": "preview: axons"}
    return (found.probability, probability), (found.labels(threshold), labels)


def label_arguments(layer: Layer, box: Box) -> dict[str, Any]:
    """Return place and looks of a labels layer over a box of an image."""
    return {**_over(layer, box.start), "colormap": _COLOUR, "opacity": 0.7}


def _over(layer: Layer, start: ArrayLike, step: ArrayLike = 1.0) -> dict[str, Any]:
    """Return the arguments that lay a grid over another layer.

    Parameters
    ----------
    layer : Layer
    start : array-like, shape (3,)
        Where the grid's first voxel has its centre, in voxels of the layer.
    step : array-like, shape () or (3,)
        Edges of the grid's voxels in those of the layer.
    """
    place = layer_spatial(layer)
    own = Affine(**{name: place[name] for name in ("scale", "translate", "rotate", "shear")})
    place["translate"] = tuple(own(np.asarray(start, dtype=float)))
    place["scale"] = tuple(np.asarray(layer.scale) * np.asarray(step))
    return place


def image_of_run(results: Results, shown: Iterable[tuple[Layer, Source]]) -> Layer | None:
    """Return the layer that shows the volume a run was made in, ``None`` if none does.

    Parameters
    ----------
    results : Results
    shown : iterable of (Layer, Source)
        The first that fits is taken. Only those of the run's shape and type that come from
        another file are read, at 27 small places.
    """
    run = results.run
    for layer, source in shown:
        alike = [list(source.shape), source.dtype.name]
        if alike != [run["source"]["shape"], run["source"]["dtype"]]:
            continue
        if source.address is not None and source.address.to_json() == run["address"]:
            return layer
        try:
            if source.fingerprint() == run["source"]:
                return layer
        except OSError:  # damaged: it is not for here to complain of it
            continue
    return None


def result_layers(
    results: Results, image: Layer | None = None
) -> list[tuple[type[Layer], Any, dict[str, Any]]]:
    """Return class, data and arguments of the layers of a run's results, in all resolutions.

    Parameters
    ----------
    results : Results
    image : Layer, optional
        Shows the volume they were made in: they lie over it, whatever its place and units.
        Without it they lie where their files say.
    """
    found: list[tuple[type[Layer], Any, dict[str, Any]]] = []
    looks: tuple[tuple[Any, Any, str, dict[str, Any]], ...] = (
        (Image, results.image, "axons: probability",
         {"colormap": "magma", "blending": "additive", "contrast_limits": (0, 255)}),
        (Labels, results.label_image, "axons", {"colormap": _COLOUR, "opacity": 0.7}),
    )  # fmt: skip
    place = {} if image is None else _over(image, results.region.start)
    for kind, path, name, look in looks:
        source = open_source(path)
        data, arguments = image_layer(source)
        for unwanted in ("contrast_limits", "metadata"):
            arguments.pop(unwanted)
        if isinstance(data, list) and len(data) == 1:
            data, arguments = data[0], {**arguments, "multiscale": False}
        arguments |= {**look, **place, "name": name, "metadata": {"axons": str(results.folder)}}
        found.append((kind, data, arguments))
    return found


def density_layer(
    found: Density, results: Results, image: Layer | None = None
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Return data and arguments of an image layer of a density map.

    Parameters
    ----------
    found : Density
    results : Results
        What it was made of.
    image : Layer, optional
        As for :func:`result_layers`.
    """
    grid = found.grid
    if image is None:
        place = spatial(grid.geometry)
    else:
        size = np.array(grid.spacing)
        first = grid.geometry.to_world((0, 0, 0))[::-1]
        start = results.region.start + (first - grid.origin) / size
        place = _over(image, start, grid.edge / size)
    looks = {"colormap": "viridis", "blending": "additive", "metadata": {"axons": "density"}}
    return found.values.astype(np.float32), {**place, **looks, "name": f"axons: {found.unit}"}


def box_of_shape(shapes: Shapes, layer: Layer, shape: Sequence[int]) -> Box:
    """Return the voxels under the selected shape (or the one drawn last).

    A flat rectangle reaches 64 slices to either side of the slice it was drawn on.

    Raises
    ------
    GeometryError
        If there is no shape.
    """
    if not len(shapes.data):
        raise GeometryError(f"draw a rectangle in '{shapes.name}' first")
    chosen = sorted(shapes.selected_data)[-1] if shapes.selected_data else -1
    corners = np.asarray(shapes.data[chosen], dtype=float)
    world = np.array([shapes.data_to_world(corner) for corner in corners])
    index = np.vstack(
        [volume_points(layer, [layer.world_to_data(point[-layer.ndim :])]) for point in world]
    )
    box = box_of_points(index)
    flat = [_FLAT if n == 1 else 0 for n in box.shape]
    return box.grow(flat).clip(shape)


def _spacing(volume: Volume) -> tuple[float, float, float] | None:
    factor = _UM.get(volume.geometry.unit)
    # A NIfTI without a unit is in mm by the custom of medicine; microscopes have no such custom.
    if factor is None or not volume.info.get("size_stated", True):
        return None
    z, y, x = (s * factor for s in volume.geometry.spacing)
    return z, y, x


def _address(layer: Layer) -> Address | None:
    """Return the file an untouched layer of ours came from, and which of its images it is."""
    tag = tag_of(layer)
    if tag is None:
        return None
    known = tag.volume.info.get("address")
    if isinstance(known, Address):
        return known
    path = getattr(tag.volume.source, "path", None)
    return Address(str(path)) if path is not None else None
