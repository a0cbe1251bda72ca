"""Codecs of zarr that work in memory of the host, for chunks that lie on a device.

Most codecs of zarr and of numcodecs take arrays of NumPy, and refuse those of CuPy. `on_host` puts
a codec in their place that hands them copies on the host, and does nothing else than that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from zarr.abc.codec import (
    ArrayArrayCodec,
    ArrayBytesCodec,
    ArrayBytesCodecPartialDecodeMixin,
    BytesBytesCodec,
    Codec,
)
from zarr.codecs import BytesCodec, TransposeCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer, cpu

from cas_zarr.gpu.buffers import is_device_dtype, is_on_device
from cas_zarr.gpu.memory import halving
from cas_zarr.gpu.standin import StandIn

__all__ = ["HostCodec", "on_host"]


@dataclass(frozen=True)
class HostCodec(StandIn):
    """What stands for a codec that works on the host."""

    def needs_host(self, spec: ArraySpec) -> bool:
        """Tell whether the codec works on the host for chunks like these."""
        if type(self.host) is not BytesCodec:
            return True
        little = getattr(self.host.endian, "value", self.host.endian) in ("little", None)
        dtype = spec.dtype.to_native_dtype()
        return not is_device_dtype(dtype) or not (little or dtype.itemsize == 1)

    async def encode(self, chunks_and_specs: Iterable[tuple[Any, ArraySpec]]) -> Iterable[Any]:
        """Encode a batch of chunks; see `zarr.abc.codec.Codec`."""
        pairs = list(chunks_and_specs)
        if pairs and self.needs_host(pairs[0][1]):
            pairs = [_to_host(chunk, spec) for chunk, spec in pairs]
        found: Iterable[Any] = await self.host.encode(pairs)
        return found

    async def decode(self, chunks_and_specs: Iterable[tuple[Any, ArraySpec]]) -> Iterable[Any]:
        """Decode a batch of chunks; arrays are on the device again, if it has their data type."""
        pairs = list(chunks_and_specs)
        if not pairs or not self.needs_host(pairs[0][1]):
            found: Iterable[Any] = await self.host.decode(_aligned(pairs))
            return found
        decoded = await self.host.decode([_to_host(chunk, spec) for chunk, spec in pairs])
        return [_to_device(made, spec) for made, (_, spec) in zip(decoded, pairs, strict=True)]


class _ArrayArray(HostCodec, ArrayArrayCodec):  # type: ignore[override]
    pass


class _ArrayBytes(HostCodec, ArrayBytesCodec):  # type: ignore[override]
    pass


class _BytesBytes(HostCodec, BytesBytesCodec):  # type: ignore[override]
    pass


def on_host(codec: Codec) -> Any:
    """Return what stands for a codec of zarr where that works on the host; else the codec."""
    device = isinstance(codec, (HostCodec, TransposeCodec, ArrayBytesCodecPartialDecodeMixin))
    if device or not type(codec).__module__.startswith("zarr."):
        return codec
    if isinstance(codec, ArrayArrayCodec):
        return _ArrayArray(codec)
    return _ArrayBytes(codec) if isinstance(codec, ArrayBytesCodec) else _BytesBytes(codec)


def _aligned(pairs: list[tuple[Any, ArraySpec]]) -> list[tuple[Any, ArraySpec]]:
    """Return chunks that begin where elements can be read; those within a shard lie anywhere.

    A kernel that reads a number where its size does not divide the address fails, and with it all
    that the process does on the device from then on.
    """
    odd: dict[int, Any] = {}
    for row, (chunk, spec) in enumerate(pairs):
        if chunk is not None and is_on_device(chunk):
            array = chunk.as_array_like()
            if array.data.ptr % spec.dtype.to_native_dtype().itemsize:
                odd[row] = array
    copies = halving(lambda some: [array.copy() for array in some], list(odd.values()))
    for row, copied in zip(odd, copies, strict=True):
        chunk, spec = pairs[row]
        pairs[row] = type(chunk)(copied), spec
    return pairs


def _to_host(chunk: Buffer | NDBuffer | None, spec: ArraySpec) -> tuple[Any, ArraySpec]:
    """Return a chunk on the host, and a specification that keeps there what is made of it."""
    on_host: Any = chunk
    if isinstance(chunk, Buffer) and not isinstance(chunk, cpu.Buffer):
        on_host = cpu.Buffer(np.asarray(chunk.as_numpy_array()))
    elif isinstance(chunk, NDBuffer) and not isinstance(chunk, cpu.NDBuffer):
        on_host = cpu.NDBuffer.from_numpy_array(chunk.as_numpy_array())
    return on_host, replace(spec, prototype=cpu.buffer_prototype)


def _to_device(made: Buffer | NDBuffer | None, spec: ArraySpec) -> Any:
    """Return an array on the device, if there can be such; bytes stay where they are."""
    if not isinstance(made, NDBuffer):
        return made
    array = made.as_numpy_array()
    there = is_device_dtype(spec.dtype.to_native_dtype())
    if array.dtype.byteorder == ">" and there:  # earlier versions of zarr leave it so
        array = array.astype(array.dtype.newbyteorder("="))
    return spec.prototype.nd_buffer.from_numpy_array(array)
