"""What templates teach: features of every marked point, kept under a signature, averaged at use.

Features are kept per template, so templates may come and go, and those of one structure need not
be those of another (upstream wants every structure in every template).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import Cancelled, OpenMedLabError
from napari_openmedlab.geometry.extreme_points import wall_directions
from napari_openmedlab.models.embeddings import EmbeddingCache
from napari_openmedlab.models.engines.medlam.grid import HALF
from napari_openmedlab.models.engines.medlam.patches import PointFeatures, Steps, point_features
from napari_openmedlab.models.engines.medlam.preparing import VERSION, Prepared, prepare
from napari_openmedlab.models.engines.weights import Loaded
from napari_openmedlab.models.localisation import WALLS, Landmarks, Template
from napari_openmedlab.models.networks.medlam import SCALES

__all__ = ["Gathered", "Known", "Lesson", "gather", "signature"]


@dataclass(frozen=True, eq=False)
class Known:
    """A structure as its templates show it.

    Attributes
    ----------
    name : str
    templates : tuple of str
        Ids of those that teach it.
    positions : ndarray of float32, shape (K, P, 3)
        Embeddings, one row a template.
    kernels : tuple of ndarray of float32, shape (P, C, k, k, k)
        Mean over the templates, one array a scale. A mean, where upstream has the sum: the best
        place is the same, and scores of different K compare.
    extents_mm : ndarray of float64, shape (K, 3)
        Size of the marked box (z, y, x).
    """

    name: str
    templates: tuple[str, ...]
    positions: NDArray[np.float32]
    kernels: tuple[NDArray[np.float32], ...]
    extents_mm: NDArray[np.float64]


@dataclass(eq=False)
class Gathered:
    """All structures that could be learnt, and what to tell of the others."""

    known: dict[str, Known] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    computed: int = 0

    def tell(self, name: str, sentence: str) -> None:
        """Note a sentence about a structure."""
        self.notes.setdefault(name, []).append(sentence)


def signature(loaded: Loaded, template: Template, marks: Landmarks, scales: Sequence[int]) -> str:
    """Return the name under which features are kept.

    It holds all that decides them: before the ``@`` the scan, points, precision and scales, after
    it the weights and the pre-processing. A library may drop what differs after the ``@`` only.
    """
    network, sha256, precision = loaded.key
    points = ";".join(",".join(map(repr, point)) for point in marks.points)
    place = _short(f"{template.content}|{points}")
    levels = "".join(map(str, scales))
    return f"medlam-{precision}-{levels}-{place}@{_short(f'{VERSION}|{network}|{sha256}')}"


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def gather(lesson: Lesson, templates: Sequence[Template], names: Sequence[str]) -> Gathered:
    """Return what the templates teach of structures, computing what is not kept.

    A template's scan is read only if features of it are missing, and let go before the next.
    What can't be used (no image, unreadable, crossed points) is left out and told. Templates
    are added up in the order given, so the sums are the same to the bit, kept or computed.
    """
    gathered = Gathered()
    sums: dict[str, _Sum] = {}
    for template in templates:
        marked = [m for m in (template.structure(name) for name in names) if m is not None]
        marked = [m for m in marked if _meant(m, template, gathered)]
        found = {m.name: lesson.kept(template, m) for m in marked}
        missing = [m for m in marked if found[m.name] is None]
        if missing:
            found.update(lesson.computed(template, missing, gathered))
        for marks in marked:
            features = found[marks.name]
            if features is not None:
                sums.setdefault(marks.name, _Sum()).add(template.id, features, _extent(marks))
    gathered.known = {name: each.known(name) for name, each in sums.items()}
    return gathered


@dataclass(eq=False)
class _Sum:
    """Adds up templates of one structure."""

    templates: list[str] = field(default_factory=list)
    positions: list[NDArray[np.float32]] = field(default_factory=list)
    extents: list[NDArray[np.float64]] = field(default_factory=list)
    kernels: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, template: str, features: PointFeatures, extent: NDArray[np.float64]) -> None:
        self.templates.append(template)
        self.positions.append(features.positions)
        self.extents.append(extent)
        if not self.kernels:
            self.kernels = [each.copy() for each in features.kernels]
            return
        for total, each in zip(self.kernels, features.kernels, strict=True):
            total += each

    def known(self, name: str) -> Known:
        count = np.float32(len(self.templates))
        return Known(
            name,
            tuple(self.templates),
            np.stack(self.positions),
            tuple(each / count for each in self.kernels),
            np.stack(self.extents),
        )


def _meant(marks: Landmarks, template: Template, gathered: Gathered) -> bool:
    """Return whether no walls are crossed; if some are, tell."""
    for axis, extent in enumerate(_extent(marks)):
        if extent < 0:
            gathered.tell(
                marks.name,
                f"Template '{template.id}' was left out: its {WALLS[axis]} point lies on the "
                f"{WALLS[axis + 3]} side of the {WALLS[axis + 3]} point.",
            )
            return False
    return True


def _extent(marks: Landmarks) -> NDArray[np.float64]:
    along = np.array(marks.points) @ wall_directions().T
    found: NDArray[np.float64] = np.array([along[a + 3, a] - along[a, a] for a in range(3)])
    return found


@dataclass(frozen=True, eq=False)
class Lesson:
    """How features of templates are had: kept ones, or by the network.

    Attributes
    ----------
    loaded : Loaded
    scales : tuple of int
    cache : EmbeddingCache
        Of this process, before what the template's library keeps.
    steps : Steps
    """

    loaded: Loaded
    scales: tuple[int, ...]
    cache: EmbeddingCache
    steps: Steps

    def kept(self, template: Template, marks: Landmarks) -> PointFeatures | None:
        """Return kept features; those of all scales serve for fewer too."""
        for had in dict.fromkeys((self.scales, SCALES)):
            key = signature(self.loaded, template, marks, had)
            found = _from_cache(self.cache, key, had)
            if found is None and template.features is not None:
                found = _read(template.features.get(key), had)
                if found is not None:
                    _to_cache(self.cache, key, had, found)
            if found is not None:
                kernels = tuple(found.kernels[had.index(scale)] for scale in self.scales)
                return PointFeatures(found.positions, kernels)
        return None

    def computed(
        self, template: Template, missing: Sequence[Landmarks], gathered: Gathered
    ) -> dict[str, PointFeatures | None]:
        """Compute features of structures on one template and keep them."""
        prepared = self._scan(template, missing, gathered)
        if prepared is None:
            return {}
        self.steps.total += sum(len(marks.points) for marks in missing)
        made: dict[str, PointFeatures | None] = {}
        for marks in missing:
            voxels = np.rint(prepared.grid.working(marks.points)).astype(np.int64)
            if (voxels < 0).any() or (voxels >= prepared.grid.shape).any():
                gathered.tell(
                    marks.name,
                    f"Template '{template.id}' was left out: a point lies outside its scan.",
                )
                continue
            self.steps.text = f"learning {marks.name} from {template.id}"
            found = point_features(self.loaded, prepared, voxels + HALF, self.scales, self.steps)
            gathered.computed += len(voxels)
            self._keep(template, marks, found, gathered)
            made[marks.name] = found
        return made

    def _keep(
        self, template: Template, marks: Landmarks, found: PointFeatures, gathered: Gathered
    ) -> None:
        key = signature(self.loaded, template, marks, self.scales)
        _to_cache(self.cache, key, self.scales, found)
        if template.features is None:
            return
        try:
            template.features.put(key, _arrays(found, self.scales))
        except OSError as error:
            gathered.tell(
                marks.name,
                f"What was learnt from template '{template.id}' could not be kept ({error}); it "
                "will be computed again next time.",
            )

    def _scan(
        self, template: Template, missing: Sequence[Landmarks], gathered: Gathered
    ) -> Prepared | None:
        """Return a template's scan, or ``None`` if there is none, told."""
        why = (
            "its image is not in the library, and what was learnt from it belongs to other "
            "weights, other points or another version; add the image again"
        )
        if template.load is not None:
            try:
                return prepare(template.load(), self.steps.monitor)
            except Cancelled:
                raise
            except (OpenMedLabError, OSError) as error:
                why = str(error)
        for marks in missing:
            gathered.tell(marks.name, f"Template '{template.id}' was left out: {why}.")
        return None


# -- as arrays -----------------------------------------------------------------------------


def _arrays(features: PointFeatures, scales: Sequence[int]) -> dict[str, NDArray[Any]]:
    named: dict[str, NDArray[Any]] = {"positions": features.positions}
    for scale, kernels in zip(scales, features.kernels, strict=True):
        named[f"kernels{scale}"] = kernels
    return named


def _read(arrays: Mapping[str, NDArray[Any]] | None, scales: Sequence[int]) -> PointFeatures | None:
    """Return features from kept arrays, or ``None`` if they are not what was put there."""
    names = ["positions", *(f"kernels{scale}" for scale in scales)]
    if arrays is None or not all(name in arrays for name in names):
        return None
    found = [np.asarray(arrays[name], dtype=np.float32) for name in names]
    if found[0].ndim != 2 or any(each.ndim != 5 for each in found[1:]):
        return None
    if not all(np.isfinite(each).all() for each in found):
        return None
    return PointFeatures(found[0], tuple(found[1:]))


def _from_cache(cache: EmbeddingCache, key: str, scales: Sequence[int]) -> PointFeatures | None:
    names = ["positions", *(f"kernels{scale}" for scale in scales)]
    found = {name: cache.get(f"{key}:{name}") for name in names}
    present = {name: array for name, array in found.items() if array is not None}
    return _read(present, scales)


def _to_cache(
    cache: EmbeddingCache, key: str, scales: Sequence[int], features: PointFeatures
) -> None:
    for name, array in _arrays(features, scales).items():
        cache.put(f"{key}:{name}", array)
