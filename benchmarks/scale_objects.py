"""What object storage costs: beside zarr's ObjectStore and icechunk, and with a latency."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore, ObjectStore

from benchmarks.ipfs_read import _linked
from benchmarks.parts import Figure, print_part, timed
from cas_zarr import CASStore, Repository

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from ipfs import programs
from objects.faults import fault_proxy
from objects.servers import BUCKET, KEY, SECRET, S3Server, VersityGw

__all__ = ["PARTS"]

CHUNK = 1 << 16
ROUNDS = 3
DELAY = 0.02


def values(folder: Path, chunks: int) -> list[Figure]:
    """Write, write again and read chunks of 64 KiB, in turns with zarr's own stores.

    Its MemoryStore shows what zarr itself takes for so many chunks, whatever the store.
    """
    data = np.frombuffer(np.random.default_rng(0).bytes(chunks * CHUNK), "u1")
    found: dict[str, list[float]] = {}

    def note(what: str, call: Callable[[], Any]) -> None:
        found.setdefault(what, []).append(timed(call))

    with _server(folder) as server:
        for number in range(ROUNDS):
            url = f"s3://{BUCKET}/ours-{number}"
            options = {"storage_options": server.options(), "cache": False}
            with CASStore(url, **options) as store:
                note("ours: write and commit", lambda s=store: _write(s, data, "one"))
                note("ours: the same again", lambda s=store: _write(s, data, "two"))
            note("zarr's MemoryStore: write", lambda n=number: _fill(MemoryStore(), data, f"m{n}"))
            theirs = ObjectStore(server.store(), read_only=False)
            note("zarr's ObjectStore: write", lambda s=theirs, n=number: _fill(s, data, f"z{n}"))
            with CASStore(url, version="main", **options) as store:
                note("ours: read", lambda s=store: _read(s, "one"))
            note("zarr's ObjectStore: read", lambda s=theirs, n=number: _read(s, f"z{n}"))
            if importlib.util.find_spec("icechunk") is not None:
                repo = _icechunk(server, f"ice-{number}")
                session = repo.writable_session("main")
                note("icechunk: write and commit", lambda s=session: _ice_write(s, data))
                note("icechunk: read", lambda r=repo: _ice_read(r))
    medians = {what: statistics.median(times) for what, times in found.items()}
    title = f"{chunks} chunks of 64 KiB on S3, "
    write, read = medians["zarr's ObjectStore: write"], medians["zarr's ObjectStore: read"]
    return [
        *(Figure(title + what, seconds, "s") for what, seconds in medians.items()),
        Figure(
            "write, of ObjectStore's", 100 * medians["ours: write and commit"] / write, "%", 110
        ),
        Figure("again, of ObjectStore's", 100 * medians["ours: the same again"] / write, "%", 30),
        Figure("read, of ObjectStore's", 100 * medians["ours: read"] / read, "%", 110),
    ]


def far(folder: Path, chunks: int) -> list[Figure]:
    """Open a dataset and read one chunk where each answer takes 20 ms."""
    side = round(chunks ** (1 / 3))
    url = f"s3://{BUCKET}/far"
    with _server(folder) as server, fault_proxy(server.url) as proxy:
        options = {"storage_options": server.options(), "cache": False}
        repo = Repository.open(url, create=True, **options)
        with repo.session() as session:
            _linked(session.prepare(), side)
            session.commit("a grid")
        repo.close()
        proxy.latency = DELAY
        options["storage_options"] = server.options(endpoint=proxy.url)
        place = side // 2, side // 2, side // 2 * 2 + 1
        read: list[Any] = []
        proxy.taken()

        def once() -> None:
            with CASStore(url, read_only=True, **options) as store:
                read.append(zarr.open_array(store, path="data", mode="r")[place])

        took = timed(once)
        requests = len(proxy.taken())
    assert read[0] == 1  # and not the fill value
    what = f"open and read one of {side**3:,} chunks on S3, {1000 * DELAY:.0f} ms an answer"
    return [
        Figure(what, took, "s"),
        Figure("in round trips of so long", took / DELAY, "", 4.9),
        Figure("requests", requests, ""),
    ]


@contextmanager
def _server(folder: Path) -> Iterator[S3Server]:
    place = folder / "s3"
    place.mkdir(exist_ok=True)
    server = VersityGw(programs.versitygw(), place)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _write(store: CASStore, data: np.ndarray, name: str) -> None:
    _fill(store, data, name)
    store.commit(name)


def _fill(store: Any, data: np.ndarray, name: str) -> None:
    with zarr.config.set({"async.concurrency": 32}):
        array = zarr.create_array(
            store, name=name, shape=data.shape, chunks=(CHUNK,), dtype=data.dtype, compressors=None
        )
        array[:] = data


def _read(store: Any, name: str) -> None:
    with zarr.config.set({"async.concurrency": 32}):
        assert zarr.open_array(store, path=name, mode="r")[:].nbytes


def _icechunk(server: S3Server, prefix: str) -> Any:
    import icechunk

    storage = icechunk.s3_storage(
        bucket=BUCKET,
        prefix=prefix,
        region="us-east-1",
        endpoint_url=server.url,
        allow_http=True,
        access_key_id=KEY,
        secret_access_key=SECRET,
        force_path_style=True,
    )
    return icechunk.Repository.create(storage)


def _ice_write(session: Any, data: np.ndarray) -> None:
    _fill(session.store, data, "one")
    session.commit("one")


def _ice_read(repo: Any) -> None:
    _read(repo.readonly_session("main").store, "one")


PARTS: dict[str, Callable[[Path, int], list[Figure]]] = {"values": values, "far": far}

if __name__ == "__main__":
    sys.exit(print_part(PARTS))
