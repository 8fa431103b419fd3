"""Kept embeddings: found again by what went in, bounded in memory and on disk."""

from __future__ import annotations

import os

import numpy as np
import pytest

from napari_openmedlab.models.embeddings import EmbeddingCache, signature


def embedding(value: float, n: int = 1000) -> np.ndarray:
    return np.full(n, value, np.float32)


def test_the_signature_follows_pixels_shape_dtype_and_weights():
    pixels = np.arange(24, dtype=np.float32)
    same = signature(pixels, "sha", "net")
    assert signature(pixels.copy(), "sha", "net") == same
    changed = pixels.copy()
    changed[7] = np.nextafter(changed[7], 99)
    others = [
        signature(changed, "sha", "net"),
        signature(pixels.reshape(4, 6), "sha", "net"),
        signature(pixels.astype(np.float64), "sha", "net"),
        signature(pixels, "other", "net"),
        signature(pixels, "sha", "other"),
    ]
    assert len({same, *others}) == 6


def test_memory_drops_what_was_used_longest_ago():
    cache = EmbeddingCache(memory_bytes=3 * 4000)
    for name in "abc":
        cache.put(name, embedding(1))
    assert cache.get("a") is not None  # used now
    cache.put("d", embedding(2))
    assert [name in cache for name in "abcd"] == [True, False, True, True]
    assert cache.nbytes == 12000


def test_one_embedding_larger_than_the_limit_is_kept_for_the_next_click():
    cache = EmbeddingCache(memory_bytes=10)
    cache.put("big", embedding(3))
    assert cache.get("big") is not None


def test_another_run_of_the_program_finds_them_on_disk(tmp_path):
    EmbeddingCache(10**6, tmp_path / "kept", 10**6).put("a", embedding(5))
    found = EmbeddingCache(10**6, tmp_path / "kept", 10**6).get("a")
    np.testing.assert_array_equal(found, embedding(5))
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_folder_stays_within_its_limit(tmp_path):
    cache = EmbeddingCache(10**6, tmp_path, disk_bytes=3 * 4200)
    for number, name in enumerate("abcde"):
        cache.put(name, embedding(number))
        for path in tmp_path.glob(f"{name}.*"):
            os.utime(path, ns=(number, number))
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 3 * 4200
    assert EmbeddingCache(10**6, tmp_path, 10**6).get("e") is not None


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY garbage", b"<html>"])
def test_a_damaged_file_counts_as_absent(tmp_path, content):
    cache = EmbeddingCache(10**6, tmp_path, 10**6)
    cache.put("a", embedding(1))
    next(tmp_path.glob("a.*")).write_bytes(content)
    cache.clear()
    assert cache.get("a") is None


def test_a_pickle_in_the_folder_is_never_loaded(tmp_path):
    cache = EmbeddingCache(10**6, tmp_path, 10**6)
    np.save(tmp_path / "a.embedding.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    assert cache.get("a") is None


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(tmp_path):
    (tmp_path / "file").write_text("no folder")
    cache = EmbeddingCache(10**6, tmp_path / "file" / "kept", 10**6)
    cache.put("a", embedding(1))
    assert cache.get("a") is not None
