"""The test vectors of format version 1: ``python tests/format/vectors.py`` writes them.

A change of what this prints is a change of the format.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, cid_of, format_cid, hash_by_name
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.commit import Commit
from cas_zarr.repository.signing import check, key_of, sign
from cas_zarr.tree.walk import reachable

FILE = Path(__file__).resolve().parents[2] / "docs" / "format-vectors.json"
COMMITS = FILE.with_name("commit-vectors.json")

GROUP = b'{"zarr_format":3,"node_type":"group"}'
MIB = 1 << 20


def array(shape: list[int], chunks: list[int], codecs: list[Any] | None = None) -> bytes:
    """Return the zarr.json of an array of bytes."""
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs or [{"name": "bytes"}],
        "attributes": {"title": "Lufttemperatur – °C"},
    }
    return json.dumps(document, ensure_ascii=False).encode()


def sharded() -> tuple[bytes, bytes]:
    """Return the zarr.json of an array in shards, and a shard with three of its four chunks."""
    index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
    codec = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [MIB],
            "codecs": [{"name": "bytes"}],
            "index_codecs": index_codecs,
            "index_location": "end",
        },
    }
    sizes = [700_000, 0, MIB + 100, 20_000]
    index, body, offset = b"", b"", 0
    for number, size in enumerate(sizes):
        if size == 0:
            index += b"\xff" * 16
            continue
        index += offset.to_bytes(8, "little") + size.to_bytes(8, "little")
        body += bytes([number + 1]) * size
        offset += size
    return array([4 * MIB], [4 * MIB], [codec]), body + index


def datasets() -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """Yield name, hash and keys of every vector."""
    yield "empty", "blake3", {}
    yield "empty, sha2-256", "sha2-256", {}
    small = {
        "zarr.json": GROUP,
        "air/zarr.json": array([4, 4], [2, 2]),
        "air/c/0/0": b"\x01\x02\x03\x04",
        "air/c/0/1": b"\x05\x06\x07\x08",
        "air/c/1/1": b"",
    }
    yield "a group with an array of three chunks", "blake3", small
    yield "a group with an array of three chunks, sha2-256", "sha2-256", small
    yield (
        "no dimensions, and no elements",
        "blake3",
        {
            "scalar/zarr.json": array([], []),
            "scalar/c": b"*",
            "nothing/zarr.json": array([0], [1]),
        },
    )
    yield (
        "version 2 with both separators, beside version 3",
        "blake3",
        {
            ".zgroup": b'{"zarr_format": 2}',
            ".zattrs": b"{}",
            "dot/.zarray": b'{"zarr_format": 2, "shape": [4, 4], "chunks": [2, 2]}',
            "dot/0.0": b"a",
            "dot/1.1": b"b",
            "slash/.zarray": b'{"zarr_format": 2, "dimension_separator": "/"}',
            "slash/0/0": b"a",
            "slash/10/3": b"c",
            "both/.zarray": b"{}",
            "both/zarr.json": array([2], [1]),
            "both/c/0": b"d",
            "both/0": b"e",
            "both/c.1": b"f",
        },
    )
    yield (
        "keys that look like chunks and are none, and the other way round",
        "blake3",
        {
            "c/0/0": b"no array above",
            "a/.zgroup": b"{}",
            "a/0": b"a group of version 2 owns no chunks",
            "g/zarr.json": GROUP,
            "g/c/0": b"but one with a zarr.json does",
            "g/c/00": b"leading zero",
            "g/c/4294967295": b"the last",
            "g/c/4294967296": b"beyond it",
            "g/c": b"no dimensions",
            "g/c/0/0.1": b"mixed",
            "g/x/c/1": b"not right behind the array",
            "g/" + "/".join(["1"] * 32): b"32 dimensions",
            "g/" + "/".join(["1"] * 33): b"33 dimensions",
            "g/0/zarr.json": GROUP,
            "g/0/c/7": b"of the deeper one",
        },
    )
    yield (
        "documents to the byte",
        "blake3",
        {
            "zarr.json": b'{ "zarr_format" : 3,\r\n\t"node_type":"group" }\n',
            ".zattrs": b"\xff\xfe is no utf-8",
            "a/.zattrs": b"",
            "b/.zattrs": '\x00\x1f\x7f"\\/ü€😀'.encode(),
            "c/.zattrs": b"x" * 65_534,
            "d/.zattrs": b"x" * 65_535,
        },
    )
    yield (
        "a grid of 600 chunks: two leaf pages and an embedded top",
        "blake3",
        {"zarr.json": array([600], [1])} | {f"c/{n}": bytes([n % 251]) for n in range(600)},
    )
    yield (
        "a sparse grid of five dimensions with codes beyond 64 bits",
        "blake3",
        {
            "zarr.json": array([1 << 20] * 5, [1] * 5),
            "c/0/0/0/0/0": b"first",
            "c/1048575/1048575/1048575/1048575/1048575": b"last",
            "c/524288/0/3/0/1": b"between",
        },
    )
    long = b"0123456789abcdef" * (MIB // 16)
    yield "values at and past one block", "blake3", {"at": long, "past": long + b"!"}
    yield "values at and past one block, sha2-256", "sha2-256", {"at": long, "past": long + b"!"}
    document, shard = sharded()
    yield "a shard, cut at its inner chunks", "blake3", {"zarr.json": document, "c/0": shard}
    yield (
        "a folder of 1500 keys, in shards",
        "blake3",
        {f"key-{n:04}": bytes([n % 7]) for n in range(1500)},
    )


def build(name: str, hash: str, keys: dict[str, bytes]) -> dict[str, Any]:
    """Return one vector."""
    blocks = MemoryBlocks()
    mapping = CASMapping(blocks, hash=hash)
    mapping.update(keys)
    root = mapping.flush()
    return {
        "name": name,
        "hash": hash,
        "keys": {key: _written(value) for key, value in sorted(keys.items())},
        "root": format_cid(root),
        "blocks": {
            format_cid(cid): _written(blocks.get(cid)) for _, cid in sorted(reachable(blocks, root))
        },
    }


def _written(value: bytes) -> Any:
    """Write a value as hex, or as a list of hex and of what is repeated where it is long."""
    if len(value) <= 4096:
        return value.hex()
    unit = value[:16]
    whole = len(value) // 16 * 16
    if value[:whole] == unit * (whole // 16):
        return [{"repeat": unit.hex(), "size": whole}, value[whole:].hex()]
    parts: list[Any] = []
    for byte, run in itertools.groupby(value):
        size = len(list(run))
        if size >= 64:
            parts.append({"repeat": f"{byte:02x}", "size": size})
        elif parts and isinstance(parts[-1], str):
            parts[-1] += f"{byte:02x}" * size
        else:
            parts.append(f"{byte:02x}" * size)
    return parts if len(parts) < 100 else value.hex()


def commits() -> Iterator[tuple[str, str, Commit]]:
    """Yield name, hash and commit of each vector; the keys are those of RFC 8032, section 7.1."""
    root, first, second = (
        cid_of(codec, BLAKE3, data)
        for codec, data in ((DAG_JSON, b"root"), (DAG_CBOR, b"first"), (DAG_CBOR, b"second"))
    )
    yield "the least", "blake3", Commit(root=root)
    merge = Commit(
        root=root,
        parents=(first, second),
        author="Ada <ada@example.org>",
        time=1_769_860_800_000_000,
        message="Messfehler vom 3. Tag berichtigt",
        metadata={"run": 7, "tags": ["a", "ß"], "inner": {"raw": b"\xff"}},
    )
    yield "a merge", "blake3", merge
    yield "a merge, sha2-256", "sha2-256", merge
    one = key_of(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    other = key_of(
        bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    )
    yield "the least, signed", "blake3", sign(Commit(root=root), one)
    signed = sign(merge, other)
    yield "a merge, signed", "blake3", signed
    yield "a merge, signed, sha2-256", "sha2-256", signed
    yield "signed, and changed", "blake3", replace(signed, message="Nichts berichtigt")
    yield "signed by one, of another", "blake3", replace(merge, signature=_of(one, signed))
    yield "a signature of another form", "blake3", replace(merge, signature=b"later")


def _of(key: Any, signed: Commit) -> bytes:
    """Return a signature that claims another key."""
    assert signed.signature is not None
    return bytes(key.public_key().public_bytes_raw()) + signed.signature[32:]


def build_commit(name: str, hash: str, commit: Commit) -> dict[str, Any]:
    """Return one vector of a commit."""
    cid, data = commit.to_block(hash_by_name(hash))
    return {
        "name": name,
        "hash": hash,
        "root": format_cid(commit.root),
        "parents": [format_cid(parent) for parent in commit.parents],
        "author": commit.author,
        "time": commit.time,
        "message": commit.message,
        "signature": None if commit.signature is None else commit.signature.hex(),
        "signed": check(commit).valid,
        "cid": format_cid(cid),
        "block": data.hex(),
    }


def main() -> None:
    """Write the files."""
    vectors = [build(*dataset) for dataset in datasets()]
    FILE.write_text(json.dumps(vectors, ensure_ascii=False, indent=1) + "\n")
    made = [build_commit(*commit) for commit in commits()]
    COMMITS.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
