"""Root documents: exact, canonical, and refused where they are not."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, DAG_PB, RAW, SHA256, cid_of, format_cid
from cas_zarr.codecs import dagjson
from cas_zarr.errors import CasZarrError, FormatError
from cas_zarr.mapping import CASMapping
from cas_zarr.tree.node import EMPTY, Header, Root, document_text
from cas_zarr.tree.shards import TreeReader
from cas_zarr.tree.view import TreeView
from cas_zarr.tree.walk import reachable

HEADER = {"hash": "blake3", "type": "cas-zarr/root", "version": 1}


def link(data: bytes = b"x", codec: int = RAW) -> dict[str, str]:
    return {"/": format_cid(cid_of(codec, BLAKE3, data))}


def block(members: dict[str, Any], header: dict[str, Any] | None = None) -> bytes:
    """Return the canonical bytes of a root document, right or wrong."""
    value = {"header": HEADER if header is None else header, **members}
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)
    return text.encode()


def small_root() -> bytes:
    mapping = CASMapping(MemoryBlocks())
    mapping["zarr.json"] = b'{"a":"\\u00e9"}\x01'
    mapping["a/.zarray"] = b"\xff"
    mapping["a/0.1"] = b"chunk"
    mapping["k"] = b"plain"
    mapping["g/b"] = b"plain"
    return mapping.blocks.get(mapping.flush())


def test_the_empty_root_reads_as_the_design_says() -> None:
    root = Root(Header(), EMPTY).to_block()
    assert root == b'{"header":{"hash":"blake3","type":"cas-zarr/root","version":1}}'
    assert Root.from_block(root).to_block() == root


def test_a_root_is_canonical_dag_json_of_its_parts() -> None:
    data = small_root()
    value = dagjson.decode(data)
    assert list(value) == ["docs", "header", "keys", "nodes"]
    assert value["docs"] == {"zarr.json": '{"a":"\\u00e9"}\x01'}
    assert value["nodes"]["a"]["docs"] == {".zarray": b"\xff"}
    assert list(value["nodes"]["a"]["trees"]) == [".2"]
    assert value["keys"]["k"]["size"] == 5
    assert dagjson.encode(value) == data
    assert Root.from_block(data).to_block() == data


def read_through(data: bytes) -> bool:
    """Read all of a root that may be damaged; False where that raised a `CasZarrError`."""
    root = Root.from_block(data)
    assert root.to_block() == data
    blocks = MemoryBlocks()
    blocks.put(root.cid(), data)
    view = TreeView(TreeReader(blocks), root)
    try:
        for key in view.keys():  # noqa: SIM118
            view.find(key)
        view.folder("")
        view.size_below("")
        list(reachable(blocks, root.cid()))
    except CasZarrError:
        return False
    return True


def refused(data: bytes) -> bool:
    try:
        read_through(data)
    except CasZarrError:
        return True
    return False


def test_every_changed_byte_is_refused_or_canonical() -> None:
    data = small_root()
    text = b'\0\x08"\\/{}[],:0129azA-+.eE \n\x7f\xc3\xa9\xff'
    count = 0
    for position in range(len(data)):
        for value in {*text, data[position] ^ 1, data[position] ^ 0x20, data[position] ^ 0x80}:
            if value != data[position]:
                count += refused(data[:position] + bytes([value]) + data[position + 1 :])
    assert count > 20 * len(data)


@pytest.mark.slow
def test_every_value_of_every_byte_is_refused_or_canonical() -> None:
    data = small_root()
    for position in range(len(data)):
        for value in range(256):
            refused(data[:position] + bytes([value]) + data[position + 1 :])


def test_every_truncation_and_addition_is_refused() -> None:
    data = small_root()
    for end in range(len(data)):
        with pytest.raises(FormatError):
            Root.from_block(data[:end])
    for extra in (b" ", b"\n", b"\0", b"{}"):
        with pytest.raises(FormatError):
            Root.from_block(data + extra)


def test_random_damage_is_refused_or_canonical() -> None:
    data = small_root()
    rng = random.Random(7)
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(changed) or 1)
            what = rng.randrange(3)
            if what == 0:
                changed[start : start + rng.randint(1, 9)] = rng.randbytes(rng.randint(0, 9))
            elif what == 1:
                source = rng.randrange(len(data))
                changed[start:start] = data[source : source + rng.randint(1, 60)]
            else:
                del changed[start : start + rng.randint(1, 30)]
        refused(bytes(changed))


def fine(members: dict[str, Any], header: dict[str, Any] | None = None) -> Root:
    data = block(members, header)
    root = Root.from_block(data)
    assert root.to_block() == data
    return root


def tree(**changes: Any) -> dict[str, Any]:
    return {"bytes": 1, "chunks": 1, "top": link(codec=DAG_CBOR)} | changes


VALUE = {"cid": link(), "size": 1}
ARRAY = {"docs": {"zarr.json": "{}"}}


def test_what_a_root_may_hold() -> None:
    fine({})
    fine({"keys": {"a": VALUE, "zarr.jso": VALUE}})
    fine({"keys": {"a": {"cid": link(codec=DAG_PB), "size": 2**63 - 1}}})
    fine({"docs": {".zattrs": VALUE}})
    fine({**ARRAY, "trees": {"c/3": tree(), "/2": tree(), "c": tree()}})
    fine({"nodes": {"a": {"nodes": {"b": ARRAY}}}})
    fine({"shards": [{"bits": "0", "cid": link(codec=DAG_JSON), "level": 0, "size": 5}]})


@pytest.mark.parametrize(
    "members",
    [
        {"what": {}},
        {"docs": {}},
        {"docs": []},
        {"docs": {"zarr.jso": "{}"}},
        {"docs": {"zarr.json": 5}},
        {"docs": {"zarr.json": {"cid": link()}}},
        {"docs": {"zarr.json": {"/": {"bytes": "YQ"}}}},  # utf-8, so a string
        {"docs": {"zarr.json": "x" * 65535}},  # 64 KiB, so a link
        {"keys": {"": VALUE}},
        {"keys": {"a/b": VALUE}},
        {"keys": {"..": VALUE}},
        {"keys": {"a\0": VALUE}},
        {"keys": {"zarr.json": VALUE}},
        {"keys": {"a": {"cid": link(), "size": -1}}},
        {"keys": {"a": {"cid": link(), "size": 2**63}}},
        {"keys": {"a": {"cid": link(), "size": True}}},
        {"keys": {"a": {"cid": link(), "size": "1"}}},
        {"keys": {"a": {"cid": link(), "size": 1, "x": 1}}},
        {"keys": {"a": {"cid": "x", "size": 1}}},
        {"keys": {"a": {"cid": link(codec=DAG_JSON), "size": 1}}},
        {
            "keys": {
                "a": {"cid": {"/": "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"}, "size": 1}
            }
        },
        {"keys": {"a": {"cid": {"/": "bafkqaaa"}, "size": 0}}},  # an identity hash
        {"nodes": {"a": {}}},
        {"nodes": {"a": {"nodes": {"b": {}}}}},
        {"nodes": {"..": ARRAY}},
        {"nodes": {"a": {"header": HEADER}}},
        {"nodes": [ARRAY]},
        {"trees": {"c/3": tree()}},  # without an owner
        {**ARRAY, "trees": {"c/33": tree()}},
        {**ARRAY, "trees": {"x": tree()}},
        {**ARRAY, "trees": {"c/3": tree(chunks=0)}},
        {**ARRAY, "trees": {"c/3": tree(bytes=2**63)}},
        {**ARRAY, "trees": {"c/3": tree(top=link(codec=RAW))}},
        {**ARRAY, "trees": {"c/3": tree(top="x")}},
        {**ARRAY, "trees": {"c/3": tree(top={"/": {"bytes": "A" * 2732}})}},
        {**ARRAY, "trees": {"c/3": {"bytes": 1, "chunks": 1}}},
        {"shards": {}},
        {"shards": [{"bits": "2", "cid": link(codec=DAG_JSON), "level": 0, "size": 5}]},
        {"shards": [{"bits": "0" * 257, "cid": link(codec=DAG_JSON), "level": 0, "size": 5}]},
        {"shards": [{"bits": "0", "cid": link(codec=RAW), "level": 0, "size": 5}]},
        {"shards": [{"bits": "0", "cid": link(codec=DAG_JSON), "level": 17, "size": 5}]},
        {
            "shards": [{"bits": "0", "cid": link(codec=DAG_JSON), "level": 0, "size": 5}],
            "keys": {"a": VALUE},
        },
        {
            "shards": [
                {"bits": bits, "cid": link(codec=DAG_JSON), "level": 0, "size": 5}
                for bits in ("0", "01")
            ]
        },
        {
            "shards": [
                {"bits": bits, "cid": link(codec=DAG_JSON), "level": 0, "size": 5}
                for bits in ("1", "0")
            ]
        },
        {
            "shards": [
                {"bits": str(level), "cid": link(codec=DAG_JSON), "level": level, "size": 5}
                for level in (0, 1)
            ]
        },
    ],
)
def test_what_a_root_may_not_hold(members: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        Root.from_block(block(members))


def test_nodes_nest_64_deep_and_no_deeper() -> None:
    def nested(depth: int) -> dict[str, Any]:
        node: dict[str, Any] = ARRAY
        for _ in range(depth):
            node = {"nodes": {"a": node}}
        return node

    fine(nested(64))
    for depth in (65, 66, 100, 5000):
        inner = b'"nodes":{"a":{' * depth + b'"docs":{"zarr.json":"{}"}' + b"}}" * depth
        data = b'{"header":' + block({})[len(b'{"header":') : -1] + b"," + inner + b"}"
        with pytest.raises(FormatError, match="deeper"):
            Root.from_block(data)


# -- headers --------------------------------------------------------------------------------


def test_extra_is_ignored_and_kept() -> None:
    header = HEADER | {"extra": {"a": [1, {"b": None}], "z": "é"}, "needs_to_write": ["x", "y"]}
    blocks = MemoryBlocks()
    data = block({"keys": {"a": VALUE}}, header)
    root = Root.from_block(data)
    assert root.to_block() == data
    blocks.put(root.cid(), data)
    del header["needs_to_write"]
    data = block({"keys": {"a": VALUE}}, header)
    blocks.put(cid_of(DAG_JSON, BLAKE3, data), data)
    mapping = CASMapping(blocks, cid_of(DAG_JSON, BLAKE3, data))
    mapping["b"] = b"x"
    changed = block({"keys": {"a": VALUE, "b": VALUE}}, header)
    assert blocks.get(mapping.flush()) == changed


def test_deep_extra_can_be_written_again() -> None:
    extra: Any = 1
    for _ in range(138):
        extra = [extra]
    fine({}, HEADER | {"extra": {"a": extra}})


def test_a_profile_names_its_hash() -> None:
    root = fine({}, HEADER | {"hash": "sha2-256"})
    assert root.header.function is SHA256
    assert root.cid() == cid_of(DAG_JSON, SHA256, root.to_block())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version 2; this release reads version 1"),
        ({"version": True}, "format version True"),
        ({"version": "1"}, "format version '1'"),
        ({"version": None}, "format version None"),
        ({"type": "cas-zarr/page"}, "type 'cas-zarr/page'"),
        ({"needs": ["rot13", "b"]}, "needs rot13, b, which this release does not know"),
        ({"needs": []}, "empty member"),
        ({"needs": "x"}, "no list of names"),
        ({"needs": [1]}, "no list of names"),
        ({"needs_to_write": []}, "empty member"),
        ({"extra": {}}, "empty member"),
        ({"extra": []}, "no map"),
        ({"hash": "md5"}, "unknown profile"),
        ({"hash": "sha256"}, "hash 'sha256'"),
        ({"hash": None}, "unknown profile"),
        ({"more": 1}, "'more', which format version 1 does not know"),
    ],
)
def test_headers_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Root.from_block(block({}, HEADER | change))


def test_a_version_with_a_point_is_another_version() -> None:
    data = block({}).replace(b'"version":1', b'"version":1.0')
    with pytest.raises(FormatError, match=r"format version 1\.0"):
        Root.from_block(data)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b'"x"', b"1", b"\xff", b'{"a":1}'])
def test_other_blocks_are_no_roots(data: bytes) -> None:
    with pytest.raises(FormatError):
        Root.from_block(data)


# -- documents ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{}",
        b'{\n  "a": 1.0\n}\n',
        bytes(range(256)),
        bytes(range(32)) + b'"\\/\x7f',
        "é𝄞\u2028\ufeff".encode(),
        b"\xed\xa0\x80",  # a lone surrogate
        b"\xff" * 49_000,
        b"\xff" * 50_000,
        b"a" * 65_534,
        b"a" * 65_535,
        b"\0" * 10_922,
        b"\0" * 10_923,
        b"a" * 102_400,
        b"\x80" * 3_000_000,
    ],
    ids=lambda document: f"{len(document)}-{document[:3].hex()}",
)
def test_documents_come_back_to_the_byte(document: bytes) -> None:
    blocks = MemoryBlocks()
    mapping = CASMapping(blocks)
    mapping["a/zarr.json"] = document
    assert mapping["a/zarr.json"] == document
    root = mapping.flush()
    assert mapping["a/zarr.json"] == document
    read = CASMapping(blocks, root)
    assert read["a/zarr.json"] == document
    assert read.size_of("a/zarr.json") == len(document)
    for start, stop in ((1, 3), (-2, None), (0, 0), (5, None)):
        part = read.get_value("a/zarr.json", start, stop)
        assert part is not None
        assert bytes(part) == document[start:stop]
    stored = dagjson.decode(blocks.get(root))["nodes"]["a"]["docs"]["zarr.json"]
    inline = len(document_text(document).encode()) <= 65536
    assert isinstance(stored, dict) != inline
    if inline:
        assert isinstance(stored, str) == (document.decode("utf-8", "replace").encode() == document)
