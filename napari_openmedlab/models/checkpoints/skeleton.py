"""Build a network without its numbers, in a moment.

On torch's meta device the first random number loads a symbolic algebra package for about a
second (measured: 0.9 s and 70 MB on torch 2.13). The numbers are thrown away anyway, so
nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from napari_openmedlab.models import networks

__all__ = ["skeleton"]

_IN_PLACE = frozenset((torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.exponential_))
_NEW = {torch.randn: torch.empty, torch.rand: torch.empty}


class _NothingDrawn(TorchFunctionMode):  # type: ignore[misc]
    """Leaves out what would draw random numbers on the meta device, and only there."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func in _IN_PLACE and args[0].is_meta:
            return args[0]
        if func in _NEW and str(given.get("device")) == "meta":
            func = _NEW[func]
        return func(*args, **given)


def skeleton(network: str, variant: Mapping[str, Any]) -> Any:
    """Return :func:`networks.build` on the meta device: shapes and constants, no weights.

    Parameters
    ----------
    network : str
    variant : mapping

    Returns
    -------
    torch.nn.Module
        In eval mode; constants that are no part of the checkpoint are real, all else is meta.

    Raises
    ------
    ValueError
        For an unknown name or a variant the network can't have.
    """
    with _NothingDrawn():
        return networks.build(network, device="meta", **variant)
