"""The pipeline of zarr that keeps chunks on a device, in batches.

It takes the place of zarr's batched one. The codecs of an array stay what they are in its metadata;
the pipeline puts those that nvCOMP can do in their places, each with the codec of the host behind
it for what nvCOMP cannot do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec, Codec
from zarr.codecs import GzipCodec, ZstdCodec
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer, cpu
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline

from cas_zarr.gpu.bitround import DeviceBitRound
from cas_zarr.gpu.buffers import UNVERIFIED, ChunkArray, ChunkBuffer, carry, load_all
from cas_zarr.gpu.devices import by_device, device_of, rows_by_device
from cas_zarr.gpu.format2 import DeviceV2Codec, for_format_2
from cas_zarr.gpu.frames import Frame, frame_of
from cas_zarr.gpu.hostcodecs import HostCodec, on_host
from cas_zarr.gpu.kernels import cupy
from cas_zarr.gpu.memory import halving
from cas_zarr.gpu.standin import StandIn, complete, decoded_size

__all__ = ["PIPELINE", "DeviceCodec", "DevicePipeline"]

PIPELINE = "cas_zarr.gpu.pipeline.DevicePipeline"
"""Its name in zarr's configuration."""

Given: TypeAlias = Sequence[tuple[Any, ArraySpec]]


@dataclass(frozen=True)
class DeviceCodec(StandIn, BytesBytesCodec):  # type: ignore[override]
    """A codec that a device can do, on whole batches.

    Attributes
    ----------
    frame : Frame
        What a device does instead.
    encodes : bool
        Whether a device encodes as the host's codec is told to. It always may decode.
    """

    frame: Frame
    encodes: bool = True

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """As the host's."""
        evolved = self.host.evolve_from_array_spec(array_spec)
        return type(self)(evolved, _frame(evolved) or self.frame, self.encodes)

    async def encode(
        self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        """Encode a batch of chunks; see `zarr.abc.codec.Codec`."""
        pairs = list(chunks_and_specs)
        return await self._each(pairs, self.host.encode, self._encode if self.encodes else _nothing)

    async def decode(
        self, chunks_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        """Decode a batch of chunks, on the host if it was not verified."""
        on_device = _nothing if UNVERIFIED.get() else self._decode
        return await self._each(list(chunks_and_specs), self.host.decode, on_device)

    async def _each(
        self,
        pairs: Sequence[tuple[Buffer | None, ArraySpec]],
        by_host: Callable[..., Any],
        by_device: Callable[[Given], Sequence[Any | None]],
    ) -> list[Buffer | None]:
        """Do on each device what lies there, and on the host what is left."""
        done: list[Buffer | None] = [None] * len(pairs)
        arrays = [buffer.as_array_like() if buffer else None for buffer, _ in pairs]
        for device, rows in rows_by_device(map(device_of, arrays)).items():
            given = [(arrays[row], pairs[row][1]) for row in rows]
            with cupy().cuda.Device(device):
                found = halving(by_device, given)
            for row, made in zip(rows, found, strict=True):
                if made is not None:
                    done[row] = pairs[row][1].prototype.buffer.from_array_like(made)
        return await complete(pairs, done, by_host)

    def _encode(self, given: Given) -> Sequence[Any | None]:
        return self.frame.encode([array for array, _ in given])

    def _decode(self, given: Given) -> Sequence[Any | None]:
        return self.frame.decode(
            [array for array, _ in given], [decoded_size(spec) for _, spec in given]
        )


@dataclass(frozen=True)
class DevicePipeline(BatchedCodecPipeline):
    """Zarr's batched pipeline, with codecs of nvCOMP, and batches that stay together."""

    @classmethod
    def from_codecs(cls, codecs: Iterable[Codec], *, batch_size: int | None = None) -> Self:
        """Return a pipeline of codecs; see `zarr.abc.codec.CodecPipeline`."""
        return super().from_codecs([_for_device(codec) for codec in codecs], batch_size=batch_size)

    async def encode_batch(
        self, chunk_arrays_and_specs: Iterable[tuple[NDBuffer | None, ArraySpec]]
    ) -> Iterable[Buffer | None]:
        """Encode chunks that are not empty, and keep together those that lie on a device."""
        pairs = _without_empty(list(chunk_arrays_and_specs))
        made = await by_device(super().encode_batch, pairs, _devices(pairs))
        for row, ((chunk, _), buffer) in enumerate(zip(pairs, made, strict=True)):
            if isinstance(chunk, ChunkArray) and isinstance(buffer, cpu.Buffer):
                made[row] = ChunkBuffer(buffer.as_array_like())  # zarr 3.1.0 joins it with others
        return carry(made)

    async def decode_batch(
        self, chunk_bytes_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        """Load and verify chunks together, and then decode them."""
        pairs = list(chunk_bytes_and_specs)
        first = (*self, None)[-2]
        if not (
            pairs and isinstance(first, HostCodec | DeviceV2Codec) and first.needs_host(pairs[0][1])
        ):
            load_all(buffer for buffer, _ in pairs)
        verified = all(buffer is None or getattr(buffer, "verified", False) for buffer, _ in pairs)
        token = UNVERIFIED.set(not verified)
        try:
            return await by_device(super().decode_batch, pairs, _devices(pairs))
        finally:
            UNVERIFIED.reset(token)

    async def read(
        self, batch_info: Iterable[Any], out: NDBuffer, *arguments: Any, **options: Any
    ) -> Any:
        """Read chunks; see `zarr.abc.codec.CodecPipeline`. They are there once this returns.

        It works on the default stream of a thread of zarr, for which streams of others need not
        wait.
        """
        pipeline: Any = super()  # it returned nothing in earlier releases of zarr
        found = await pipeline.read(batch_info, out, *arguments, **options)
        array: Any = out.as_ndarray_like()
        if device_of(array) is not None:
            with array.device:
                cupy().cuda.get_current_stream().synchronize()
        return found

    async def write_batch(self, batch_info: Iterable[Any], *arguments: Any, **options: Any) -> None:
        """Write chunks; see `zarr.abc.codec.CodecPipeline`. Empty ones are found all at once."""
        if not self.supports_partial_encode:  # else the pipeline of the inner chunks does so
            batch_info = [(setter, _sparse(spec), *rest) for setter, spec, *rest in batch_info]
        await super().write_batch(batch_info, *arguments, **options)


register_pipeline(DevicePipeline)


class _SparseSpec(ArraySpec):
    """Of a chunk that is not stored if it is empty, although its configuration does not say so."""


def _sparse(spec: ArraySpec) -> ArraySpec:
    """Return a specification with which zarr leaves it to `encode_batch` to look for empty chunks.

    It would do so chunk by chunk, and wait for the device each time.
    """
    if spec.config.write_empty_chunks:
        return spec
    config = replace(spec.config, write_empty_chunks=True)
    return _SparseSpec(spec.shape, spec.dtype, spec.fill_value, config, spec.prototype)


def _without_empty(
    pairs: list[tuple[NDBuffer | None, ArraySpec]],
) -> list[tuple[NDBuffer | None, ArraySpec]]:
    """Replace chunks that are not to be stored, since they are empty, with None."""
    devices: list[int | None] = [None] * len(pairs)
    empty = []
    for row, (chunk, spec) in enumerate(pairs):
        if chunk is None or not isinstance(spec, _SparseSpec):
            continue
        if isinstance(chunk, ChunkArray):
            devices[row] = device_of(chunk.as_ndarray_like())
        elif chunk.all_equal(_fill_value(spec)):
            empty.append(row)

    def compare(rows: Sequence[int]) -> Sequence[bool]:
        chunks: list[tuple[Any, ArraySpec]] = [pairs[row] for row in rows]
        equal = [chunk.equals(_fill_value(spec)) for chunk, spec in chunks]
        found: list[bool] = cupy().stack(equal).get().tolist()
        return found

    for device, rows in rows_by_device(devices).items():
        with cupy().cuda.Device(device):
            equal = halving(compare, rows)
        empty += [row for row, here in zip(rows, equal, strict=True) if here]
    for row in empty:
        pairs[row] = None, pairs[row][1]
    return pairs


def _fill_value(spec: ArraySpec) -> Any:
    """Return what absent chunks are read as."""
    return spec.dtype.default_scalar() if spec.fill_value is None else spec.fill_value


def _for_device(codec: Codec) -> Any:
    """Return what stands for a codec on a device."""
    if isinstance(codec, DeviceCodec | DeviceBitRound | DeviceV2Codec):
        return codec
    if isinstance(codec, V2Codec):
        return for_format_2(codec)
    if isinstance(codec, ArrayArrayCodec) and _named(codec)[0] == "numcodecs.bitround":
        return DeviceBitRound(on_host(codec), int(_named(codec)[1]["keepbits"]))
    if not isinstance(codec, BytesBytesCodec):
        return on_host(codec)
    frame = _frame(codec)
    stock = type(codec) in (GzipCodec, ZstdCodec) or _named(codec)[0].startswith("numcodecs.")
    if frame is None or not stock:
        return on_host(codec)
    checksum = bool(_named(codec)[1].get("checksum"))  # nvCOMP writes none
    return DeviceCodec(on_host(codec), frame, encodes=not checksum)


def _frame(codec: Codec) -> Frame | None:
    name, configuration = _named(codec)
    return frame_of(name.removeprefix("numcodecs."), configuration)


def _named(codec: Codec) -> tuple[str, dict[str, Any]]:
    data = codec.to_dict()
    configuration = data.get("configuration")
    return str(data["name"]), configuration if isinstance(configuration, dict) else {}


def _devices(pairs: Sequence[tuple[Any, ArraySpec]]) -> list[int | None]:
    """Return where chunks lie."""
    return [  # what was not loaded lies nowhere
        device_of(getattr(each, "_array" if isinstance(each, ChunkBuffer) else "_data", None))
        for each, _ in pairs
    ]


def _nothing(given: Sequence[Any]) -> Sequence[None]:
    return [None] * len(given)
