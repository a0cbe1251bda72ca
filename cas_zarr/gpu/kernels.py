"""The CUDA sources of this package, and the functions that NVRTC makes of them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from cas_zarr.cid import BLAKE3, SHA256, HashFunction
from cas_zarr.errors import InvalidArgumentError, MissingDependencyError

__all__ = ["NAMES", "OPTIONS", "cupy", "loaded", "source"]

NAMES = {
    BLAKE3.code: ("blake3_leaves", "blake3_parents"),
    SHA256.code: ("sha256_blobs",),
}
"""The kernels of each hash function, by its multihash code."""

OPTIONS = ("--std=c++14",)
"""What the sources ask of the compiler; CuPy adds the architecture of the device."""

_FILES = {BLAKE3.code: "blake3.cu", SHA256.code: "sha256.cu"}


def source(function: HashFunction) -> str:
    """Return the CUDA C++ of a hash function, whole: it includes nothing.

    Raises
    ------
    InvalidArgumentError
        If there is no kernel for it.
    """
    if function.code not in _FILES:
        raise InvalidArgumentError(f"no kernel hashes with {function.name}; use blake3 or sha2-256")
    folder = files("cas_zarr.gpu")
    return "\n".join(
        (folder / name).read_text("utf-8") for name in ("words.cuh", _FILES[function.code])
    )


@cache
def loaded(function: HashFunction) -> dict[str, Any]:
    """Return the kernels of a hash function by name.

    CuPy compiles each when it is first launched on a device, and keeps what it made for every
    device, and on disk for the next process.

    Raises
    ------
    MissingDependencyError
        If CuPy is not installed.
    """
    module = cupy().RawModule(code=source(function), options=OPTIONS)
    return {name: module.get_function(name) for name in NAMES[function.code]}


def cupy() -> Any:
    """Return the module cupy.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    try:
        import cupy
    except ImportError as error:
        raise MissingDependencyError(
            "hashing on a GPU needs CuPy; install cas_zarr[gpu-cu12] or cas_zarr[gpu-cu13], "
            f"whichever the driver supports ({error})"
        ) from None
    return cupy
