"""Encoders and decoders of nvCOMP, on many chunks at once: its batched low-level C API.

Every algorithm has the same functions, and options of 64 bytes, which are those of its headers by
default. A device is waited for once a batch, for the sizes.

Source: the headers of nvCOMP 6.0 (``nvcomp/zstd.h`` and its neighbours).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cas_zarr.errors import CasZarrError, MissingDependencyError
from cas_zarr.gpu.kernels import cupy

__all__ = [
    "DEFLATE",
    "GZIP",
    "LZ4",
    "MAJOR",
    "ZSTD",
    "Algorithm",
    "Codec",
    "Options",
    "Slots",
    "find_library",
    "library",
]

MAJOR: Final = 6
"""The major version of the library, whose functions these are."""

_WHEELS: Final = ("nvidia-libnvcomp-cu12", "nvidia-libnvcomp-cu13")
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
    options : tuple of int
        The first words of the options of the encoder, of 32 bits each; the others are 0.
    decoding : tuple of int
        The same of the decoder.
    """

    name: str
    largest: int
    options: tuple[int, ...] = ()
    decoding: tuple[int, ...] = ()


ZSTD: Final = Algorithm("Zstd", (1 << 31) - 1)
LZ4: Final = Algorithm("LZ4", 1 << 24)
DEFLATE: Final = Algorithm("Deflate", (1 << 31) - 1, (1,))
GZIP: Final = Algorithm("Gzip", (1 << 32) - 1, (1,))


@cache
def library() -> Any:
    """Return the library of nvCOMP, loaded from its wheel.

    Raises
    ------
    MissingDependencyError
        If it is not installed, or is of another major version.
    """
    path = find_library(f"libnvcomp.so.{MAJOR}")
    if path is not None:
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise MissingDependencyError(
                f"nvCOMP is installed and does not load ({error}); install cas_zarr[gpu-cu12] "
                "or cas_zarr[gpu-cu13], whichever the driver supports"
            ) from None
    others = ", ".join(f"{wheel.name} {wheel.version}" for wheel in _installed()) or "none"
    raise MissingDependencyError(
        f"compressing on a GPU needs nvCOMP {MAJOR}, and {others} is installed; install "
        "cas_zarr[gpu-cu12] or cas_zarr[gpu-cu13], whichever the driver supports"
    )


def find_library(name: str) -> Path | None:
    """Return where a library of the wheel lies, if it is installed.

    It is not asked for as a part of the package `nvidia`: another wheel can make that a package
    with a file of its own, which has none of what lies in other folders.
    """
    place = f"nvidia/libnvcomp/lib64/{name}"
    paths = [Path(str(wheel.locate_file(place))) for wheel in _installed()]
    return next((path for path in paths if path.exists()), None)


def _installed() -> list[Distribution]:
    found = []
    for wheel in _WHEELS:
        with suppress(PackageNotFoundError):
            found.append(Distribution.from_name(wheel))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """What an encoder made of a batch.

    Attributes
    ----------
    slab : cupy.ndarray of uint8, shape (chunks, bytes of a slot)
    start : int
        Where in its slot each begins.
    sizes : array of int64
        Bytes of each.
    """

    slab: Any
    start: int
    sizes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Codec:
    """An algorithm of a library."""

    algorithm: Algorithm

    def compress(
        self, chunks: Sequence[Any], heads: NDArray[np.uint8] | None = None, *, tail: int = 0
    ) -> list[Any]:
        """Encode chunks into one slab.

        Parameters
        ----------
        chunks : sequence of cupy.ndarray of uint8
            Contiguous memory of the current device, none of them empty.
        heads : array of uint8, shape (chunks, up to 256), optional
            What is put before each encoded chunk.
        tail : int
            Bytes that are left free behind each.

        Returns
        -------
        list of cupy.ndarray of uint8
            Views of the slab, each with its head and its tail.

        Raises
        ------
        CasZarrError
            If nvCOMP refuses.
        """
        chunks = self.aligned("Compress", chunks)
        head = 0 if heads is None else heads.shape[1]
        slots = self.compress_at(*_places(chunks), before=head, behind=tail)
        begin = slots.start - head
        if heads is not None:
            slots.slab[:, begin : slots.start] = cupy().asarray(heads)
        ends = (slots.start + slots.sizes + tail).tolist()
        return [slots.slab[row, begin:end] for row, end in enumerate(ends)]

    def compress_at(
        self,
        addresses: NDArray[np.uint64],
        sizes: NDArray[np.uint64],
        *,
        before: int = 0,
        behind: int = 0,
    ) -> Slots:
        """Encode what lies at addresses of the current device, which `aligned` gave.

        Parameters
        ----------
        addresses, sizes : array of uint64
            Where each begins, and its bytes: none is empty.
        before, behind : int
            Bytes of its slot that are left free before each encoded one, up to 256, and behind it.

        Raises
        ------
        CasZarrError
            If nvCOMP refuses.
        """
        array = cupy()
        largest, total, count = int(sizes.max()), int(sizes.sum()), len(sizes)
        options = Options(self.algorithm.options)
        most, scratch = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("CompressGetMaxOutputChunkSize", largest, options, ctypes.byref(most))
        self._call(
            "CompressGetTempSize", count, largest, options, ctypes.byref(scratch), total, _stream()
        )
        start = _SLOT if before else 0
        slab = array.empty((count, start + _rounded(most.value + behind)), array.uint8)
        outputs = slab.data.ptr + start + np.arange(count, dtype=np.uint64) * slab.shape[1]
        temporary = array.empty(scratch.value, array.uint8)
        encoded, statuses = array.empty(count, np.uint64), array.empty(count, np.int32)
        table = array.asarray(np.stack([addresses, sizes, outputs]))
        self._call(
            "CompressAsync",
            *(table[0].data.ptr, table[1].data.ptr, largest, count),
            *(temporary.data.ptr, scratch.value, table[2].data.ptr, encoded.data.ptr),
            *(options, statuses.data.ptr, _stream()),
        )
        found = encoded.get()  # this waits for all that was launched
        self._check(statuses.get(), "encode")
        return Slots(slab, start, found.astype(np.int64))

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
        chunks = self.aligned("Decompress", chunks)
        starts = np.concatenate([[0], np.cumsum([_rounded(size) for size in sizes])])
        slab = cupy().empty(int(starts[-1]), np.uint8)
        outputs = (slab.data.ptr + starts[:-1]).astype(np.uint64)
        right = self.decompress_at(*_places(chunks), outputs, np.array(sizes, np.uint64))
        return [
            slab[int(start) : int(start) + size] if here else None
            for start, size, here in zip(starts, sizes, right, strict=False)
        ]

    def decompress_at(
        self,
        addresses: NDArray[np.uint64],
        lengths: NDArray[np.uint64],
        outputs: NDArray[np.uint64],
        sizes: NDArray[np.uint64],
    ) -> NDArray[np.bool_]:
        """Decode what lies at addresses of the current device, which `aligned` gave.

        Parameters
        ----------
        addresses, lengths : array of uint64
            Where each begins, and its bytes.
        outputs, sizes : array of uint64
            Where it is decoded to, at a multiple of 256, and how many bytes it is to give.

        Returns
        -------
        array of bool
            Whether each decoded to as many bytes.
        """
        array = cupy()
        count, options, scratch = len(sizes), Options(self.algorithm.decoding), ctypes.c_size_t()
        self._call(
            *("DecompressGetTempSize", count, int(sizes.max())),
            *(options, ctypes.byref(scratch), int(sizes.sum()), _stream()),
        )
        temporary = array.empty(scratch.value, array.uint8)
        decoded, statuses = array.empty(count, np.uint64), array.empty(count, np.int32)
        table = array.asarray(np.stack([addresses, lengths, sizes, outputs]))
        self._call(
            "DecompressAsync",
            *(table[0].data.ptr, table[1].data.ptr, table[2].data.ptr, decoded.data.ptr, count),
            *(temporary.data.ptr, scratch.value, table[3].data.ptr, options),
            *(statuses.data.ptr, _stream()),
        )
        right: NDArray[np.bool_] = (decoded.get() == sizes) & (statuses.get() == _SUCCESS)
        return right

    def decoded_sizes(self, chunks: Sequence[Any]) -> NDArray[np.uint64]:
        """Return the bytes that chunks say they decode to, where the format says so."""
        array = cupy()
        chunks = self.aligned("Decompress", chunks)
        table = array.asarray(np.stack(_places(chunks)))
        found = array.empty(len(chunks), np.uint64)
        self._call(
            "GetDecompressSizeAsync",
            *(table[0].data.ptr, table[1].data.ptr, found.data.ptr, len(chunks), _stream()),
        )
        sizes: NDArray[np.uint64] = found.get()
        return sizes

    def aligned(self, way: Literal["Compress", "Decompress"], chunks: Sequence[Any]) -> list[Any]:
        """Return chunks, those copied that do not begin where nvCOMP asks for."""
        alignment = self._alignments(way).input
        return [chunk if chunk.data.ptr % alignment == 0 else chunk.copy() for chunk in chunks]

    def _alignments(self, way: str) -> Alignments:
        found = Alignments()
        words = self.algorithm.options if way == "Compress" else self.algorithm.decoding
        self._call(f"{way}GetRequiredAlignments", Options(words), ctypes.byref(found))
        return found

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


def _places(chunks: Sequence[Any]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return where chunks begin, and their bytes."""
    return (
        np.array([chunk.data.ptr for chunk in chunks], np.uint64),
        np.array([chunk.nbytes for chunk in chunks], np.uint64),
    )


def _stream() -> int:
    return int(cupy().cuda.get_current_stream().ptr)


def _rounded(size: int) -> int:
    return -(-size // _SLOT) * _SLOT
