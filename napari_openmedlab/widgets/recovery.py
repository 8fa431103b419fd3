"""Work that a crash left behind, offered in a bar that blocks nothing."""

from __future__ import annotations

import logging
from pathlib import Path

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QFrame, QHBoxLayout, QVBoxLayout, QWidget

from napari_openmedlab.errors import ReadError, SessionError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.session.autosave import Recoverable, discard, find_recoverable
from napari_openmedlab.session.store import saved_image
from napari_openmedlab.widgets.sections import button, wrapped_label

__all__ = ["RecoveryBar", "recoverable_for"]

logger = logging.getLogger(__name__)


def recoverable_for(volume: Volume, *folders: Path) -> Recoverable | None:
    """Return the newest unfinished work on exactly this image, if there is any.

    Parameters
    ----------
    volume : Volume
        Compared by grid and sampled content, so a moved or renamed file is recognised.
    *folders : Path
        Where to look; the user's data folder if none is given.
    """
    for entry in find_recoverable(*folders):
        try:
            saved_image(entry.path).fingerprint.check(volume)
        except (ReadError, SessionError) as error:
            logger.debug("not offered: %s", error)
            continue
        if entry.objects:
            return entry
    return None


class RecoveryBar(QFrame):
    """Offers unfinished work: Restore, Discard, or neither.

    Attributes
    ----------
    restore_asked : Signal(Recoverable)
    """

    restore_asked = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self._entry: Recoverable | None = None
        self.label = wrapped_label()
        self.restore = button("Restore", "Go on with that work; what is here now is replaced")
        self.discard = button("Discard", "Delete that work for good")
        self.later = button("Later", "Keep it and ask again when this image is opened next time")
        row = QHBoxLayout()
        for made in (self.restore, self.discard, self.later):
            row.addWidget(made)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 4, 6, 4)
        layout.addWidget(self.label)
        layout.addLayout(row)
        self.restore.clicked.connect(self._on_restore)
        self.discard.clicked.connect(self._on_discard)
        self.later.clicked.connect(self.hide)
        self.hide()

    @property
    def entry(self) -> Recoverable | None:
        """What is offered."""
        return self._entry

    def offer(self, entry: Recoverable | None) -> None:
        """Offer this work, or nothing."""
        self._entry = entry
        self.setVisible(entry is not None)
        if entry is not None:
            when = entry.saved.astimezone().strftime("%d %b, %H:%M")
            count = f"{entry.objects} object{'s' if entry.objects != 1 else ''}"
            self.label.setText(f"Unfinished work on {entry.image_name} from {when}: {count}.")

    def _on_restore(self) -> None:
        entry, self._entry = self._entry, None
        self.hide()
        if entry is not None:
            self.restore_asked.emit(entry)

    def _on_discard(self) -> None:
        entry, self._entry = self._entry, None
        self.hide()
        if entry is not None:
            discard(entry.path)
