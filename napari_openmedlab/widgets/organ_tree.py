"""The tree of structures: groups with tick boxes, and a search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QTreeWidget, QTreeWidgetItem, QWidget

from napari_openmedlab.models.organ_tree import found_in, tree_of
from napari_openmedlab.models.organs import Group, colour_of, title_of

__all__ = ["OrganTree"]

_NAME = Qt.ItemDataRole.UserRole
_ROWS = 9


class OrganTree(QTreeWidget):
    """Structures to tick; a tick at a group is one at all its members.

    Attributes
    ----------
    changed : Signal()
        Other structures are ticked.
    """

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setHeaderHidden(True)
        self.setToolTip("Tick what is wanted; a group's tick counts for all its members")
        self.setMinimumHeight(_ROWS * (self.fontMetrics().height() + 4))
        self._names: tuple[str, ...] = ()
        self._items: dict[str, QTreeWidgetItem] = {}
        self._groups: dict[str, tuple[Group, ...]] = {}
        self.itemChanged.connect(self._on_changed)

    @property
    def names(self) -> tuple[str, ...]:
        """All structures shown, in the order of the model's classes."""
        return self._names

    def show_names(self, names: Sequence[str]) -> None:
        """Show the structures of a model; those that were not ticked before stay so."""
        if tuple(names) == self._names:
            return
        unticked = set(self._names) - set(self.chosen())
        self._names = tuple(names)
        self._items.clear()
        self._groups.clear()
        self.blockSignals(True)
        self.clear()
        for group in tree_of(names):
            self._add(group, self.invisibleRootItem(), ())
        for name in unticked & set(names):
            self._items[name].setCheckState(0, Qt.CheckState.Unchecked)
        self.blockSignals(False)
        if self.topLevelItemCount() == 1:
            self.expandAll()
        self.changed.emit()

    def chosen(self) -> tuple[str, ...]:
        """Return the ticked structures, in the order of the classes."""
        ticked = Qt.CheckState.Checked
        return tuple(n for n in self._names if self._items[n].checkState(0) == ticked)

    def choose(self, names: Iterable[str]) -> None:
        """Tick these structures and no others."""
        wanted = set(names)
        self.blockSignals(True)
        for name, item in self._items.items():
            state = Qt.CheckState.Checked if name in wanted else Qt.CheckState.Unchecked
            item.setCheckState(0, state)
        self.blockSignals(False)
        self.viewport().update()
        self.changed.emit()

    def search(self, text: str) -> None:
        """Show only what the text is found in, with the groups around it."""
        for name, item in self._items.items():
            item.setHidden(not found_in(text, name, self._groups[name]))
        for item in self._branches(self.invisibleRootItem()):
            rows = (item.child(row) for row in range(item.childCount()))
            item.setHidden(all(row.isHidden() for row in rows))
            if text.strip():
                item.setExpanded(True)

    def found(self) -> tuple[str, ...]:
        """Return the structures that the search shows."""
        return tuple(name for name in self._names if not self._items[name].isHidden())

    def _add(self, group: Group, parent: QTreeWidgetItem, around: tuple[Group, ...]) -> None:
        branch = QTreeWidgetItem(parent, [f"{group.title} ({len(group.names())})"])
        branch.setFlags(branch.flags() | _TICKS | Qt.ItemFlag.ItemIsAutoTristate)
        for part in group.parts:
            self._add(part, branch, (*around, group))
        for name in group.members:
            item = QTreeWidgetItem(branch, [title_of(name)])
            item.setData(0, _NAME, name)
            item.setFlags(item.flags() | _TICKS)
            item.setIcon(0, swatch(colour_of(name)))
            item.setCheckState(0, Qt.CheckState.Checked)
            self._items[name] = item
            self._groups[name] = (*around, group)

    def _branches(self, item: QTreeWidgetItem) -> Iterator[QTreeWidgetItem]:
        """Yield the groups under an item, the innermost first."""
        for row in range(item.childCount()):
            child = item.child(row)
            if child.childCount():
                yield from self._branches(child)
                yield child

    def _on_changed(self, item: QTreeWidgetItem, _column: int) -> None:
        self.changed.emit()


_TICKS = Qt.ItemFlag.ItemIsUserCheckable


def swatch(colour: tuple[float, float, float]) -> QIcon:
    """Return a small square of a colour."""
    pixels = QPixmap(12, 12)
    pixels.fill(QColor.fromRgbF(*colour))
    return QIcon(pixels)
