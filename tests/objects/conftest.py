"""Two servers of S3 of this session's own, on loopback, and a proxy before one of them.

`s3` is each of them in turn; `moto` and `versitygw` are one. `faults` is a proxy before versitygw.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ipfs import programs

from objects.faults import Faults, fault_proxy
from objects.servers import Moto, S3Server, VersityGw


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    """Give moto's server."""
    server = Moto(tmp_path_factory.mktemp("moto"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VersityGw]:
    """Give a versitygw; a test that stops it starts it again."""
    program = programs.brought(programs.versitygw)
    server = VersityGw(program, tmp_path_factory.mktemp("versitygw"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["moto", "versitygw"])
def s3(request: pytest.FixtureRequest) -> S3Server:
    """Return each of the servers."""
    server: S3Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def faults(versitygw: VersityGw) -> Iterator[Faults]:
    """Give a proxy before versitygw in which nothing goes wrong yet."""
    with fault_proxy(versitygw.url) as faults:
        yield faults


@pytest.fixture
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a prefix that no other test of this session has."""
    return tmp_path_factory.mktemp("objects").name
