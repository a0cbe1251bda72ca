"""The kernels for the host, and the device where there is one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gpu.fakecupy import Fake, FakeCupy, FakeNvcomp
from gpu.hostkernels import HostCupy, HostKernels, build
from ipfs.programs import MissingProgramError, brought
from zarr.core.buffer import gpu as zarr_gpu

from cas_zarr.cid import BLAKE3, SHA256, HashFunction
from cas_zarr.gpu import hashing, kernels, nvcomp
from cas_zarr.gpu.kernels import source


@pytest.fixture(scope="session", params=[BLAKE3, SHA256], ids=lambda function: function.name)
def function(request: pytest.FixtureRequest) -> HashFunction:
    """Return each hash function in turn."""
    found: HashFunction = request.param
    return found


@pytest.fixture(scope="session")
def compiler() -> Path:
    """Return the C++ compiler of the host; without it a test is skipped, and fails in CI."""

    def find() -> Path:
        found = shutil.which("g++")
        if found is None:
            raise MissingProgramError("g++ is not on the PATH; install it")
        return Path(found)

    return brought(find)


@pytest.fixture(scope="session")
def hosts(compiler: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, HostKernels]:
    """Return the kernels, compiled for the host, by the name of the hash function."""
    folder = tmp_path_factory.mktemp("kernels")
    return {
        function.name: HostKernels(
            function, build(compiler, source(function), folder / f"lib{function.name}.so")
        )
        for function in (BLAKE3, SHA256)
    }


@pytest.fixture(scope="session")
def host(function: HashFunction, hosts: dict[str, HostKernels]) -> HostKernels:
    """Return the kernels of each hash function in turn, compiled for the host."""
    return hosts[function.name]


@pytest.fixture(scope="session")
def host_cupy(compiler: Path, tmp_path_factory: pytest.TempPathFactory) -> HostCupy:
    """Return a module cupy that works on the host."""
    return HostCupy(compiler, tmp_path_factory.mktemp("cupy"))


@pytest.fixture(params=["host", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a module cupy: one that works on the host, and CuPy where a device can be used."""
    if request.param == "cuda":
        yield cuda_device()
        return
    host_cupy = request.getfixturevalue("host_cupy")
    monkeypatch.setitem(sys.modules, "cupy", host_cupy)
    kernels.loaded.cache_clear()
    yield host_cupy
    kernels.loaded.cache_clear()


@pytest.fixture(scope="session")
def fake_cupy(compiler: Path, tmp_path_factory: pytest.TempPathFactory) -> FakeCupy:
    """Return the stand-in for CuPy, which compiles its kernels once."""
    return FakeCupy(compiler, tmp_path_factory.mktemp("fakecupy"))


@pytest.fixture
def fake(fake_cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """Return a device, in the place of the one that there is not; the smallest batch is for it."""
    library = FakeNvcomp()
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setattr(zarr_gpu, "cp", fake_cupy)
    monkeypatch.setattr(nvcomp, "library", lambda: library)
    monkeypatch.setattr(hashing, "_BLAKE3_BYTES", 0)
    monkeypatch.setattr(hashing, "_SHA256_BLOBS_A_CORE", 0)
    kernels.loaded.cache_clear()
    fake_cupy.devices = 1
    fake_cupy.bus.clear()
    fake_cupy.memory.clear()
    fake_cupy.pinned.most = 1 << 40
    yield Fake(fake_cupy, library)
    kernels.loaded.cache_clear()


@pytest.fixture
def cuda() -> Any:
    """Return the module cupy where a device can be used; skip elsewhere."""
    return cuda_device()


def cuda_device() -> Any:
    """Return the module cupy where a device can be used; skip elsewhere."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"no device of CUDA can be used: {error}")
    if not count:
        pytest.skip("there is no device of CUDA")
    return cupy
