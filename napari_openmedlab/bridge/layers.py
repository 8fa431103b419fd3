"""Volumes and label maps as napari layers, and napari layers as volumes.

A layer of ours has a positive ``scale``, a ``translate`` that puts the centre of the volume where
it truly is, ``units`` and ``axis_labels``; for a patient frame napari's world is then (-z, y, x)
of LPS. An oblique scan is shown along its own axes, because napari can't slice a turned volume;
its true affine travels in ``layer.metadata``. Physical positions therefore always come from
voxel indices (:mod:`.positions`), never from napari's world.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from napari.layers import Image, Labels, Layer
from numpy.typing import NDArray

from napari_openmedlab.bridge.display import contrast_limits, label_colormap
from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.volume import Geometry, Unit, Volume

__all__ = [
    "METADATA_KEY",
    "LayerData",
    "LayerTag",
    "labels_to_layer_data",
    "layer_spatial",
    "spatial",
    "tag_of",
    "volume_of_layer",
    "volume_to_layer_data",
]

LayerData: TypeAlias = tuple[Any, dict[str, Any], str]

METADATA_KEY = "openmedlab"
"""Where a layer of ours keeps its :class:`LayerTag` in ``layer.metadata``."""

AXIS_LABELS = ("z", "y", "x")


@dataclass(frozen=True, eq=False)
class LayerTag:
    """What a layer of ours carries in its metadata.

    Attributes
    ----------
    uuid : str
        Names the layer for as long as it lives, whatever the user calls it.
    role : {"image", "labels", "prompts"}
    volume : Volume
        The image the layer shows, or the image a label or prompt layer belongs to.
    objects : mapping of int to label info
        Names and colours of label values, as far as the file had them.
    """

    uuid: str
    role: Literal["image", "labels", "prompts"]
    volume: Volume
    objects: Mapping[int, Any]

    @classmethod
    def new(
        cls,
        role: Literal["image", "labels", "prompts"],
        volume: Volume,
        objects: Mapping[int, Any] | None = None,
    ) -> LayerTag:
        """Return a tag with a fresh uuid."""
        return cls(uuid.uuid4().hex, role, volume, dict(objects or {}))


def tag_of(layer: Layer) -> LayerTag | None:
    """Return the tag of a layer of ours, ``None`` for any other layer."""
    tag = layer.metadata.get(METADATA_KEY)
    return tag if isinstance(tag, LayerTag) else None


def spatial(geometry: Geometry) -> dict[str, Any]:
    """Return the ``scale``, ``translate``, ``units`` and ``axis_labels`` of a layer on a grid.

    All four always go together: napari drops the units of every layer in the viewer as soon as
    one of them has none.
    """
    scale = np.array(geometry.spacing)
    middle = (np.array(geometry.shape) - 1) / 2
    centre = geometry.to_world(middle)[::-1].copy()
    if geometry.frame == "patient":
        centre[0] *= -1  # axis 0 grows to Inferior, LPS z to Superior
    return {
        "scale": tuple(float(v) for v in scale),
        "translate": tuple(float(v) for v in centre - scale * middle),
        "units": (geometry.unit,) * 3,
        "axis_labels": AXIS_LABELS,
    }


def layer_spatial(layer: Layer) -> dict[str, Any]:
    """Return the arguments that put another layer exactly over this one, its affine included.

    Labels, points and shapes made for a layer take these, so they fit foreign layers (turned,
    2D, other units) as well as ours.
    """
    return {
        "scale": tuple(layer.scale),
        "translate": tuple(layer.translate),
        "rotate": layer.rotate,
        "shear": layer.shear,
        "affine": layer.affine,
        "units": layer.units,
        "axis_labels": layer.axis_labels,
    }


def volume_to_layer_data(volume: Volume) -> LayerData:
    """Return a volume as an image layer.

    Parameters
    ----------
    volume : Volume
        May be lazy. If it is and ``volume.info["levels"]`` holds coarser resolutions, the
        layer is multiscale.

    Returns
    -------
    tuple
        Data, keyword arguments and ``"image"``, as napari readers and sample functions return.
    """
    levels = _pyramid(volume)
    data: Any = list(levels) if len(levels) > 1 else volume.array
    kwargs = {
        "name": volume.name,
        **spatial(volume.geometry),
        "contrast_limits": contrast_limits(volume, levels),
        "metadata": {METADATA_KEY: LayerTag.new("image", volume)},
    }
    if len(levels) > 1:
        kwargs["multiscale"] = True
    return data, kwargs, "image"


def _pyramid(volume: Volume) -> tuple[Any, ...]:
    """Return all resolutions of a lazy image, the finest first; one in memory needs no others."""
    if not volume.info.get("lazy"):
        return (volume.array,)
    coarser = volume.info.get("levels", ())
    return (volume.array, *(getattr(level, "array", level) for level in coarser))


def labels_to_layer_data(
    labels: NDArray[Any],
    volume: Volume,
    infos: Mapping[int, Any] | None = None,
    name: str = "labels",
) -> LayerData:
    """Return a label map on the grid of ``volume`` as a labels layer.

    Parameters
    ----------
    labels : ndarray of int, shape (z, y, x)
        Shown as it is: the layer shares its memory.
    volume : Volume
        The image the labels belong to (or the label file itself, read as a volume).
    infos : mapping of int to label info, optional
        ``name`` and ``colour`` of each value; values without one get napari's own colours.

    Raises
    ------
    GeometryError
        If the labels have another shape than the volume.
    """
    if tuple(labels.shape) != volume.geometry.shape:
        raise GeometryError(
            f"the labels '{name}' have shape {tuple(labels.shape)}, the image '{volume.name}' "
            f"{volume.geometry.shape}; labels must lie on the grid of their image"
        )
    kwargs: dict[str, Any] = {
        "name": name,
        **spatial(volume.geometry),
        "metadata": {METADATA_KEY: LayerTag.new("labels", volume, infos)},
    }
    if infos:
        kwargs["colormap"] = label_colormap({v: (i.colour, True) for v, i in infos.items()})
        kwargs["features"] = label_features(infos)
    return labels, kwargs, "labels"


def label_features(infos: Mapping[int, Any]) -> dict[str, list[Any]]:
    """Return the features table of a labels layer: napari shows the name under the cursor."""
    return {
        "index": [0, *infos],
        "name": ["background", *(info.name for info in infos.values())],
    }


def volume_of_layer(layer: Layer) -> Volume:
    """Return the image or label map of any napari layer as a :class:`Volume`.

    A layer of ours gives back the very volume it was made from, as long as its data and place
    are untouched. Any other layer is used as it is: its scale, translate, rotation, shear,
    affine and units make the grid. A 2D layer becomes one slice; of a pyramid the finest level
    is used; lazy data stay lazy. The layer is never changed.

    Raises
    ------
    GeometryError
        If the layer is not an image or labels, is RGB, or has more than three axes.
    """
    _check_kind(layer)
    data, notes = _finest(layer)
    tag = tag_of(layer)
    own = tag is not None and tag.role in ("image", "labels") and not _was_moved(layer, tag.volume)
    if tag is not None and own and tuple(data.shape) == tag.volume.geometry.shape:
        if data is tag.volume.array:
            return tag.volume
        return replace(tag.volume, array=data, name=layer.name)
    if tag is not None:
        notes = (
            *notes,
            f"The layer '{layer.name}' was cropped, moved or given another voxel size in napari. "
            "Its grid is taken from the layer now, no longer from the file.",
        )
    array = data if layer.ndim == 3 else data[None]
    geometry = _geometry_of(layer, tuple(int(n) for n in array.shape))
    if layer.ndim == 2:
        notes = (*notes, "A 2D image is treated as a volume of one slice.")
    return Volume(array, geometry, name=layer.name, notes=notes)


def _check_kind(layer: Layer) -> None:
    """Raise a sentence for layers that hold no scalar 2D or 3D image."""
    if not isinstance(layer, Image | Labels):
        raise GeometryError(
            f"'{layer.name}' is a {type(layer).__name__.lower()} layer; choose an image layer"
        )
    if isinstance(layer, Image) and layer.rgb:
        raise GeometryError(
            f"'{layer.name}' is a colour (RGB) image. Split it into grey channels first: "
            "right-click the layer, 'Split RGB'."
        )
    if layer.ndim not in (2, 3):
        raise GeometryError(
            f"'{layer.name}' has {layer.ndim} axes; one volume has three (z, y, x). Pick one time "
            "point or channel first: right-click the layer, 'Split Stack'."
        )


def _finest(layer: Image | Labels) -> tuple[Any, tuple[str, ...]]:
    """Return the full-resolution data and what to tell about a pyramid."""
    if not layer.multiscale:
        return layer.data, ()
    tag = tag_of(layer)
    if tag is not None and layer.data[0] is tag.volume.array:
        return tag.volume.array, ()
    return layer.data[0], ("The finest of several resolution levels is used.",)


def layer_matrix(layer: Layer) -> NDArray[np.float64]:
    """Return the (n+1, n+1) matrix from data indices to the layer's world, in its own units."""
    n = layer.ndim
    origin = np.array(layer.data_to_world(np.zeros(n)), dtype=np.float64)
    matrix = np.eye(n + 1)
    matrix[:n, n] = origin
    for axis in range(n):
        matrix[:n, axis] = np.array(layer.data_to_world(np.eye(n)[axis])) - origin
    return matrix


def _was_moved(layer: Layer, volume: Volume) -> bool:
    """Return whether the layer no longer lies where the volume's geometry puts it."""
    if layer.ndim != 3:
        return True
    wanted = spatial(volume.geometry)
    expected = np.diag([*wanted["scale"], 1.0])
    expected[:3, 3] = wanted["translate"]
    unit, factors = _units(layer)
    size = max(wanted["scale"])
    moved = np.abs(layer_matrix(layer) - expected).max() > 1e-4 * size
    return bool(moved or unit != volume.geometry.unit or set(factors) != {1.0})


def _geometry_of(layer: Layer, shape: tuple[int, ...]) -> Geometry:
    """Return the grid of a layer from its own transforms; world (x, y, z) in its units."""
    unit, factors = _units(layer)
    matrix = np.diag([*factors, 1.0]) @ layer_matrix(layer)
    n = layer.ndim
    full = np.eye(4)
    full[4 - n - 1 : 3, 3 - n : 3] = matrix[:n, :n]
    full[3 - n : 3, 3] = matrix[:n, n]
    if n == 2:  # a slice as thick as its pixels are wide, so distances stay sensible
        full[0, 0] = np.linalg.norm(matrix[:2, :2], axis=0).min()
    affine = full.copy()
    affine[:3] = full[2::-1]  # napari's world rows are (z, y, x), ours (x, y, z)
    a, b, c = shape
    return Geometry((a, b, c), affine, unit=unit, frame="image")


def _units(layer: Layer) -> tuple[Unit, tuple[float, ...]]:
    """Return one length unit for the layer and the factor of each axis to it.

    Layers without real lengths (napari's default is pixels) keep their numbers as pixels.
    """
    units = layer.units
    if not all(u.is_compatible_with("mm") for u in units):
        return "pixel", (1.0,) * len(units)
    in_um = [float((1 * u).to("um").magnitude) for u in units]
    if max(in_um) < 1000:
        return "um", tuple(round(v, 12) for v in in_um)
    return "mm", tuple(round(float((1 * u).to("mm").magnitude), 12) for u in units)
