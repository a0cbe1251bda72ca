"""What takes the place of a codec in a pipeline, and says of itself what that codec says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from zarr.core.array_spec import ArraySpec
from zarr.core.common import JSON

__all__ = ["StandIn", "complete", "decoded_size"]


@dataclass(frozen=True)
class StandIn:
    """What all that stands for codecs of zarr has in common. Metadata are the codec's.

    Attributes
    ----------
    host : zarr.abc.codec.Codec
        The codec as zarr has it, which works on the host.
    """

    host: Any

    @property
    def is_fixed_size(self) -> bool:
        """As the codec's."""
        return bool(getattr(self.host, "is_fixed_size", False))

    def to_dict(self) -> dict[str, JSON]:
        """As the codec's."""
        found: dict[str, JSON] = self.host.to_dict()
        return found

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """As the codec's."""
        return replace(self, host=self.host.evolve_from_array_spec(array_spec))

    def resolve_metadata(self, chunk_spec: ArraySpec) -> ArraySpec:
        """As the codec's."""
        found: ArraySpec = self.host.resolve_metadata(chunk_spec)
        return found

    def validate(self, **parameters: Any) -> None:
        """As the codec's."""
        self.host.validate(**parameters)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """As the codec's."""
        return int(self.host.compute_encoded_size(input_byte_length, chunk_spec))


async def complete(
    pairs: Sequence[tuple[Any, ArraySpec]], done: list[Any], by_host: Callable[..., Any]
) -> list[Any]:
    """Let the host do the chunks for which a device has done nothing, and return all."""
    left = [row for row, (chunk, _) in enumerate(pairs) if chunk is not None and done[row] is None]
    for row, made in zip(left, await by_host([pairs[row] for row in left]), strict=True):
        done[row] = made
    return done


def decoded_size(spec: ArraySpec) -> int:
    """Return the bytes of a chunk before it is encoded, if its data type has a size; else 0."""
    return int(np.prod(spec.shape, dtype=np.int64)) * spec.dtype.to_native_dtype().itemsize
