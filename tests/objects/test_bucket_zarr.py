"""zarr's own suite of a store over a repository in a bucket, on each of the servers."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import zarr
from interop.test_zarr_suite import StoreSuite

from cas_zarr import CASStore, Repository
from objects.servers import BUCKET, KEY, SECRET, Moto, S3Server, VersityGw


def _point_at(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the environment say where the servers are, as it does for who uses a cloud."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


class _InABucket(StoreSuite):
    server: S3Server

    @pytest.fixture
    def store_kwargs(self, prefix: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        _point_at(self.server, monkeypatch)
        Repository.open(f"s3://{BUCKET}/{prefix}", create=True, cache=False)
        return {"location": f"s3://{BUCKET}/{prefix}", "cache": False}


class TestOnMoto(_InABucket):
    @pytest.fixture(autouse=True)
    def take_server(self, moto: Moto) -> None:
        self.server = moto


class TestOnVersityGw(_InABucket):
    @pytest.fixture(autouse=True)
    def take_server(self, versitygw: VersityGw) -> None:
        self.server = versitygw


def test_a_store_takes_what_it_was_opened_with_to_other_processes(
    s3: S3Server, prefix: str
) -> None:
    url, options = f"s3://{BUCKET}/{prefix}", s3.options()
    data = np.arange(10_000).reshape(100, 100)
    store = CASStore(url, storage_options=options)
    assert pickle.loads(pickle.dumps(store)) == store  # also before it is made
    zarr.create_array(store, name="t", shape=(100, 100), chunks=(7, 9), dtype="i4")[:] = data
    store.commit("all")
    reader = CASStore(url, storage_options=options, read_only=True)
    for one in (
        store,
        store.with_read_only(True),
        reader,
        CASStore(url, storage_options=options, version="main"),
        CASStore(s3.store(prefix=prefix), read_only=True),
    ):
        again = pickle.loads(pickle.dumps(one))
        assert again == one
        assert np.array_equal(zarr.open_array(again, path="t", mode="r")[:], data)
    writer = reader.with_read_only(False)
    zarr.open_array(writer, path="t")[0, 0] = 77
    fork = pickle.loads(pickle.dumps(writer.fork()))
    zarr.open_array(fork, path="t")[99, 99] = 78
    writer.merge(pickle.loads(pickle.dumps(fork)))
    writer.commit("of both")
    array = zarr.open_array(CASStore(url, storage_options=options, read_only=True), path="t")
    assert (array[0, 0], array[99, 99], array[50, 50]) == (77, 78, 5050)


def test_a_store_is_its_address_and_can_be_pickled(
    s3: S3Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _point_at(s3, monkeypatch)
    store = CASStore(f"s3://{BUCKET}/{prefix}", cache=False)
    array = zarr.create_array(store, name="t", shape=(100, 100), chunks=(7, 9), dtype="f4")
    array[:] = np.arange(10_000).reshape(100, 100)
    version = store.commit("all")
    for one in (store, CASStore(f"s3://{BUCKET}/{prefix}", version=str(version), cache=False)):
        again = pickle.loads(pickle.dumps(one))
        assert again == one
        got = zarr.open_array(again, path="t", mode="r")[:]
        assert np.array_equal(got, np.arange(10_000).reshape(100, 100))
