"""Checkpoints for tests: look-alikes of published files, damaged ones and armed ones."""

from __future__ import annotations

import argparse
import builtins
import functools
import importlib
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def small_weights() -> dict[str, torch.Tensor]:
    """A few named tensors; different numbers everywhere."""
    generator = torch.Generator().manual_seed(3)
    return {
        "a.weight": torch.randn(4, 3, generator=generator),
        "a.bias": torch.randn(4, generator=generator),
        "b.count": torch.tensor(7),
    }


def save(content: Any, path: Path, legacy: bool = False, protocol: int = 2) -> Path:
    """``torch.save`` in one of its two formats."""
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return path


def trained_file(weights: dict[str, torch.Tensor], key: str = "model") -> dict[str, Any]:
    """What training scripts leave beside the weights, an optimizer object and all."""
    layer = torch.nn.Linear(3, 2)
    adam = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    adam.step()
    return {
        key: weights,
        "epoch": 12,
        "optimizer": adam,
        "optimizer_state_dict": adam.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(adam, [5, 10]),
        "args": argparse.Namespace(task="ft", work_dir=Path("work"), lr=np.float32(1e-4)),
        "best_dice": np.float64(0.81),
        "losses": [np.float32(0.3), np.float64(0.2)],
        "plot_stuff": (np.arange(3.0), np.array(["a"], dtype=object), np.int64(3)),
        "used_datas": {"/data/ct", "/data/mr"},
        "device": torch.device("cuda"),
    }


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments

    def __call__(self, *_arguments: Any) -> Any:
        """Only so that the pickler takes a call's result as a function."""


def payloads(marker: Path) -> dict[str, Any]:
    """Objects that make a file ``marker`` when they are unpickled without protection."""
    command = f"touch {marker}" if os.name == "posix" else f"type nul > {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    system = Call(os.system, command)
    return {
        "os.system": system,
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "getattr chain": Call(Call(getattr, Call(__import__, "os"), "system"), command),
        "import_module": Call(getattr, Call(importlib.import_module, "os"), "system"),
        "partial": Call(Call(functools.partial, os.system, command)),
        "open": Call(builtins.open, str(marker), "w"),
        "in a list": [1, [2, (system,)]],
        "as a key": {(1, system): 2},
        "hooks of a tensor": Call(
            torch._utils._rebuild_parameter, torch.ones(2), True, {0: system}
        ),
        "rebuild from type": Call(
            torch._tensor._rebuild_from_type_v2, builtins.eval, torch.Tensor, (code,), None
        ),
        "torch's bytes loader": Call(torch.storage._load_from_bytes, pickle.dumps(system)),
        "pickle in a pickle": Call(pickle.loads, pickle.dumps(system)),
        "in arguments": argparse.Namespace(lr=1, hidden=system),
        "numpy object": np.array([system], dtype=object),
    }


def opcodes(command: str) -> dict[str, bytes]:
    """Pickles written by hand, byte by byte, as attackers write them."""
    line = command.encode()
    text = b"X" + struct.pack("<I", len(line)) + line
    name = "posix" if os.name == "posix" else "nt"

    def call(module: str, attribute: str) -> bytes:
        return f"c{module}\n{attribute}\n".encode() + text + b"\x85R"

    def stack_global(module: str, attribute: str) -> bytes:
        parts = [b"\x8c" + bytes([len(p)]) + p.encode() for p in (module, attribute)]
        return b"".join(parts) + b"\x93" + text + b"\x85R"

    adam = b"ctorch.optim.adam\nAdam\n)\x81"
    return {
        "system": b"\x80\x02" + call(name, "system") + b".",
        "protocol 0 INST": b"(S'" + line + f"'\ni{name}\nsystem\n.".encode(),
        "protocol 4": b"\x80\x04" + stack_global(name, "system") + b".",
        "OBJ": f"\x80\x02(c{name}\nsystem\n".encode("latin1") + text + b"o.",
        "dotted name": b"\x80\x04" + stack_global("argparse", "_os.system") + b".",
        "through Namespace": b"\x80\x04"
        + stack_global("argparse", "Namespace.__init__.__globals__")
        + b".",
        "through OrderedDict": b"\x80\x02" + call("collections", "OrderedDict.__reduce__") + b".",
        "through torch": b"\x80\x02" + call("torch.serialization", "os.system") + b".",
        "torch import": b"\x80\x02" + call("torch._utils", "_import_dotted_name") + b".",
        "torch hub": b"\x80\x02" + call("torch.hub", "load") + b".",
        "numpy load": b"\x80\x02" + call("numpy", "load") + b".",
        "runpy": b"\x80\x02" + call("runpy", "run_path") + b".",
        "copyreg": b"\x80\x02" + call("copyreg", "_reconstructor") + b".",
        "marshal": b"\x80\x02" + call("marshal", "loads") + b".",
        "popped": b"\x80\x02" + call(name, "system") + b"0}.",
        "before the dict": b"\x80\x02" + call(name, "system") + b"}.",
        "in an optimizer": b"\x80\x02" + adam + call(name, "system") + b"b.",
        "in a storage id": b"\x80\x02(X\x07\x00\x00\x00storage" + call(name, "system") + b"tQ.",
        "extension code": b"\x80\x02\x82\x01" + text + b"\x85R.",
    }


def zip_with_pickle(path: Path, content: bytes, name: str = "archive/data.pkl") -> Path:
    """A file in torch's zip format whose content is this pickle."""
    save({"model": small_weights()}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry, data in parts.items():
            kept = "archive/" + entry.partition("/")[2]
            if kept != name:
                archive.writestr(kept, data)
        archive.writestr(name, content)
    return path


def legacy_with_pickle(path: Path, content: bytes, at: int = 3) -> Path:
    """A file in torch's old format whose pickle number ``at`` is this one."""
    pickles: list[Any] = [LEGACY_MAGIC, 1001, {"little_endian": True}, {}, []]
    parts = [pickle.dumps(part, protocol=2) for part in pickles]
    parts[at] = content
    path.write_bytes(b"".join(parts))
    return path


def re_zipped(path: Path, target: Path) -> Path:
    """The same archive with its parts compressed, as a careless re-packing leaves it."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name), zipfile.ZIP_DEFLATED)
    return target


def pickled(content: Any, protocol: int = 2) -> bytes:
    """The bytes of a pickle."""
    buffer = io.BytesIO()
    pickle.Pickler(buffer, protocol).dump(content)
    return buffer.getvalue()
