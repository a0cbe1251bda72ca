"""The codec of zarr_format 2, which is one for a whole array, on a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer

from cas_zarr.gpu.buffers import UNVERIFIED, is_device_dtype
from cas_zarr.gpu.devices import device_of
from cas_zarr.gpu.frames import Frame, frame_of
from cas_zarr.gpu.hostcodecs import on_host
from cas_zarr.gpu.memory import halving
from cas_zarr.gpu.standin import StandIn, complete, decoded_size

__all__ = ["DeviceV2Codec", "for_format_2"]


@dataclass(frozen=True)
class DeviceV2Codec(StandIn, ArrayBytesCodec):  # type: ignore[override]
    """A compressor without filters that a device can do, on whole batches.

    Attributes
    ----------
    frame : Frame
        What a device does instead of the compressor.
    encodes : bool
        Whether a device encodes as the compressor is told to. It always may decode.
    """

    frame: Frame
    encodes: bool

    def needs_host(self, spec: ArraySpec) -> bool:
        """Tell whether chunks like these are done on the host."""
        return not is_device_dtype(_dtype(spec))

    async def encode(
        self, chunks_and_specs: Iterable[tuple[NDBuffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        """Encode a batch of chunks; see `zarr.abc.codec.Codec`."""
        pairs = list(chunks_and_specs)
        rows = [] if not self.encodes else self._rows(pairs)
        found = halving(self._encode, [pairs[row] for row in rows]) if rows else []
        return await _completed(pairs, rows, found, self.host.encode)

    async def decode(
        self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        """Decode a batch of chunks, on the host if it was not verified."""
        pairs = list(chunks_and_specs)
        rows = [] if UNVERIFIED.get() else self._rows(pairs)
        found = halving(self._decode, [pairs[row] for row in rows]) if rows else []
        return await _completed(pairs, rows, found, self.host.decode)

    def _rows(self, pairs: Sequence[tuple[Any, ArraySpec]]) -> list[int]:
        """Return which chunks a device may do."""
        return [
            row
            for row, (chunk, spec) in enumerate(pairs)
            if not self.needs_host(spec) and _is_there(chunk)
        ]

    def _encode(self, pairs: Sequence[tuple[Any, ArraySpec]]) -> Sequence[Buffer | None]:
        arrays = [
            chunk.as_ndarray_like()
            .astype(_dtype(spec), copy=False)
            .ravel(spec.order)
            .view(np.uint8)
            for chunk, spec in pairs
        ]
        return [
            None if made is None else spec.prototype.buffer.from_array_like(made)
            for made, (_, spec) in zip(self.frame.encode(arrays), pairs, strict=True)
        ]

    def _decode(self, pairs: Sequence[tuple[Any, ArraySpec]]) -> Sequence[NDBuffer | None]:
        sizes = [decoded_size(spec) for _, spec in pairs]
        decoded = self.frame.decode([chunk.as_array_like() for chunk, _ in pairs], sizes)
        return [
            None
            if made is None
            else spec.prototype.nd_buffer.from_ndarray_like(
                made.view(_dtype(spec)).reshape(spec.shape, order=spec.order)
            )
            for made, (_, spec) in zip(decoded, pairs, strict=True)
        ]


def for_format_2(codec: V2Codec) -> Any:
    """Return what stands for the codec of an array on a device."""
    if codec.filters or codec.compressor is None:
        return on_host(codec)
    configuration = dict(codec.compressor.get_config())
    frame = frame_of(str(configuration.get("id")), configuration)
    if frame is None:
        return on_host(codec)
    return DeviceV2Codec(on_host(codec), frame, encodes=not configuration.get("checksum"))


async def _completed(
    pairs: Sequence[Any], rows: Sequence[int], found: Sequence[Any], by_host: Any
) -> list[Any]:
    """Return what a device did of some rows, and let the host do the others."""
    done: list[Any] = [None] * len(pairs)
    for row, made in zip(rows, found, strict=True):
        done[row] = made
    return await complete(pairs, done, by_host)


def _is_there(chunk: Buffer | NDBuffer | None) -> bool:
    """Tell whether a chunk lies on a device, and is not empty."""
    if chunk is None:
        return False
    array = chunk.as_array_like() if isinstance(chunk, Buffer) else chunk.as_ndarray_like()
    return array.size > 0 and device_of(array) is not None


def _dtype(spec: ArraySpec) -> np.dtype[Any]:
    return spec.dtype.to_native_dtype()
