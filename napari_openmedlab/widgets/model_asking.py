"""What the Models panel has to ask: accept a licence, choose a network, remove a file."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QDialog,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_openmedlab.models.catalogue import NOT_STATED, CheckpointSpec
from napari_openmedlab.widgets.model_rows import link
from napari_openmedlab.widgets.sections import button, wrapped_label

__all__ = ["LicenceDialog", "QuestionBar"]


class LicenceDialog(QDialog):
    """Shows the licences of a checkpoint; the way on opens once they are accepted.

    Opened with ``open()``, it keeps only its own panel waiting, never a running job.

    Parameters
    ----------
    spec : CheckpointSpec
    parent : QWidget

    Attributes
    ----------
    accept_box : QCheckBox
    go_on : QPushButton
    """

    def __init__(self, spec: CheckpointSpec, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(f"Licence of {spec.title}")
        self.setMinimumWidth(480)
        text = QLabel(_terms(spec))
        text.setWordWrap(True)
        text.setOpenExternalLinks(True)
        self.accept_box = QCheckBox("I have read the licences and keep to them")
        direct = spec.how == "direct"
        self.go_on = QPushButton("Download" if direct else "Open the page")
        self.go_on.setEnabled(False)
        self.go_on.setDefault(True)
        self.leave = QPushButton("Cancel")
        self.accept_box.toggled.connect(self.go_on.setEnabled)
        self.go_on.clicked.connect(self.accept)
        self.leave.clicked.connect(self.reject)
        row = QHBoxLayout()
        row.addStretch()
        row.addWidget(self.leave)
        row.addWidget(self.go_on)
        layout = QVBoxLayout(self)
        layout.addWidget(text)
        layout.addWidget(self.accept_box)
        layout.addLayout(row)


def _terms(spec: CheckpointSpec) -> str:
    """Return the licences of a checkpoint, and where to read them, as HTML."""
    weights, code = html.escape(spec.weights_licence), html.escape(spec.code_licence)
    lines = [f"<h3>{html.escape(spec.title)}</h3><p><b>Weights:</b> {weights}<br>"]
    lines.append(f"<b>Code:</b> {code}</p>")
    if spec.weights_licence == NOT_STATED:
        lines.append(
            "<p>The publisher states no licence for the weights. Ask the authors before you use "
            "them for more than your own research.</p>"
        )
    if spec.non_commercial:
        lines.append("<p><b>Take these weights as not for commercial use.</b></p>")
    if spec.notes:
        lines.append(f"<p>{html.escape(spec.notes)}</p>")
    lines.append(f"<p>The terms themselves: {link(spec.source)}</p>")
    where = spec.url if spec.how == "direct" else spec.page
    lines.append(f"<p>{_way(spec)}<br><small>{html.escape(where)}</small></p>")
    return "".join(lines)


def _way(spec: CheckpointSpec) -> str:
    if spec.how == "direct":
        return "The file is fetched from:"
    named = f"Save <b>{html.escape(spec.file)}</b>" if spec.file else "Save the file"
    return f"There is no stable link. {named} with your browser, then drop it on the panel:"


class QuestionBar(QFrame):
    """Asks in the panel itself, so that nothing else has to wait. One question at a time."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.label = wrapped_label()
        self.buttons: list[QPushButton] = []
        self._row = QHBoxLayout()
        self._row.setSpacing(4)
        self._waiting: list[tuple[str, Sequence[str], Callable[[int], None]]] = []
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 4, 6, 4)
        layout.addWidget(self.label)
        layout.addLayout(self._row)
        self.hide()

    def ask(self, question: str, answers: Sequence[str], then: Callable[[int], None]) -> None:
        """Ask, or wait for the questions before; ``then`` gets the number of the answer."""
        self._waiting.append((question, answers, then))
        if len(self._waiting) == 1:
            self._show_first()

    def clear(self) -> None:
        """Drop all questions."""
        self._waiting.clear()
        self._show_first()

    def _show_first(self) -> None:
        for old in self.buttons:
            self._row.removeWidget(old)
            old.hide()
            old.deleteLater()
        self.buttons = []
        self.setVisible(bool(self._waiting))
        if not self._waiting:
            return
        question, answers, _ = self._waiting[0]
        self.label.setText(question)
        for number, answer in enumerate(answers):
            made = button(answer, question)
            made.clicked.connect(lambda _=False, n=number: self._on_answer(n))
            self._row.addWidget(made)
            self.buttons.append(made)

    def _on_answer(self, number: int) -> None:
        _, _, then = self._waiting.pop(0)
        self._show_first()
        then(number)
