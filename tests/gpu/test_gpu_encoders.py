"""What only a device can show: the encoders and decoders of nvCOMP beside those of the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numcodecs import LZ4 as HostLZ4
from numcodecs import GZip, Zstd
from numpy.typing import NDArray

from cas_zarr.gpu.nvcomp import GZIP, LZ4, ZSTD, Algorithm, Codec

pytestmark = pytest.mark.gpu

HOSTS = {ZSTD.name: Zstd(level=3), LZ4.name: HostLZ4(), GZIP.name: GZip(level=1)}
SIZES = [1, 7, 4096, 1 << 16, (1 << 16) + 1, 1 << 20, 1 << 24]


def contents() -> list[NDArray[np.uint8]]:
    """Return chunks of all sizes: like fields, all zeros, and such as no encoder makes smaller."""
    random = np.random.default_rng(0)
    steps = np.round(random.normal(size=SIZES[-1] // 4).cumsum(), 1).astype("float32")
    field, noise = steps.view(np.uint8), random.integers(0, 256, SIZES[-1], np.uint8)
    return [
        each[:size].copy() for size in SIZES for each in (field, noise, np.zeros_like(noise[:size]))
    ]


def heads(chunks: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.array([len(chunk) for chunk in chunks], "<u4").view(np.uint8).reshape(-1, 4)


@pytest.mark.parametrize("algorithm", [ZSTD, LZ4, GZIP], ids=lambda each: each.name)
def test_a_host_decodes_what_a_device_encoded(cuda: Any, algorithm: Algorithm) -> None:
    chunks = contents()
    given = [cuda.asarray(chunk) for chunk in chunks]
    encoded = Codec(algorithm).compress(given, heads(chunks) if algorithm is LZ4 else None)
    for chunk, made in zip(chunks, encoded, strict=True):
        assert bytes(HOSTS[algorithm.name].decode(made.get().tobytes())) == chunk.tobytes()


@pytest.mark.parametrize("algorithm", [ZSTD, LZ4, GZIP], ids=lambda each: each.name)
def test_a_device_decodes_what_a_host_encoded(cuda: Any, algorithm: Algorithm) -> None:
    chunks = contents()
    head = 4 if algorithm is LZ4 else 0
    made = [np.frombuffer(HOSTS[algorithm.name].encode(chunk), np.uint8)[head:] for chunk in chunks]
    given = [cuda.asarray(each) for each in made]
    codec = Codec(algorithm)
    if algorithm is not LZ4:
        assert codec.decoded_sizes(given).tolist() == [len(chunk) for chunk in chunks]
    decoded = codec.decompress(given, [len(chunk) for chunk in chunks])
    for chunk, found in zip(chunks, decoded, strict=True):
        assert found is not None
        assert found.get().tobytes() == chunk.tobytes()
