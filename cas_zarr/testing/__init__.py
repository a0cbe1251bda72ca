"""Suites that others can run against what they build on cas_zarr; they need pytest."""

from cas_zarr.testing.blocks import BlockStoreSuite

__all__ = ["BlockStoreSuite"]
