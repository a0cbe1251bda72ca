"""The CUDA sources of this package, the functions that NVRTC makes of them, and their launches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cas_zarr.cid import BLAKE3, SHA256, HashFunction
from cas_zarr.errors import InvalidArgumentError, MissingDependencyError

__all__ = ["NAMES", "OPTIONS", "Launch", "cupy", "firsts_of", "launch", "loaded", "source"]

NAMES: dict[int | str, tuple[str, ...]] = {
    BLAKE3.code: ("blake3_leaves", "blake3_parents"),
    SHA256.code: ("sha256_blobs",),
    "adler32": ("adler32_pieces", "adler32_blobs"),
    "bitround": ("bitround_2", "bitround_4", "bitround_8"),
    "gather": ("gather",),
}
"""The kernels of each hash function, by its multihash code, and of other sources, by name."""

OPTIONS = ("--std=c++14",)
"""What the sources ask of the compiler; CuPy adds the architecture of the device."""

_FILES = {BLAKE3.code: "blake3", SHA256.code: "sha256"}


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel, how many blocks of how many threads, and its arguments, each of 64 bits."""

    kernel: str
    blocks: int
    threads: int
    arguments: tuple[int, ...]

    @classmethod
    def over(cls, kernel: str, threads: int, *arguments: int) -> Self:
        """Return one with a thread for each piece of work; the first argument says how many."""
        return cls(kernel, -(-arguments[0] // threads), threads, arguments)


def firsts_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where the span of each row begins, and where the last one ends.

    `span_of` in the sources finds the row again.
    """
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def source(of: HashFunction | str) -> str:
    """Return CUDA C++, whole: it includes nothing.

    Parameters
    ----------
    of : HashFunction or str
        A hash function, or the name of another source, one of `NAMES`.

    Raises
    ------
    InvalidArgumentError
        If there is no kernel for it.
    """
    if isinstance(of, HashFunction) and of.code not in _FILES:
        raise InvalidArgumentError(f"no kernel hashes with {of.name}; use blake3 or sha2-256")
    name = of if isinstance(of, str) else _FILES[of.code]
    folder = files("cas_zarr.gpu")
    return "\n".join((folder / part).read_text("utf-8") for part in ("words.cuh", f"{name}.cu"))


@cache
def loaded(of: HashFunction | str) -> dict[str, Any]:
    """Return the kernels of a source by name; see `source`.

    CuPy compiles each when it is first launched on a device, and keeps what it made for every
    device, and on disk for the next process.

    Raises
    ------
    MissingDependencyError
        If CuPy is not installed.
    """
    module = cupy().RawModule(code=source(of), options=OPTIONS)
    names = NAMES[of if isinstance(of, str) else of.code]
    return {name: module.get_function(name) for name in names}


def launch(of: HashFunction | str, launches: Iterable[Launch]) -> None:
    """Launch kernels of a source, one after the other, on the current stream."""
    functions = loaded(of)
    for one in launches:
        arguments = tuple(map(np.uint64, one.arguments))
        functions[one.kernel]((one.blocks,), (one.threads,), arguments)


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
            "work on a GPU needs CuPy; install cas_zarr[gpu-cu12] or cas_zarr[gpu-cu13], "
            f"whichever the driver supports ({error})"
        ) from None
    return cupy
