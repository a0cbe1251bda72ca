"""Codecs of zarr for nvCOMP's own formats, which no encoder of a host writes.

Zarr finds them by their entry points, on machines without a GPU too: arrays open there, and their
chunks say what they need. Nothing of CUDA is loaded before a chunk is encoded or decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Final, Self, TypeAlias

import numpy as np
from zarr.abc.codec import BytesBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, gpu
from zarr.core.common import JSON

from cas_zarr.errors import InvalidArgumentError, MissingDependencyError
from cas_zarr.gpu import require
from cas_zarr.gpu.buffers import UNVERIFIED
from cas_zarr.gpu.devices import device_of
from cas_zarr.gpu.gdeflate import decompress, has_library
from cas_zarr.gpu.kernels import cupy
from cas_zarr.gpu.memory import halving
from cas_zarr.gpu.nvcomp import Algorithm
from cas_zarr.gpu.pieces import HEAD_SIZE, PIECE, Layout, count_pieces, decode, encode, piece_sizes

__all__ = ["Ans", "Bitcomp", "Cascaded", "Gdeflate"]

Pairs: TypeAlias = Sequence[tuple[Buffer | None, ArraySpec]]

_TYPES: Final = {  # nvcompType_t
    "int8": 0,
    "uint8": 1,
    "int16": 2,
    "uint16": 3,
    "int32": 4,
    "uint32": 5,
    "int64": 6,
    "uint64": 7,
}
_ANY_TYPE: Final = 0xFF  # decoders take it as the streams have it

_BITCOMP: Final = ("default", "sparse")  # in the order of their numbers there

# What lies between the data type and the level in nvcompBatchedCascadedCompressOpts_t: the
# asymmetric mode, packed bits, nothing coarse, all fine encodings; three masks of 64 bits.
_CASCADED: Final = (1, 1, 0, 0, 0, 7, 0)


@dataclass(frozen=True)
class _Format(BytesBytesCodec):
    """What the codecs have in common; their attributes are their configuration."""

    name: ClassVar[str]
    is_fixed_size = False

    @property
    def nvcomp(self) -> Algorithm:
        """The algorithm of nvCOMP, with its options."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Bytes of an element; a chunk is a whole number of them."""
        return 1

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Return the codec of a name and a configuration.

        Raises
        ------
        InvalidArgumentError
            If the configuration has what this codec does not know.
        """
        configuration = data.get("configuration") or {}
        known = [field.name for field in fields(cls)]
        if not isinstance(configuration, dict) or not configuration.keys() <= set(known):
            raise InvalidArgumentError(
                f"the configuration of {cls.name} is {configuration!r}; "
                f"it can have {', '.join(known) or 'nothing'}"
            )
        return cls(**configuration)

    def to_dict(self) -> dict[str, JSON]:
        """Return the name and the configuration."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        known = {name: value for name, value in values.items() if value is not None}
        return {"name": self.name, "configuration": known} if known else {"name": self.name}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Refuse: it hangs on the data."""
        raise NotImplementedError

    async def encode(
        self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        """Encode a batch of chunks; see `zarr.abc.codec.Codec`.

        Raises
        ------
        MissingDependencyError
            If there is no GPU.
        InvalidArgumentError
            If a chunk is no whole number of elements of the data type.
        """
        return self._encode(list(chunks_and_specs))

    async def decode(
        self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        """Decode a batch of chunks; see `zarr.abc.codec.Codec`.

        Raises
        ------
        MissingDependencyError
            If there is no GPU.
        FormatError
            If a chunk is not of this format.
        """
        return self._decode(list(chunks_and_specs))

    def _encode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        return self._encode([(chunk_bytes, chunk_spec)])[0]

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        found = self._decode([(chunk_bytes, chunk_spec)])[0]
        assert found is not None
        return found

    def _encode(self, pairs: Pairs) -> list[Buffer | None]:
        for buffer, _ in pairs:
            if buffer is not None and len(buffer) % self.width:
                raise InvalidArgumentError(
                    f"a chunk of {len(buffer)} bytes is no whole number of elements of "
                    f"{self.width} bytes; give {self.name} the data_type 'uint8'"
                )
        self._require(pairs, "encoded")
        return _each(pairs, partial(encode, self.nvcomp))

    def _decode(self, pairs: Pairs) -> list[Buffer | None]:
        self._require(pairs, "decoded")
        return _each(pairs, partial(decode, self.nvcomp, name=self.name))

    def _require(self, pairs: Pairs, what: str) -> None:
        if all(buffer is None for buffer, _ in pairs):
            return
        try:
            require()
        except MissingDependencyError as error:
            raise MissingDependencyError(
                f"chunks of {self.name} are {what} on a GPU only, and here {error}"
            ) from None


@dataclass(frozen=True)
class _Typed(_Format):
    """A codec that sees elements; they are those of the array where no data type is given."""

    data_type: str | None = None

    def __post_init__(self) -> None:
        if self.data_type is not None and self.data_type not in _TYPES:
            raise InvalidArgumentError(
                f"the data_type of {self.name} is {self.data_type!r}; use one of "
                f"{', '.join(_TYPES)}: floating-point numbers are the uint of their size"
            )

    @property
    def width(self) -> int:
        """Bytes of an element; a chunk is a whole number of them."""
        return np.dtype(self.data_type or "uint8").itemsize

    @property
    def type_code(self) -> int:
        """The number of the data type in nvCOMP."""
        return _TYPES[self.data_type or "uint8"]

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """Take the data type of an array, if none was given."""
        if self.data_type is not None:
            return self
        return replace(self, data_type=_type_of(array_spec.dtype.to_native_dtype()))


@dataclass(frozen=True)
class Bitcomp(_Typed):
    """Bitcomp, lossless, for numbers.

    Attributes
    ----------
    data_type : str, optional
        int8 to uint64; by default as the array's, a uint for floating-point numbers.
    algorithm : {"default", "sparse"}
        "sparse" is for chunks of zeros with few numbers between.

    Raises
    ------
    InvalidArgumentError
        If there is no such data type or algorithm.
    """

    name = "cas_zarr.bitcomp"
    algorithm: str = "default"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.algorithm not in _BITCOMP:
            raise InvalidArgumentError(
                f"the algorithm of {self.name} is {self.algorithm!r}; use one of "
                f"{', '.join(_BITCOMP)}"
            )

    @property
    def nvcomp(self) -> Algorithm:
        """The algorithm of nvCOMP, with its options."""
        return Algorithm("Bitcomp", PIECE, (_BITCOMP.index(self.algorithm), self.type_code))


@dataclass(frozen=True)
class Cascaded(_Typed):
    """Run lengths, differences and packed bits, in as many turns as pay; for integers.

    Attributes
    ----------
    data_type : str, optional
        int8 to uint64; by default as the array's, a uint for floating-point numbers.
    level : int
        0 to 7: how many turns the encoder tries.

    Raises
    ------
    InvalidArgumentError
        If there is no such data type or level.
    """

    name = "cas_zarr.cascaded"
    level: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_level(self.name, self.level, 7)

    @property
    def nvcomp(self) -> Algorithm:
        """The algorithm of nvCOMP, with its options."""
        options = (self.type_code, *_CASCADED, self.level)
        return Algorithm("Cascaded", PIECE, options, decoding=(0, 0, _ANY_TYPE))


@dataclass(frozen=True)
class Ans(_Format):
    """An entropy coder for bytes (rANS): fast, and blind to what repeats."""

    name = "cas_zarr.ans"

    @property
    def nvcomp(self) -> Algorithm:
        """The algorithm of nvCOMP, with its options."""
        return Algorithm("ANS", PIECE, decoding=(0, _ANY_TYPE))


@dataclass(frozen=True)
class Gdeflate(_Format):
    """Deflate, with its bits in an order that many threads can read at once.

    A host decodes it where nvCOMP is installed: if there is no GPU, and what was not verified.

    Attributes
    ----------
    level : int
        0 (no matches, entropy only) to 5 (slowest, smallest).

    Raises
    ------
    InvalidArgumentError
        If there is no such level.
    """

    name = "cas_zarr.gdeflate"
    level: int = 1

    def __post_init__(self) -> None:
        _check_level(self.name, self.level, 5)

    @property
    def nvcomp(self) -> Algorithm:
        """The algorithm of nvCOMP, with its options."""
        return Algorithm("Gdeflate", PIECE, (self.level,))

    def _decode(self, pairs: Pairs) -> list[Buffer | None]:
        if not (UNVERIFIED.get() and has_library()):
            try:
                return super()._decode(pairs)
            except MissingDependencyError:
                if not has_library():
                    raise
        return [
            None if buffer is None else spec.prototype.buffer.from_bytes(_inflated(buffer))
            for buffer, spec in pairs
        ]


def _inflated(buffer: Buffer) -> bytes:
    """Decode a chunk on the host."""
    value = buffer.to_bytes()
    size, count = count_pieces(value[:HEAD_SIZE], len(value), Gdeflate.name)
    table = value[HEAD_SIZE : HEAD_SIZE + 4 * count]
    layout = Layout.read(size, table, len(value), Gdeflate.name)
    parts = [
        value[start : start + length]
        for start, length in zip(layout.starts, layout.lengths, strict=True)
    ]
    return b"".join(map(decompress, parts, piece_sizes(size).tolist()))


def _each(pairs: Pairs, work: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Buffer | None]:
    """Do chunks where they lie, and those of the host on the current device."""
    done: list[Buffer | None] = [None] * len(pairs)
    devices: dict[int | None, list[tuple[int, Any]]] = {}
    for row, (buffer, _) in enumerate(pairs):
        if buffer is not None:
            array = buffer.as_array_like()
            devices.setdefault(device_of(array), []).append((row, array))

    def do(arrays: Sequence[Any]) -> Sequence[Any]:
        return work([cupy().asarray(array).view(np.uint8) for array in arrays])

    for device, given in devices.items():
        arrays = [array for _, array in given]
        with nullcontext() if device is None else arrays[0].device:
            made = halving(do, arrays)
        for (row, _), array in zip(given, made, strict=True):
            kind = pairs[row][1].prototype.buffer
            on_host = not issubclass(kind, gpu.Buffer)
            done[row] = kind.from_array_like(array.get() if on_host else array)
    return done


def _type_of(dtype: np.dtype[Any]) -> str:
    """Return the integer type that elements of an array are seen as."""
    kinds = {"i": "int", "m": "int", "M": "int", "c": "uint", "U": "uint"}
    parts = {"c": 2, "U": max(dtype.itemsize // 4, 1)}
    name = f"{kinds.get(dtype.kind, 'uint')}{8 * dtype.itemsize // parts.get(dtype.kind, 1)}"
    return name if name in _TYPES and dtype.kind not in "SV" else "uint8"


def _check_level(name: str, level: object, most: int) -> None:
    if type(level) is not int or not 0 <= level <= most:
        raise InvalidArgumentError(f"the level of {name} is {level!r}; give 0 to {most}")
