"""Parts of a card arrive in their order and whole, whatever the card does meanwhile.

No card is needed: one that is slow is played by tensors that say they are on it.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="tiling needs the extra 'models'")

from napari_openmedlab.models.tiling import transfer  # noqa: E402


class Late(torch.Tensor):
    """A part on a card: copying it is only noted, and done when its event is waited for."""

    @property
    def device(self):
        return torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    copies, log = [], []
    empty = torch.empty

    class Buffer(torch.Tensor):
        def copy_(self, part, non_blocking=False):
            assert non_blocking
            copies.append((self, part))
            return self

    def buffer(shape, dtype, pin_memory):
        assert pin_memory
        log.append("buffer")
        return empty(shape, dtype=dtype).fill_(-1).as_subclass(Buffer)

    class Event:
        def record(self, _stream):
            self.copy = copies.pop()

        def synchronize(self):
            log.append("wait")
            target, part = self.copy
            target.as_subclass(torch.Tensor).copy_(part.as_subclass(torch.Tensor))

    monkeypatch.setattr(transfer.torch, "empty", buffer)
    monkeypatch.setattr(transfer.torch.cuda, "Event", Event)
    monkeypatch.setattr(transfer.torch.cuda, "current_stream", lambda _device: None)
    return log


def test_parts_arrive_whole_and_in_order_behind_the_work(card):
    arrived = []
    download = transfer.Download(torch.device("cpu"))
    for number in range(5):
        part = torch.full((3, 2), float(number)).as_subclass(Late)
        download.take(part, lambda found: arrived.append(found.unique().tolist()))
        assert len(arrived) == max(0, number - 1)  # two are on their way
    download.finish()
    assert arrived == [[0.0], [1.0], [2.0], [3.0], [4.0]]
    assert card.count("buffer") == 2  # page-locked memory is used again


def test_parts_of_another_size_get_memory_of_their_own(card):
    shapes = []
    download = transfer.Download(torch.device("cpu"))
    for shape in ((3, 2), (3, 2), (1, 2), (3, 2)):
        part = torch.zeros(shape).as_subclass(Late)
        download.take(part, lambda found: shapes.append(tuple(found.shape)))
    download.finish()
    assert shapes == [(3, 2), (3, 2), (1, 2), (3, 2)]


def test_on_the_cpu_nothing_waits():
    arrived = []
    transfer.Download(torch.device("cpu")).take(torch.ones(2), arrived.append)
    assert len(arrived) == 1
