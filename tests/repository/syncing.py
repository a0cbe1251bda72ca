"""What the tests of clone, fetch, pull and push build on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from cas_zarr.blocks.base import BlockStore
from cas_zarr.blocks.local import LocalBlocks
from cas_zarr.cid import CidBytes
from cas_zarr.repository.remotes import local_blocks
from cas_zarr.repository.repository import Repository

__all__ = ["array", "commit", "contents", "grid", "held", "reads"]


def array(shape: tuple[int, ...], chunks: tuple[int, ...]) -> bytes:
    """Return the zarr.json of an array of bytes."""
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": {},
    }
    return json.dumps(document).encode()


def grid(path: str, side: int, seed: int = 0) -> dict[str, bytes]:
    """Return keys and values of an array of side × side chunks, all different."""
    values = {f"{path}/zarr.json": array((2 * side, 2 * side), (2, 2))}
    for i in range(side):
        for j in range(side):
            values[f"{path}/c/{i}/{j}"] = bytes([i % 256, j % 256, seed % 256, i // 256])
    return values


def commit(
    repo: Repository, values: Mapping[str, bytes | None], message: str = "", branch: str = "main"
) -> CidBytes:
    """Set some keys (None deletes one) and commit."""
    with repo.session(branch) as session:
        mapping = session.prepare()
        for key, value in values.items():
            if value is None:
                mapping.discard(key)
            else:
                mapping.set_value(key, value)
        return session.commit(message)


def contents(repo: Repository, version: str | CidBytes = "main") -> dict[str, bytes]:
    """Return all keys and values of a version."""
    return {key: bytes(value) for key, value in repo.at(version).items()}


def held(repo: Repository) -> set[CidBytes]:
    """Return the CIDs of the blocks that are really here."""
    return set(local_blocks(repo.blocks).list())


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch, blocks: BlockStore) -> Iterator[list[CidBytes]]:
    """Collect the CIDs of the blocks that are read from a local place, whoever opened it."""
    real, found = LocalBlocks._read, []

    def read(self: LocalBlocks, cid: CidBytes) -> bytes | None:
        if self.location == blocks.location:
            found.append(cid)
        return real(self, cid)

    with monkeypatch.context() as patch:
        patch.setattr(LocalBlocks, "_read", read)
        yield found
