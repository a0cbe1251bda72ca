"""Encoders and decoders of nvCOMP, on many chunks at once: its batched low-level C API.

Every algorithm has the same functions, and options of 64 bytes, which are those of its headers by
default. A device is waited for once a batch, for the sizes.

Source: the headers of nvCOMP 6.0 (``nvcomp/zstd.h`` and its neighbours).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cas_zarr.errors import CasZarrError, MissingDependencyError
from cas_zarr.gpu.kernels import cupy

__all__ = ["GZIP", "LZ4", "ZSTD", "Algorithm", "Codec", "Options", "library"]

_MAJOR: Final = 6
_WHEELS: Final = ("nvidia-nvcomp-cu12", "nvidia-nvcomp-cu13")
_SLOT: Final = 256  # what memory of CUDA is aligned to; more than any algorithm asks for
_SUCCESS: Final = 0


class Options(ctypes.Structure):
    """Options of any algorithm: 64 bytes, passed by value."""

    _fields_ = (("words", ctypes.c_uint32 * 16),)


class Alignments(ctypes.Structure):
    """What addresses of inputs, of outputs and of scratch memory are multiples of, in bytes."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in ("input", "output", "temp"))


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A format that nvCOMP reads and writes.

    Attributes
    ----------
    name : str
        As it stands in the names of the functions.
    largest : int
        Bytes of the largest chunk that is encoded or decoded.
    level : int
        The first word of the options of the encoder: its effort, where it has one.
    """

    name: str
    largest: int
    level: int = 0


ZSTD: Final = Algorithm("Zstd", (1 << 31) - 1)
LZ4: Final = Algorithm("LZ4", 1 << 24)
GZIP: Final = Algorithm("Gzip", (1 << 32) - 1, level=1)


@cache
def library() -> Any:
    """Return the library of nvCOMP, loaded from its wheel.

    Raises
    ------
    MissingDependencyError
        If it is not installed, or is of another major version.
    """
    found = find_spec("nvidia") and find_spec("nvidia.libnvcomp")
    folders = [] if not found else list(found.submodule_search_locations or ())
    for folder in folders:
        path = Path(folder) / "lib64" / f"libnvcomp.so.{_MAJOR}"
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:
                raise MissingDependencyError(
                    f"nvCOMP is installed and does not load ({error}); install cas_zarr[gpu-cu12] "
                    "or cas_zarr[gpu-cu13], whichever the driver supports"
                ) from None
    raise MissingDependencyError(
        f"compressing on a GPU needs nvCOMP {_MAJOR}, and {_installed()} is installed; install "
        "cas_zarr[gpu-cu12] or cas_zarr[gpu-cu13], whichever the driver supports"
    )


def _installed() -> str:
    for wheel in _WHEELS:
        try:
            return f"{wheel} {version(wheel)}"
        except PackageNotFoundError:
            continue
    return "none"


@dataclass(frozen=True, slots=True)
class Codec:
    """An algorithm of a library."""

    algorithm: Algorithm

    def compress(self, chunks: Sequence[Any], heads: NDArray[np.uint8] | None = None) -> list[Any]:
        """Encode chunks into one slab.

        Parameters
        ----------
        chunks : sequence of cupy.ndarray of uint8
            Contiguous memory of the current device, none of them empty.
        heads : array of uint8, shape (chunks, up to 256), optional
            What is put before each encoded chunk.

        Returns
        -------
        list of cupy.ndarray of uint8
            Views of the slab, each with its head.

        Raises
        ------
        CasZarrError
            If nvCOMP refuses.
        """
        array = cupy()
        sizes = np.array([chunk.nbytes for chunk in chunks], np.uint64)
        largest, total, count = int(sizes.max()), int(sizes.sum()), len(chunks)
        options = self._options(self.algorithm.level)
        chunks = self._aligned(chunks, self._alignments("Compress", options).input)
        most, scratch = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("CompressGetMaxOutputChunkSize", largest, options, ctypes.byref(most))
        self._call(
            "CompressGetTempSize", count, largest, options, ctypes.byref(scratch), total, _stream()
        )
        head = 0 if heads is None else heads.shape[1]
        start = _SLOT if head else 0
        slab = array.empty((count, start + _rounded(most.value)), array.uint8)
        if heads is not None:
            slab[:, start - head : start] = array.asarray(heads)
        outputs = slab.data.ptr + start + np.arange(count, dtype=np.uint64) * slab.shape[1]
        temporary = array.empty(scratch.value, array.uint8)
        encoded, statuses = array.empty(count, np.uint64), array.empty(count, np.int32)
        addresses = np.array([chunk.data.ptr for chunk in chunks], np.uint64)
        table = array.asarray(np.stack([addresses, sizes, outputs]))
        self._call(
            "CompressAsync",
            *(table[0].data.ptr, table[1].data.ptr, largest, count),
            *(temporary.data.ptr, scratch.value, table[2].data.ptr, encoded.data.ptr),
            *(options, statuses.data.ptr, _stream()),
        )
        ends = encoded.get().tolist()  # this waits for all that was launched
        self._check(statuses.get(), "encode")
        return [slab[row, start - head : start + int(end)] for row, end in enumerate(ends)]

    def decompress(self, chunks: Sequence[Any], sizes: Sequence[int]) -> list[Any | None]:
        """Decode chunks whose bytes are known to be what an encoder made.

        Parameters
        ----------
        chunks : sequence of cupy.ndarray of uint8
            Contiguous memory of the current device.
        sizes : sequence of int
            Bytes that each decodes to, none 0.

        Returns
        -------
        list of cupy.ndarray of uint8, or None
            None for a chunk that did not decode to as many bytes.
        """
        array = cupy()
        count, options = len(chunks), self._options(0)
        chunks = self._aligned(chunks, self._alignments("Decompress", options).input)
        room = np.array(sizes, np.uint64)
        scratch = ctypes.c_size_t()
        self._call(
            *("DecompressGetTempSize", count, int(room.max())),
            *(options, ctypes.byref(scratch), int(room.sum()), _stream()),
        )
        starts = np.concatenate([[0], np.cumsum([_rounded(size) for size in sizes])])
        slab = array.empty(int(starts[-1]), array.uint8)
        temporary = array.empty(scratch.value, array.uint8)
        decoded, statuses = array.empty(count, np.uint64), array.empty(count, np.int32)
        addresses = [chunk.data.ptr for chunk in chunks]
        lengths = [chunk.nbytes for chunk in chunks]
        columns = [addresses, lengths, room, slab.data.ptr + starts[:-1]]
        table = array.asarray(np.stack([np.array(column, np.uint64) for column in columns]))
        self._call(
            "DecompressAsync",
            *(table[0].data.ptr, table[1].data.ptr, table[2].data.ptr, decoded.data.ptr, count),
            *(temporary.data.ptr, scratch.value, table[3].data.ptr, options),
            *(statuses.data.ptr, _stream()),
        )
        right = (decoded.get() == room) & (statuses.get() == _SUCCESS)
        return [
            slab[int(start) : int(start) + size] if here else None
            for start, size, here in zip(starts, sizes, right, strict=False)
        ]

    def decoded_sizes(self, chunks: Sequence[Any]) -> NDArray[np.uint64]:
        """Return the bytes that chunks say they decode to, where the format says so."""
        array = cupy()
        options = self._options(0)
        chunks = self._aligned(chunks, self._alignments("Decompress", options).input)
        columns = [[chunk.data.ptr for chunk in chunks], [chunk.nbytes for chunk in chunks]]
        table = array.asarray(np.array(columns, np.uint64))
        found = array.empty(len(chunks), np.uint64)
        self._call(
            "GetDecompressSizeAsync",
            *(table[0].data.ptr, table[1].data.ptr, found.data.ptr, len(chunks), _stream()),
        )
        sizes: NDArray[np.uint64] = found.get()
        return sizes

    def _alignments(self, way: str, options: Options) -> Alignments:
        found = Alignments()
        self._call(f"{way}GetRequiredAlignments", options, ctypes.byref(found))
        return found

    def _options(self, level: int) -> Options:
        return Options((level,))

    def _aligned(self, chunks: Sequence[Any], alignment: int) -> list[Any]:
        return [chunk if chunk.data.ptr % alignment == 0 else chunk.copy() for chunk in chunks]

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(library(), f"nvcompBatched{self.algorithm.name}{name}")
        passed = [ctypes.c_size_t(each) if type(each) is int else each for each in arguments]
        status = function(*passed)
        if status != _SUCCESS:
            raise CasZarrError(
                f"nvCOMP returned status {status} from {name} of {self.algorithm.name}; without "
                "cas_zarr.gpu.enabled the same is done on the CPU"
            )

    def _check(self, statuses: NDArray[np.int32], what: str) -> None:
        wrong = np.flatnonzero(statuses)
        if len(wrong):
            raise CasZarrError(
                f"nvCOMP could not {what} chunk {wrong[0]} of a batch with {self.algorithm.name}: "
                f"status {statuses[wrong[0]]}; without cas_zarr.gpu.enabled the CPU does it"
            )


def _stream() -> int:
    return int(cupy().cuda.get_current_stream().ptr)


def _rounded(size: int) -> int:
    return -(-size // _SLOT) * _SLOT
