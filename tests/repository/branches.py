"""Branches of a small repository, for the tests that move them."""

from __future__ import annotations

import json
from typing import Any

from cas_zarr.cid import CidBytes
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.refs import Branch
from cas_zarr.repository.repository import Repository
from cas_zarr.repository.versions import read_commit

ARRAY = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [40],
    "data_type": "uint8",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0,
    "codecs": [{"name": "bytes"}],
    "attributes": {},
}


def document(**changes: Any) -> bytes:
    return json.dumps({**ARRAY, **changes}).encode()


BEGIN: dict[str, bytes | None] = {"a/zarr.json": document(), "a/c/0": b"0", "a/c/1": b"1"}


def write(repo: Repository, branch: str, keys: dict[str, bytes | None]) -> None:
    session = repo.session(branch)
    for key, value in keys.items():
        if value is None:
            session.prepare().discard(key)
        else:
            session.prepare()[key] = value
    session.flush()


def commit(
    repo: Repository, message: str, keys: dict[str, bytes | None], branch: str = "main"
) -> CidBytes:
    write(repo, branch, keys)
    return repo.session(branch).commit(message)


def content(repo: Repository, version: Any = "main") -> dict[str, bytes]:
    mapping = repo.at(version)
    return {key: bytes(mapping[key]) for key in mapping}


def tip(repo: Repository, branch: str = "main") -> Commit:
    record = repo.refs.branch(branch)
    assert record is not None
    assert record.commit is not None
    return read_commit(repo.blocks, record.commit)


def messages(repo: Repository, branch: str = "main") -> list[str]:
    return [entry.commit.message for entry in repo.log(branch)]


def state(repo: Repository) -> dict[str, Branch]:
    return repo.branches()
