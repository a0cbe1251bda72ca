"""Hashing, encoding and decoding of chunks that lie in the memory of a GPU.

`enabled` lets zarr keep the chunks of arrays of CuPy there: nvCOMP encodes a batch, kernels hash
it, and a `CASStore` is handed only the bytes that its repository does not have. What is written is
what zarr writes on a host. Nothing of this is loaded before it is asked for.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from cas_zarr.errors import InvalidArgumentError, MissingDependencyError

__all__ = ["enabled", "require"]


def require() -> None:
    """Tell what is missing for arrays on a GPU, if something is.

    Raises
    ------
    MissingDependencyError
        If CuPy, nvCOMP, a driver or a device is missing; it says which, and the remedy.
    """
    from cas_zarr.gpu.kernels import cupy
    from cas_zarr.gpu.nvcomp import library

    array = cupy()
    try:
        count = array.cuda.runtime.getDeviceCount()
    except array.cuda.runtime.CUDARuntimeError as error:
        raise MissingDependencyError(
            f"no GPU can be used: {error}; install a driver of NVIDIA that supports the CUDA of "
            "CuPy, or the other of cas_zarr[gpu-cu12] and cas_zarr[gpu-cu13]"
        ) from None
    if not count:
        raise MissingDependencyError(
            "the driver of NVIDIA shows no GPU; attach one, or unset CUDA_VISIBLE_DEVICES"
        )
    library()


def enabled(batch_size: int = 64) -> AbstractContextManager[Any]:
    """Let zarr read and write arrays of CuPy, with their chunks encoded and hashed on the GPU.

    A plain call does so until the process ends; as a context it restores what was set before. Like
    all of zarr's configuration it holds for every thread, and for arrays that are opened or made
    while it does. Arrays of NumPy can be written as well. What is read lies on the device that is
    the current one now; what is written is encoded and hashed on the device that it lies on.

    Parameters
    ----------
    batch_size : int
        Chunks that are encoded, hashed or decoded together, at least 1.

    Raises
    ------
    MissingDependencyError
        See `require`.
    InvalidArgumentError
        If the batch size is less than 1.
    """
    if batch_size < 1:
        raise InvalidArgumentError(f"a batch of {batch_size} chunks holds none; give 1 or more")
    require()
    import zarr

    from cas_zarr.gpu.buffers import names_of
    from cas_zarr.gpu.devices import current_device
    from cas_zarr.gpu.pipeline import PIPELINE

    buffer, ndbuffer = names_of(current_device())
    settings: AbstractContextManager[Any] = zarr.config.set(
        {
            "buffer": buffer,
            "ndbuffer": ndbuffer,
            "codec_pipeline.path": PIPELINE,
            "codec_pipeline.batch_size": batch_size,
        }
    )
    return settings
