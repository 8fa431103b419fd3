"""What the tests of PCT-Net and FMUNet share: the reference cases of ``golden/mis_fm``."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_networks import largest_difference, recorded
from golden_weights import tensor_for

from napari_openmedlab.models import networks

TOLERANCE = 2e-4  # stated beside the reference numbers; ours is within 1e-4
INDEX = "relative_position_index"


def read_compressed(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()))


@dataclass
class Case:
    """One reference: how the network was built, its input, and its stored activations."""

    name: str
    variant: dict[str, Any]
    strides: dict[str, Any]
    patch: torch.Tensor
    stored: dict[str, np.ndarray]

    @property
    def network_name(self) -> str:
        return "pct-net" if self.name.startswith("pctnet") else "fmunet"

    def network(self) -> torch.nn.Module:
        """The network with its stand-in weights; the position index stays as it was built."""
        return filled(self.network_name, **self.variant)

    @torch.inference_mode()
    def differences(self, network: torch.nn.Module) -> dict[str, float]:
        """Largest difference of every stored activation and of the four outputs."""
        names = [name[4:] for name in self.stored if name.startswith("mid:")]
        network.deep_supervision = True
        with recorded({name: network.get_submodule(name) for name in names}) as found:
            heads = network(self.patch)
        found |= {f"out{i}": head for i, head in enumerate(heads) if f"out{i}" in self.stored}
        return {name: self._difference(name, tensor) for name, tensor in found.items()}

    def _difference(self, name: str, tensor: torch.Tensor) -> float:
        step = self.strides[name]
        if "tokens" in step:  # (B, Z, Y, X, C) here, (B, tokens, C) there
            part = tensor.flatten(1, 3)[:, :: step["tokens"], :: step["channels"]]
        else:
            z, y, x = step["spatial"]
            part = tensor[:, :: step.get("channels", 1), ::z, ::y, ::x]
        return largest_difference(part, self.stored[name if name[:3] == "out" else f"mid:{name}"])


def filled(name: str, **variant: Any) -> torch.nn.Module:
    """A network from the meta device with stand-in weights."""
    network = networks.build(name, device="meta", **variant)
    weights = {
        key: value
        if key.endswith(INDEX)
        else torch.from_numpy(np.asarray(tensor_for(key, tuple(value.shape))))
        for key, value in network.state_dict().items()
    }
    network.load_state_dict(weights, strict=True, assign=True)
    return network


def variant_of(params: dict[str, Any]) -> dict[str, Any]:
    """Our keywords for a reference's parameters."""
    mode = params["res_mode"] if "res_mode" in params else params["resolution_mode"]
    variant = {
        "in_channels": params["in_chns"],
        "out_channels": params["class_num"],
        "resolution_mode": mode,
        "channels": params["feature_chns"],
    }
    if params.get("input_size") == [32, 64, 64]:  # four voxels at the last level
        variant["windows"] = [6, 6, 4]
    return variant


def case_of(golden: Path, name: str, numbers: Path | None = None) -> Case:
    """Read a case; its numbers come from another folder if one is given."""
    facts = read_compressed(golden / "mis_fm" / "cases.json.gz")[name]
    with np.load((numbers or golden) / "mis_fm" / f"{name}.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    random = np.random.RandomState(zlib.crc32(f"input:{name}".encode()))
    patch = random.standard_normal(facts["input_shape"]).astype(np.float32)
    assert np.array_equal(patch[:, :, ::4, ::8, ::8], arrays["x_sub"])
    variant = variant_of(facts["params"])
    return Case(name, variant, facts["strides"], torch.from_numpy(patch), arrays)


def published_keys(golden: Path, name: str) -> tuple[list[tuple[str, tuple[int, ...]]], int]:
    """Keys and shapes in order, and the number of parameters."""
    facts = read_compressed(golden / "mis_fm" / "keys.json.gz")[name]
    return [(key, tuple(shape)) for key, shape in facts["entries"]], facts["parameters"]


def params_of(golden: Path, name: str) -> dict[str, Any]:
    """Our keywords for a case."""
    return variant_of(read_compressed(golden / "mis_fm" / "cases.json.gz")[name]["params"])


def is_caught(found: dict[str, float], times: float = 10) -> bool:
    """Whether an output differs by far more than two right implementations would."""
    return found["out0"] > times * TOLERANCE
