"""Damages files at random, the same way every time."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from napari_openmedlab.errors import ReadError


def random_damage(data: bytes, seed: int) -> bytes:
    """Cut ``data`` short or change up to 20 bytes, most of them in the first kilobyte."""
    rng = random.Random(seed)
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    reach = len(data) if rng.random() < 0.4 else min(len(data), 1200)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        changed[rng.randrange(reach)] = rng.randrange(256)
    return bytes(changed)


def refusals(files: list[Path], read, count: int) -> int:
    """Damage one file after another and read; return how often a ReadError said no.

    Any other error is the failure that the caller's test looks for.
    """
    refused = 0
    for seed in range(count):
        path = files[seed % len(files)]
        whole = path.read_bytes()
        path.write_bytes(random_damage(whole, seed))
        try:
            np.asarray(read().array)
        except ReadError:
            refused += 1
        path.write_bytes(whole)
    return refused
