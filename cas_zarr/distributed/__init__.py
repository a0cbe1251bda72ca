"""Dask: many workers write one dataset, and results are kept by the CIDs of what they come from.

>>> from cas_zarr.distributed import cached, store_dask, to_cas  # doctest: +SKIP
>>> to_cas(dataset, store, append_dim="time")  # doctest: +SKIP
>>> store.commit("one more month")  # doctest: +SKIP

It needs the extra ``dask``.
"""

from cas_zarr.errors import MissingDependencyError

try:
    import dask.array  # noqa: F401
except ImportError:
    raise MissingDependencyError(
        "cas_zarr.distributed needs dask; install it with: pip install 'cas-zarr[dask]'"
    ) from None

from cas_zarr.distributed import tokens as _tokens  # noqa: F401  (it registers what it has)
from cas_zarr.distributed.derived import cached
from cas_zarr.distributed.writing import Writes, store_dask, to_cas

__all__ = ["Writes", "cached", "store_dask", "to_cas"]
