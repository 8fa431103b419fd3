"""What the user should know about a scan before it becomes a template; it is added all the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from napari_openmedlab.cohort.library_format import Entry
from napari_openmedlab.geometry.volume import Volume

__all__ = ["advice"]

_OBLIQUE = 15.0  # degrees between a voxel axis and the patient's
_THICK_MM = 6.0


def advice(volume: Volume, modality: str, others: Sequence[Entry]) -> tuple[str, ...]:
    """Return sentences on what sets a scan apart from the other templates, or makes it odd.

    Parameters
    ----------
    volume : Volume
    modality : str
        As far as known.
    others : sequence of Entry
        The templates that are there.
    """
    geometry = volume.geometry
    notes = []
    if geometry.frame != "patient":
        notes.append(
            f"{volume.name} does not say how the patient lay: its own axes are taken for left, "
            "posterior and superior. Templates and scans must then be stored alike"
        )
    elif geometry.obliquity > _OBLIQUE:
        notes.append(
            f"{volume.name} is {geometry.obliquity:.0f} degrees oblique to the patient's axes; "
            "its box fits scans of the same tilt best"
        )
    if geometry.is_sheared:
        notes.append(f"the slices of {volume.name} are not stacked at right angles (gantry tilt)")
    if geometry.unit != "mm":
        notes.append(f"{volume.name} is measured in {geometry.unit}, not in mm")
    elif max(geometry.spacing) > _THICK_MM:
        notes.append(
            f"{volume.name} has slices {max(geometry.spacing):.1f} mm apart: walls can't be "
            "placed more finely than that"
        )
    return (*notes, *_against_others(volume, modality, others))


def _against_others(volume: Volume, modality: str, others: Sequence[Entry]) -> list[str]:
    notes = []
    known = Counter(each.modality for each in others if each.modality)
    if modality and known and modality not in known:
        most = known.most_common(1)[0][0]
        notes.append(
            f"{volume.name} is {modality}, the other templates are {most}: engines compare "
            "intensities, so keep a library for each modality"
        )
    frames = {each.geometry.frame for each in others} - {volume.geometry.frame}
    if frames:
        notes.append(
            f"{volume.name} and the other templates do not share a frame (patient against image "
            "axes); points can't be compared between them"
        )
    return notes
