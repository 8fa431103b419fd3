"""The published networks as plain torch modules: tensor in, tensor out, one file a network.

Keys, order and shapes of each state dict equal the published checkpoint's, so weights load
strictly. Importing this module imports no torch; :func:`build` does.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["build", "names"]

# Name -> "module:function" below this package; the function takes the variant's keywords.
_BUILDERS: dict[str, str] = {
    "sam-vit-b": "sam:build_vit_b",
    "sam-vit-l": "sam:build_vit_l",
    "sam-vit-h": "sam:build_vit_h",
    "medsam": "sam:build_medsam",
    "ft-sam": "sam_med2d:build_ft_sam",
    "sam-med2d": "sam_med2d:build_sam_med2d",
    "sam-med3d": "sam_med3d:build_sam_med3d",
    "stu-net-s": "stu_net:build_small",
    "stu-net-b": "stu_net:build_base",
    "stu-net-l": "stu_net:build_large",
    "stu-net-h": "stu_net:build_huge",
    "pct-net": "pct_net:build_pct_net",
    "fmunet": "fmunet:build_fmunet",
    "medlam": "medlam:build_medlam",
    "axon-seg": "axon_seg:build_axial",
    "axon-seg-plain": "axon_seg:build_plain",
}


def names() -> tuple[str, ...]:
    """Return the names :func:`build` knows."""
    return tuple(_BUILDERS)


def build(name: str, *, device: str = "cpu", **variant: Any) -> Any:
    """Build a network without reading any file.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    device : {"cpu", "meta"}
        ``"meta"`` makes parameters without memory or random numbers, for weights that are
        assigned afterwards (``load_state_dict(..., assign=True)``). Constants that are not part
        of the checkpoint are real on either device.
    **variant
        What the network's builder takes, for example ``in_channels`` or ``patch_size``.

    Returns
    -------
    torch.nn.Module
        In eval mode, float32.

    Raises
    ------
    ValueError
        For an unknown name or a variant the network can't have.
    """
    import torch

    if name not in _BUILDERS:
        raise ValueError(f"there is no network '{name}'; there are: {', '.join(_BUILDERS)}")
    if device not in ("cpu", "meta"):
        raise ValueError(f"a network is built on 'cpu' or 'meta', not on '{device}'")
    module, _, function = _BUILDERS[name].partition(":")
    builder = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    with torch.device(device):
        return builder(**variant).eval()
