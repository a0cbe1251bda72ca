"""Suites that others can run against what they build on cas_zarr; they need pytest."""

from cas_zarr.testing.blocks import BlockStoreSuite
from cas_zarr.testing.collecting import CollectableBlocksSuite

__all__ = ["BlockStoreSuite", "CollectableBlocksSuite"]
