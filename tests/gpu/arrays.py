"""Arrays of numbers that can be compressed somewhat, for the tests of a stand-in for a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from zarr.codecs import GzipCodec, ZstdCodec

from cas_zarr import CASStore

__all__ = ["CHUNK", "CODECS", "SIDE", "create", "encoded_size", "field"]

SIDE = 256
CHUNK = (64, 64)  # of float32: 16 KiB
CODECS = {
    "zstd": [ZstdCodec(level=0, checksum=False)],
    "zstd with checksums": [ZstdCodec(level=0, checksum=True)],
    "gzip": [GzipCodec(level=1)],
    "none": [],
}


def field(shape: tuple[int, ...] = (SIDE, SIDE), seed: int = 0) -> Any:
    """Return numbers that can be compressed somewhat."""
    random = np.random.default_rng(seed)
    return np.round(random.normal(size=shape).cumsum(axis=-1), 1).astype("float32")


def create(store: CASStore, codecs: Any, shape: Any = (SIDE, SIDE), chunks: Any = CHUNK) -> Any:
    return zarr.create_array(
        store, shape=shape, chunks=chunks, dtype="float32", compressors=codecs, overwrite=True
    )


def encoded_size(store: CASStore) -> int:
    """Return the bytes of all chunks."""
    mapping = store._tree.mapping
    return sum(mapping.size_of(key) or 0 for key in mapping.list_keys("c/"))
