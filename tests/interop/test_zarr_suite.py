"""zarr's own suite of a store, whole, and its two state machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from zarr.core.buffer import Buffer, cpu
from zarr.testing.stateful import ZarrHierarchyStateMachine, ZarrStoreStateMachine
from zarr.testing.store import StoreTests

from cas_zarr import CASStore, Repository


class StoreSuite(StoreTests[CASStore, cpu.Buffer]):
    store_cls = CASStore
    buffer_cls = cpu.Buffer

    async def set(self, store: CASStore, key: str, value: Buffer) -> None:
        store.session.prepare().set_value(key, value.to_bytes())

    async def get(self, store: CASStore, key: str) -> Buffer:
        value = store.mapping.get_value(key)
        assert value is not None
        return self.buffer_cls.from_bytes(bytes(value))

    def test_store_repr(self, store: CASStore) -> None:
        assert str(store) == f"cas-zarr://{store.location}#main"
        assert repr(store) == f"CASStore('{store}')"

    def test_store_supports_writes(self, store: CASStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: CASStore) -> None:
        assert store.supports_listing


class TestFolder(StoreSuite):
    @pytest.fixture
    def store_kwargs(self, tmp_path: Path) -> dict[str, Any]:
        Repository.open(tmp_path / "repo", create=True)  # tests open it for reading only, too
        return {"location": tmp_path / "repo"}


class TestFolderOfSha256(StoreSuite):
    @pytest.fixture
    def store_kwargs(self, tmp_path: Path) -> dict[str, Any]:
        Repository.open(tmp_path / "repo", create=True, hash="sha2-256")
        return {"location": str(tmp_path / "repo")}


class TestMemory(StoreSuite):
    @pytest.fixture
    def store_kwargs(self, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
        repository = Repository.open(f"memory://{request.node.name}", create=True)
        yield {"location": repository.location}
        repository.close()  # what is in memory lasts as long as someone holds it


_MACHINES = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.parametrize("reopened", [False, True])
def test_state_machine_of_keys(tmp_path: Path, reopened: bool) -> None:
    store = _store(tmp_path, reopened)
    run_state_machine_as_test(lambda: ZarrStoreStateMachine(store), settings=_MACHINES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have a Zarr V3 specification:FutureWarning")
@pytest.mark.parametrize("reopened", [False, True])
def test_state_machine_of_hierarchies(tmp_path: Path, reopened: bool) -> None:
    store = _store(tmp_path, reopened)
    run_state_machine_as_test(lambda: ZarrHierarchyStateMachine(store), settings=_MACHINES)


class _Reopening(CASStore):
    """Flushes and opens everything anew before each listing: what is read is what is stored."""

    async def list(self) -> Any:
        self._reopen()
        async for key in super().list():
            yield key

    async def list_prefix(self, prefix: str) -> Any:
        self._reopen()
        async for key in super().list_prefix(prefix):
            yield key

    def _reopen(self) -> None:
        self.flush()
        self._session = Repository.open(self.location).session()
        self._tree = self._session.tree


def _store(folder: Path, reopened: bool) -> CASStore:
    return (_Reopening if reopened else CASStore)(folder / "repo")
