"""Labelled layers of a viewer as cases to learn from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from napari.layers import Image, Labels, Layer

from napari_openmedlab.bridge.layers import tag_of, volume_of_layer
from napari_openmedlab.bridge.sessions import ViewerSessions
from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.training.cases import Case

__all__ = ["images_of", "labelled_layers", "layer_cases"]

LeftOut = list[tuple[str, str]]


def images_of(viewer: Any) -> tuple[Image, ...]:
    """Return the image layers that may be scans, in the order of the layer list."""
    return tuple(
        each
        for each in viewer.layers
        if isinstance(each, Image) and not getattr(each, "rgb", False)
    )


def labelled_layers(viewer: Any, image: Layer) -> tuple[Labels, ...]:
    """Return the labels layers that lie on the grid of an image; empty ones too."""
    try:
        geometry = volume_of_layer(image).geometry
    except GeometryError:
        return ()
    found = []
    for layer in viewer.layers:
        if not isinstance(layer, Labels):
            continue
        try:
            if not geometry.difference(volume_of_layer(layer).geometry):
                found.append(layer)
        except GeometryError:
            continue
    return tuple(found)


def layer_cases(
    viewer: Any, sessions: ViewerSessions, images: Iterable[Layer] | None = None
) -> tuple[list[Case], LeftOut]:
    """Return each image that is open with its labels, and what is left out and why.

    Parameters
    ----------
    viewer : napari.Viewer
    sessions : ViewerSessions
        Objects of the session at work on an image go before other labels layers.
    images : iterable of Layer, optional
        Only these.

    Returns
    -------
    cases : list of Case
        Labels are copied: what is painted later is not learnt.
    left_out : list of (str, str)
        Name of the image layer, and the reason.
    """
    cases: list[Case] = []
    left_out: LeftOut = []
    for image in images_of(viewer) if images is None else images:
        try:
            volume = volume_of_layer(image)
        except GeometryError as error:
            left_out.append((image.name, str(error)))
            continue
        layer, reason = _labels_for(viewer, sessions, image)
        if layer is None:
            left_out.append((image.name, reason))
            continue
        cases.append(_case(image.name, volume, layer, sessions))
    return cases, left_out


def _labels_for(viewer: Any, sessions: ViewerSessions, image: Layer) -> tuple[Labels | None, str]:
    """Return the labels layer of an image, or why there is none."""
    fitting = [layer for layer in labelled_layers(viewer, image) if _has_any(layer)]
    own = sessions.session_of(image)
    of_session = [layer for layer in fitting if own and sessions.session_of(layer) is own]
    of_image = [layer for layer in fitting if sessions.session_of(layer) is None]
    others = [layer for layer in of_image if not _belongs_elsewhere(layer, image)]
    chosen = of_session or others
    if len(chosen) > 1:
        names = ", ".join(f"'{layer.name}'" for layer in chosen)
        return None, f"several labels layers lie on it ({names}); hide or remove all but one"
    if chosen:
        return chosen[0], ""
    anywhere = any(isinstance(layer, Labels) for layer in viewer.layers)
    return None, (
        "no labels layer with labels lies on its grid" if anywhere else "it has no labels"
    )


def _has_any(layer: Labels) -> bool:
    """Return whether a labels layer is shown and has a label."""
    if not layer.visible:
        return False
    array = layer.data[0] if layer.multiscale else layer.data
    return any(bool(np.asarray(plane).any()) for plane in array)


def _belongs_elsewhere(layer: Labels, image: Layer) -> bool:
    """Return whether a labels layer of ours was made for another image of the same grid."""
    mine, its = tag_of(image), tag_of(layer)
    if mine is None or its is None or its.role != "labels":
        return False
    same_array = its.volume.array is mine.volume.array
    is_own_file = its.volume.array is layer.data  # a label file opened by itself
    return not (same_array or is_own_file)


def _case(name: str, volume: Volume, layer: Labels, sessions: ViewerSessions) -> Case:
    labels = np.array(volume_of_layer(layer).array)
    return Case(name, volume, labels, _names(layer, sessions))


def _names(layer: Labels, sessions: ViewerSessions) -> dict[int, str]:
    """Return names by value: of the session's objects, of the file's sidecar, of the features."""
    session = sessions.session_of(layer)
    if session is not None:
        return {each.id: each.name for each in session.objects}
    tag = tag_of(layer)
    if tag is not None and tag.objects:
        return {int(value): str(info.name) for value, info in tag.objects.items()}
    table = layer.features
    if {"index", "name"} <= set(table.columns):
        pairs = zip(table["index"], table["name"], strict=True)
        return {int(value): str(name) for value, name in pairs if int(value) > 0}
    return {}
