"""Build a network without its numbers, in a moment.

On torch's meta device the first random number, and the first product with a plain number, loads
a symbolic algebra package for about a second (measured: 0.9 s and 70 MB on torch 2.13). Numbers
are thrown away there anyway, so nothing is drawn or scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from napari_openmedlab.models import networks

__all__ = ["skeleton"]

_IN_PLACE = frozenset((torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.exponential_))
_SCALED = frozenset((torch.Tensor.__mul__, torch.Tensor.__rmul__, torch.Tensor.mul))
_NEW = {torch.randn: torch.empty, torch.rand: torch.empty}


class _NothingDrawn(TorchFunctionMode):  # type: ignore[misc]
    """Leaves out what draws or scales random numbers on the meta device, and only there."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        tensor = args[0] if args else given.get("tensor")
        drawing = func in _IN_PLACE or getattr(func, "__module__", "") == "torch.nn.init"
        if drawing and _is_meta_float(tensor):
            return tensor
        if func in _NEW and str(given.get("device")) == "meta":
            func = _NEW[func]
        if func in _SCALED and _is_meta_float(tensor) and isinstance(args[1], float | int):
            return tensor  # has no values that could be scaled
        return func(*args, **given)


def _is_meta_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta and value.is_floating_point()


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
