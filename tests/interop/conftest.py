"""What the suites of other projects expect of their own conftest files."""

from __future__ import annotations

import pytest

_FOREIGN_MARKS = (
    "skip_if_param(**params): xarray skips the parametrisations that match",
    "skip_with_dask_array: an xarray mark for runs that trade dask for another array",
    "xfail_with_dask_array: an xarray mark for runs that trade dask for another array",
    "flaky: xarray's own mark",
    "network: xarray's own mark",
)


def pytest_configure(config: pytest.Config) -> None:
    for mark in _FOREIGN_MARKS:
        config.addinivalue_line("markers", mark)


@pytest.fixture(autouse=True)
def _skip_if_param(request: pytest.FixtureRequest) -> None:
    """Skip what xarray marks as impossible for some parameter, as its own conftest does."""
    callspec = getattr(request.node, "callspec", None)
    params = {} if callspec is None else callspec.params
    for mark in request.node.iter_markers("skip_if_param"):
        wanted = dict(mark.kwargs)
        reason = wanted.pop("reason")
        if wanted.pop("condition", True) and all(
            name in params and params[name] == value for name, value in wanted.items()
        ):
            pytest.skip(reason)
