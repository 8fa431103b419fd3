"""Axial, coronal, sagittal, 3D, the letters at the edges, and notes about the image."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QObject

from napari_openmedlab.bridge.view import AnatomicalLetters, show_3d, show_plane
from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.sections import ImageSection

__all__ = ["ViewButtons", "notes_on"]

_TILT = 1.0  # degrees; less is the patient not lying quite straight


class ViewButtons(QObject):
    """Connects the image section's buttons with the viewer.

    Parameters
    ----------
    viewer : napari.Viewer
    section : ImageSection
    letters : bool
        Whether the letters are shown at first.
    """

    def __init__(
        self, viewer: Any, section: ImageSection, *, letters: bool, parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._section = section
        self._letters: AnatomicalLetters | None = None
        for plane in ("axial", "coronal", "sagittal"):
            section.views[plane].clicked.connect(lambda _=False, p=plane: self._show_plane(p))
        section.views["3d"].clicked.connect(self._show_3d)
        section.letters.toggled.connect(self._on_letters)
        section.letters.setChecked(letters)

    def show(self, session: Session | None) -> None:
        """Show what has to be known about the session's image."""
        notes = () if session is None else notes_on(session.volume)
        self._section.note.setText("\n".join(notes))
        self._section.note.setVisible(bool(notes))
        flat = session is None or session.volume.geometry.shape[0] == 1
        patient = session is not None and session.volume.geometry.frame == "patient"
        for made in self._section.views.values():
            made.setEnabled(not flat)
        self._section.letters.setEnabled(patient)

    def stop(self) -> None:
        """Take the letters away."""
        if self._letters is not None:
            self._letters.close()
            self._letters = None

    def _show_plane(self, plane: Any) -> None:
        try:
            show_plane(self._viewer, plane)
        except GeometryError as error:
            self._viewer.status = str(error)

    def _show_3d(self) -> None:
        try:
            show_3d(self._viewer)
        except GeometryError as error:
            self._viewer.status = str(error)

    def _on_letters(self, on: bool) -> None:
        if on and self._letters is None:
            self._letters = AnatomicalLetters(self._viewer)
        elif not on:
            self.stop()


def notes_on(volume: Volume) -> tuple[str, ...]:
    """Return what the user has to know about an image, one sentence each."""
    notes = list(volume.notes)
    geometry = volume.geometry
    if geometry.frame == "patient" and geometry.obliquity > _TILT:
        notes.append(
            f"The slices are tilted by {geometry.obliquity:.0f}° against the patient. They are "
            "shown along the scan's own axes; measures and exports use the true position."
        )
    if geometry.is_sheared:
        notes.append("The slices are sheared against each other; they are shown straightened.")
    if geometry.unit == "pixel":
        notes.append("The voxel size is not known: volumes are counted in voxels.")
    return tuple(notes)
