"""What reading through gateways costs: beside bare requests, py-hamt, and with a latency."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import zarr

from benchmarks.ipfs_node import running_node
from benchmarks.ipfs_publish import SIZE, filled
from benchmarks.parts import Figure, document, print_part, timed
from cas_zarr import CASStore, Repository
from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.http import HttpClient
from cas_zarr.cid import BLAKE3, RAW, as_cid_bytes, cid_of, format_cid
from cas_zarr.mapping import CASMapping
from cas_zarr.tree.walk import reachable

__all__ = ["PARTS"]

THREADS = 32
DELAY = 0.05
_MAIN = "from cas_zarr.cli.main import main; main()"


def reading(folder: Path, chunks: int) -> list[Figure]:
    """Read chunks of 64 KiB from our gateway, in a process of its own, in four ways."""
    repo = filled(folder / "reading.cas", chunks, SIZE)
    root = repo.resolve("main").root
    location = f"ipfs://{format_cid(root)}"
    cids = [format_cid(cid) for _, cid in reachable(repo.blocks, root) if cid[1] == RAW]
    with _gateway(folder / "reading.cas") as url:

        def read(*, prefetch: bool) -> None:
            store = CASStore(location, gateways=url, cache=False)
            if prefetch:
                store.prefetch("data")
            _read_all(store)

        bare = timed(lambda: _bare(url, cids))
        plain = timed(lambda: read(prefetch=False))
        ahead = timed(lambda: read(prefetch=True))
    what = f"{chunks} chunks of 64 KiB from a gateway"
    figures = [
        Figure(f"{what}: bare requests, {THREADS} at once, nothing verified", bare, "s"),
        Figure(f"{what}: zarr, as it asks", plain, "s"),
        Figure(f"{what}: zarr, after prefetch, together", ahead, "s"),
        Figure("zarr, of the time of bare requests", 100 * plain / bare, "%", 125),
        Figure("prefetch and zarr, of the time of bare requests", 100 * ahead / bare, "%", 125),
    ]
    if importlib.util.find_spec("py_hamt") is not None:
        theirs = _read_with_py_hamt(folder / "py-hamt", chunks)
        figures += [
            Figure(f"{what} of Kubo: py-hamt", theirs, "s"),
            Figure("zarr, of the time of py-hamt", 100 * plain / theirs, "%", 100 / 3),
        ]
    return figures


def far(folder: Path, chunks: int) -> list[Figure]:
    """Open a dataset and read one chunk through a gateway that takes 50 ms for each answer."""
    del folder
    side = round(chunks ** (1 / 3))
    repo = Repository.memory()
    with repo.session() as session:
        keys = session.prepare()
        root = _linked(keys, side)
        session.flush()
    root = session.root or root
    with _delayed(repo.blocks) as (url, asked):
        store = CASStore(f"ipfs://{format_cid(as_cid_bytes(root))}", gateways=url, cache=False)
        place = side // 2, side // 2, side // 2 * 2 + 1
        read: list[Any] = []
        took = timed(lambda: read.append(zarr.open_array(store, path="data", mode="r")[place]))
    assert read[0] == 1  # and not the fill value
    what = f"open and read one of {side**3:,} chunks, {1000 * DELAY:.0f} ms an answer"
    return [
        Figure(what, len(asked), "requests", 5),
        Figure(what, took, "s"),
    ]


def _linked(keys: CASMapping, side: int) -> Any:
    """Fill a grid with one value for each chunk, in bulk."""
    value = np.arange(2, dtype="<u8").tobytes()
    cid = cid_of(RAW, BLAKE3, value)
    keys.blocks.put(cid, value)
    keys["data/zarr.json"] = document(side)
    coordinates = np.stack(np.indices((side, side, side)), -1).reshape(-1, 3)
    # Links of chunks that all differ, so that no two pages are one; the chunk that is read is real.
    cids = np.tile(np.frombuffer(cid, np.uint8), (len(coordinates), 1))
    cids[:, 4:12] = np.arange(len(coordinates), dtype="<u8").view(np.uint8).reshape(-1, 8)
    middle = side // 2
    row = (middle * side + middle) * side + middle
    cids[row] = np.frombuffer(cid, np.uint8)
    keys.set_links("data", coordinates, cids, np.full(len(cids), len(value), np.uint64))
    return keys.root


def _read_all(store: Any) -> None:
    array = zarr.open_array(store, path="data", mode="r")
    array[:]


def _bare(url: str, cids: list[str]) -> None:
    with HttpClient(connections=THREADS) as client, ThreadPoolExecutor(THREADS) as pool:

        def get(cid: str) -> int:
            return len(client.request("GET", f"{url}/ipfs/{cid}?format=raw", limit=2 << 20).body)

        assert sum(pool.map(get, cids)) >= SIZE * len(cids)


@contextmanager
def _gateway(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-c", _MAIN, "gateway", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield next(word.rstrip(",") for word in line.split() if word.startswith("http://"))
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _delayed(blocks: BlockStore) -> Iterator[tuple[str, list[str]]]:
    """Serve raw blocks, each after a while; give the address, and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            time.sleep(DELAY)
            found = blocks.get_held([urlsplit(self.path).path.rpartition("/")[2]])
            data = next(iter(found.values()), b"")
            self.send_response(200 if data and "format=raw" in self.path else 404)
            self.send_header("Content-Type", "application/vnd.ipld.raw")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def _read_with_py_hamt(folder: Path, chunks: int) -> float:
    """Return how long py-hamt reads the same from the gateway of a node."""
    from py_hamt import HAMT, KuboCAS, ZarrHAMTStore

    async def write(cas: Any) -> Any:
        hamt = await HAMT.build(cas, values_are_bytes=True)
        store = ZarrHAMTStore(hamt, read_only=False)
        data = np.frombuffer(np.random.default_rng(0).bytes(chunks * SIZE), "u1")
        await asyncio.to_thread(
            zarr.create_array, store, name="data", data=data, chunks=(SIZE,), compressors=None
        )
        await hamt.make_read_only()
        return hamt.root_node_id

    async def read(cas: Any, root: Any) -> float:
        hamt = await HAMT.build(cas, root_node_id=root, read_only=True, values_are_bytes=True)
        store = ZarrHAMTStore(hamt, read_only=True)
        return await asyncio.to_thread(timed, lambda: _read_all(store))

    async def both(rpc: str, gateway: str) -> float:
        async with KuboCAS(rpc_base_url=rpc, gateway_base_url=gateway) as cas:
            root = await write(cas)
        async with KuboCAS(rpc_base_url=rpc, gateway_base_url=gateway) as cas:
            return await read(cas, root)

    with running_node(folder) as node:
        return asyncio.run(both(node.rpc, node.gateway))


PARTS: dict[str, Callable[[Path, int], list[Figure]]] = {"reading": reading, "far": far}

if __name__ == "__main__":
    sys.exit(print_part(PARTS))
