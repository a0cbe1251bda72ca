"""docs/format.md, held to: the vectors, and a reader written from the page alone."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import reader
import vectors

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import as_cid_bytes, format_cid
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.signing import check
from cas_zarr.tree.walk import reachable

VECTORS: list[dict[str, Any]] = json.loads(vectors.FILE.read_text())
NAMES = [vector["name"] for vector in VECTORS]
COMMITS: list[dict[str, Any]] = json.loads(vectors.COMMITS.read_text())


def unwritten(value: Any) -> bytes:
    if isinstance(value, str):
        return bytes.fromhex(value)
    if isinstance(value, list):
        return b"".join(map(unwritten, value))
    return bytes.fromhex(value["repeat"]) * (value["size"] * 2 // len(value["repeat"]))


def test_the_file_is_what_the_generator_makes() -> None:
    assert [vectors.build(*dataset) for dataset in vectors.datasets()] == VECTORS


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_the_keys_give_the_root_in_any_order(vector: dict[str, Any]) -> None:
    keys = [(key, unwritten(value)) for key, value in vector["keys"].items()]
    for seed in range(3):
        random.Random(seed).shuffle(keys)
        blocks = MemoryBlocks()
        mapping = CASMapping(blocks, hash=vector["hash"])
        for number, (key, value) in enumerate(keys):
            mapping[key] = value
            if number % 97 == seed:
                mapping = CASMapping(blocks, mapping.flush())
        assert format_cid(mapping.flush()) == vector["root"]


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_the_blocks_give_the_keys(vector: dict[str, Any]) -> None:
    blocks = MemoryBlocks()
    for cid, data in vector["blocks"].items():
        blocks.put(cid, unwritten(data))
    mapping = CASMapping(blocks, vector["root"], read_only=True)
    assert dict(mapping) == {key: unwritten(value) for key, value in vector["keys"].items()}
    linked = {format_cid(cid) for _, cid in reachable(blocks, vector["root"])}
    assert linked == vector["blocks"].keys()


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_a_reader_that_knows_only_the_page_reads_them(vector: dict[str, Any]) -> None:
    blocks = {cid: unwritten(data) for cid, data in vector["blocks"].items()}
    read = reader.Dataset(blocks, vector["root"]).items()
    assert read == {key: unwritten(value) for key, value in vector["keys"].items()}


def test_the_file_of_commits_is_what_the_generator_makes() -> None:
    assert [vectors.build_commit(*commit) for commit in vectors.commits()] == COMMITS


@pytest.mark.parametrize("vector", COMMITS, ids=[vector["name"] for vector in COMMITS])
def test_a_reader_that_knows_only_the_page_reads_commits(vector: dict[str, Any]) -> None:
    block = bytes.fromhex(vector["block"])
    found = reader.cbor(block)
    for field in ("root", "parents", "author", "time", "message"):
        assert found[field] == vector[field]
    signature = found.get("signature")
    assert (None if signature is None else signature.hex()) == vector["signature"]
    key = reader.signed_by(block)
    assert (key is not None) == vector["signed"]
    assert key is None or vector["signature"].startswith(key.hex())
    commit = Commit.from_block(as_cid_bytes(vector["cid"]), block)
    assert format_cid(commit.root) == vector["root"]
    assert check(commit).valid == vector["signed"]


def test_the_reader_stands_alone() -> None:
    source = Path(reader.__file__).read_text()
    assert not re.search(r"^\s*(from|import) (cas_zarr|zarr|multiformats|dag_cbor)", source, re.M)


def test_every_vector_has_its_root_among_its_blocks() -> None:
    for vector in VECTORS:
        assert vector["root"] in vector["blocks"]
        as_cid_bytes(vector["root"])
