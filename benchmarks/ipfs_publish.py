"""What publishing costs: beside a hand-made CAR, a second time, and after one chunk has changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zarr

from benchmarks.ipfs_node import running_node
from benchmarks.parts import Figure, print_part, timed
from cas_zarr import CASStore, Repository
from cas_zarr.blocks.http import HttpClient
from cas_zarr.cid import CidBytes
from cas_zarr.codecs.car import encode_roots, section_head
from cas_zarr.repository.publishing import publish
from cas_zarr.tree.walk import reachable

__all__ = ["PARTS", "SIZE", "filled"]

SIZE = 64 << 10


def filled(folder: Path, chunks: int, size: int) -> Repository:
    """Return a repository with an array of random bytes."""
    with CASStore(folder) as store:
        array = zarr.create_array(
            store, name="data", shape=(chunks * size,), chunks=(size,), dtype="u1", compressors=None
        )
        step = max(1, (64 << 20) // size)
        for start in range(0, chunks, step):
            stop = min(start + step, chunks)
            array[start * size : stop * size] = np.frombuffer(
                os.urandom((stop - start) * size), "u1"
            )
        store.commit("write")
    return Repository.open(folder)


def publishing(folder: Path, chunks: int) -> list[Figure]:
    """Publish chunks of 64 KiB, each way to a node of its own; then the same root again."""
    repo = filled(folder / "publishing.cas", chunks, SIZE)
    root = repo.resolve("main").root
    with running_node(folder / "by-hand") as node:
        blocks = {cid: bytes(repo.blocks.get(cid)) for _, cid in reachable(repo.blocks, root)}
        by_hand = timed(lambda: _import_by_hand(node.rpc, root, blocks))
    with running_node(folder / "published") as node:
        ours = timed(lambda: publish(repo, to=node.rpc))
        again = publish(repo, to=node.rpc)
    return [
        Figure(f"dag/import of {chunks} blocks by hand, pinned", by_hand, "s"),
        Figure(f"publish {chunks} chunks of 64 KiB", ours, "s"),
        Figure("publish, of the time by hand", 100 * ours / by_hand, "%", 100 / 0.85),
        Figure("publish the same root again", again.requests, "requests", 3),
    ]


def changing(folder: Path, chunks: int) -> list[Figure]:
    """Publish many small chunks, then the version that differs in one of them."""
    repo = filled(folder / "changing.cas", chunks, 64)
    with running_node(folder / "changed") as node:
        publish(repo, to=node.rpc)
        with CASStore(folder / "changing.cas") as store:
            zarr.open_array(store, path="data")[chunks // 2 * 64] ^= 1
            store.commit("change")
        report = publish(Repository.open(folder / "changing.cas"), to=node.rpc)
    what = f"after one changed chunk of {chunks:,}"
    return [
        Figure(what, report.requests, "requests", 20),
        Figure(what, report.size - 64, "bytes beyond the chunk", 200_000),
    ]


def _import_by_hand(rpc: str, root: CidBytes, blocks: dict[CidBytes, bytes]) -> None:
    """Do what `curl -F file=@x.car` does, with the same client as ours."""
    border = b"cas-zarr-benchmark"

    def body() -> Iterator[bytes]:
        yield (
            b'--%s\r\nContent-Disposition: form-data; name="file"; filename="x.car"\r\n\r\n'
            % border
        )
        yield encode_roots([root])
        for cid, data in blocks.items():
            yield section_head(cid, len(data)) + data
        yield b"\r\n--%s--\r\n" % border

    with HttpClient(timeout=300) as client:
        answer = client.request(
            "POST",
            f"{rpc}/api/v0/dag/import?pin-roots=true",
            headers={"Content-Type": f"multipart/form-data; boundary={border.decode()}"},
            body=body(),
        )
    if answer.status != 200 or b'"PinErrorMsg":""' not in answer.body:
        raise SystemExit(f"dag/import: status {answer.status}: {answer.body[:500]!r}")


PARTS: dict[str, Callable[[Path, int], list[Figure]]] = {
    "publishing": publishing,
    "changing": changing,
}

if __name__ == "__main__":
    sys.exit(print_part(PARTS))
