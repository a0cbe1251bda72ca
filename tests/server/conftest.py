"""A repository that is served, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import Served, make

from cas_zarr.server.running import serve_in_thread


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Give a repository that is served."""
    repo, found = make(tmp_path_factory.mktemp("served") / "weather.cas")
    with repo, serve_in_thread(repo) as server:
        yield Served(server.url, repo, **found)
