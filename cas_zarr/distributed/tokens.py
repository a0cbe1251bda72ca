"""Names for dask: arrays with equal data are called alike, on any machine, at any time."""

from __future__ import annotations

from typing import Any

import zarr
from dask.base import normalize_token

from cas_zarr.cid import format_cid
from cas_zarr.dataset import Dataset

__all__ = ["token_of_array"]


@normalize_token.register(zarr.Array)
def token_of_array(array: zarr.Array[Any]) -> Any:
    """Return what names an array: of a `CASStore` its CID, else what dask makes of its parts."""
    if isinstance(array.store, Dataset):
        # The shape too: an array does not see that another has resized it.
        return "cas-zarr", format_cid(array.store.mapping.cid(array.path)), array.shape
    return normalize_token(array._async_array)
