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
