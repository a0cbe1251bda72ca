"""Requests and answers, by the specifications of trustless and path gateways."""

from __future__ import annotations

import http.client
import io
import json
from typing import Any

import pytest
from served import Served, broken_parent

from cas_zarr.blocks.memory import MemoryBlocks
from cas_zarr.cid import (
    DAG_CBOR,
    DAG_PB,
    SHA256,
    CidBytes,
    Link,
    as_cid_bytes,
    cid_of,
    codec_of,
    format_cid,
    matches,
    to_cid,
)
from cas_zarr.cid import RAW as RAW_CODEC
from cas_zarr.codecs import dagcbor
from cas_zarr.codecs.car import CarReader
from cas_zarr.codecs.dagpb import PBLink, PBNode, encode
from cas_zarr.errors import FormatError, LimitError
from cas_zarr.server import dags
from cas_zarr.server.content import Versions, follow
from cas_zarr.tree.walk import reachable

RAW, CAR = "application/vnd.ipld.raw", "application/vnd.ipld.car"
IMMUTABLE = "public, max-age=29030400, immutable"


def blocks_in(data: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return roots and CIDs of a CAR; every block is verified."""
    reader = CarReader(io.BytesIO(data))
    return list(reader.header.roots), [cid for cid, _ in reader]


# -- raw blocks -----------------------------------------------------------------------------------


def test_a_raw_block(served: Served) -> None:
    cid = format_cid(served.chunk)
    found = served.get(f"/ipfs/{cid}?format=raw")
    assert found.status == 200
    assert matches(served.chunk, found.body)
    expected = {
        "content-type": RAW,
        "etag": f'"{cid}.raw"',
        "cache-control": IMMUTABLE,
        "content-disposition": f'attachment; filename="{cid}.bin"',
        "x-content-type-options": "nosniff",
        "x-ipfs-path": f"/ipfs/{cid}",
        "x-ipfs-roots": cid,
        "content-length": str(len(found.body)),
        "accept-ranges": "bytes",
        "access-control-allow-origin": "*",
    }
    assert {name: found.headers.get(name) for name in expected} == expected


def test_accept_asks_for_raw_too_and_the_url_is_told(served: Served) -> None:
    cid = format_cid(served.chunk)
    found = served.get(f"/ipfs/{cid}", accept=f"text/html;q=0.1, {RAW}")
    assert found.headers["content-type"] == RAW
    assert found.headers["content-location"] == f"/ipfs/{cid}?format=raw"


def test_format_comes_before_accept(served: Served) -> None:
    found = served.get(f"/ipfs/{served.root}?format=raw", accept=CAR)
    assert found.headers["content-type"] == RAW


@pytest.mark.parametrize("base", ["base58btc", "base36", "base64url", "base16", "base32upper"])
def test_cids_of_any_base(served: Served, base: str) -> None:
    text = to_cid(served.chunk).encode(base)
    assert matches(served.chunk, served.get(f"/ipfs/{text}?format=raw").body)


def test_a_block_is_found_by_its_multihash_and_by_a_cid_of_version_0(served: Served) -> None:
    other = bytes([1, DAG_PB]) + bytes(served.chunk[2:])
    found = served.get(f"/ipfs/{format_cid(other)}?format=raw")  # type: ignore[arg-type]
    assert matches(served.chunk, found.body)
    from multiformats import multibase

    v0 = multibase.encode(served.tree[2:], "base58btc")[1:]
    assert v0.startswith("Qm")
    assert matches(served.tree, served.get(f"/ipfs/{v0}?format=raw").body)


def test_the_probe(served: Served) -> None:
    raw = served.get("/ipfs/bafkqaaa?format=raw")
    assert (raw.status, raw.body) == (200, b"")
    assert served.get("/ipfs/bafkqaaa?format=raw", "HEAD").status == 200
    car = served.get("/ipfs/bafkqaaa", accept=CAR)
    assert blocks_in(car.body) == ([bytes([1, 0x55, 0, 0])], [])


def test_an_identity_cid_carries_its_bytes(served: Served) -> None:
    text = format_cid(bytes([1, 0x55, 0, 3]) + b"abc")  # type: ignore[arg-type]
    assert served.get(f"/ipfs/{text}?format=raw").body == b"abc"
    assert served.get(f"/ipfs/{text}").body == b"abc"
    assert served.get(f"/ipfs/{text}", range="bytes=1-1").body == b"b"


def test_a_file_may_have_bytes_in_cids(served: Served) -> None:
    def inline(codec: int, data: bytes) -> CidBytes:
        return CidBytes(bytes([1, codec, 0, len(data)]) + data)

    small = encode(PBNode(b"\x08\x02\x12\x03abc\x18\x03", ()))
    assert served.get(f"/ipfs/{format_cid(inline(DAG_PB, small))}").body == b"abc"
    links = (PBLink(served.chunk, "", 33), PBLink(inline(RAW_CODEC, b"tail"), "", 4))
    data = encode(PBNode(b"\x08\x02\x18\x25\x20\x21\x20\x04", links))
    cid = cid_of(DAG_PB, SHA256, data)
    served.repo.blocks.put(cid, data)
    served.repo.blocks.flush()
    path = f"/ipfs/{format_cid(cid)}"
    assert served.get(path).body == served.repo.blocks.get(served.chunk) + b"tail"
    assert served.get(path, range="bytes=-3").body == b"ail"


def test_head_is_get_without_a_body(served: Served) -> None:
    for path in (
        f"/ipfs/{format_cid(served.chunk)}?format=raw",
        f"/ipfs/{served.root}/large/c/0/0",
        "/zarr/main/zarr.json",
    ):
        get, head = served.get(path), served.get(path, "HEAD")
        get.headers.pop("date")
        head.headers.pop("date")
        assert (head.status, head.body) == (200, b"")
        assert head.headers == get.headers


@pytest.mark.parametrize(
    "path", ["/", "/cas-zarr/repository.json", "/ipfs/{tree}/", "/ipfs/{tree}", "/ipfs/{tree}/none"]
)
def test_head_tells_of_no_other_length(served: Served, path: str) -> None:
    path = path.format(tree=format_cid(served.tree))
    get, head = served.get(path), served.get(path, "HEAD")
    assert head.status == get.status
    assert int(head.headers["content-length"]) == len(get.body)


def test_head_of_a_car_tells_no_length(served: Served) -> None:
    found = served.get(f"/ipfs/{served.root}?format=car", "HEAD")
    assert found.status == 200
    assert "content-length" not in found.headers


def test_a_cache_keeps_what_was_negotiated_apart(served: Served) -> None:
    cid = format_cid(served.chunk)
    assert served.get(f"/ipfs/{cid}", accept=RAW).headers["vary"] == "Accept"
    assert served.get(f"/ipfs/{cid}").headers["vary"] == "Accept"
    assert "vary" not in served.get(f"/ipfs/{cid}?format=raw").headers


# -- conditions and ranges ------------------------------------------------------------------------


@pytest.mark.parametrize("given", ['"{etag}"', 'W/"{etag}"', '"x", "{etag}"', "*"])
def test_what_a_client_has_is_not_sent(served: Served, given: str) -> None:
    cid = format_cid(served.chunk)
    asked = given.replace("{etag}", f"{cid}.raw")
    found = served.get(f"/ipfs/{cid}?format=raw", if_none_match=asked)
    assert (found.status, found.body) == (304, b"")
    assert found.headers["etag"] == f'"{cid}.raw"'
    assert served.get(f"/ipfs/{cid}?format=raw", if_none_match='"other"').status == 200


@pytest.mark.parametrize("path", ["/ipfs/{root}/large/c/0/0", "/zarr/main/large/c/0/0"])
@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=1048570-1048590", 206, 1048570, 1048591),
        ("bytes=3145720-", 206, 3145720, 3145728),
        ("bytes=-8", 206, 3145720, 3145728),
        ("bytes=-9999999", 206, 0, 3145728),
        ("bytes=3145720-99999999", 206, 3145720, 3145728),
        ("bytes=3145728-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=5-2", 200, 0, 3145728),
        ("bytes=0-1,4-5", 200, 0, 3145728),
        ("lines=0-1", 200, 0, 3145728),
    ],
)
def test_ranges(served: Served, path: str, asked: str, status: int, start: int, stop: int) -> None:
    whole = bytes(served.repo.at("main").get_value("large/c/0/0") or b"")
    found = served.get(path.format(root=served.root), range=asked)
    assert found.status == status
    if status == 416:
        assert found.headers["content-range"] == "bytes */3145728"
    else:
        assert found.body == whole[start:stop]
    if status == 206:
        assert found.headers["content-range"] == f"bytes {start}-{stop - 1}/3145728"


def test_a_range_of_another_version_is_not_mixed_in(served: Served) -> None:
    path = f"/ipfs/{served.root}/t2m/c/0/0"
    whole = served.get(path)
    part = served.get(path, range="bytes=0-3", if_range=whole.headers["etag"])
    assert (part.status, part.body) == (206, whole.body[:4])
    assert served.get(path, range="bytes=0-3", if_range='"other"').body == whole.body


# -- CARs -----------------------------------------------------------------------------------------


def test_a_car_has_the_whole_dataset(served: Served) -> None:
    found = served.get(f"/ipfs/{served.root}?format=car")
    assert found.status == 200
    assert found.headers["content-type"] == f"{CAR}; version=1; order=dfs; dups=n"
    assert found.headers["accept-ranges"] == "none"
    assert found.headers["content-disposition"] == f'attachment; filename="{served.root}.car"'
    roots, cids = blocks_in(found.body)
    assert format_cid(roots[0]) == served.root  # type: ignore[arg-type]
    assert len(cids) == len(set(cids))
    assert set(cids) == {cid for _, cid in reachable(served.repo.blocks, served.root)}


def test_a_commit_drags_its_history_along(served: Served) -> None:
    _, cids = blocks_in(served.get(f"/ipfs/{served.commit}?format=car").body)
    commits = [cid for cid in cids if codec_of(cid) == DAG_CBOR]  # type: ignore[arg-type]
    assert len(commits) >= 2
    assert set(cids) > set(blocks_in(served.get(f"/ipfs/{served.root}?format=car").body)[1])


def test_scopes_of_a_file(served: Served) -> None:
    cid = format_cid(served.file)

    def count(query: str) -> int:
        return len(blocks_in(served.get(f"/ipfs/{cid}?format=car&{query}").body)[1])

    assert count("dag-scope=all") == 4
    assert count("dag-scope=entity") == 4
    assert count("dag-scope=block") == 1
    assert count("entity-bytes=0:0") == 2
    assert count("entity-bytes=0:*") == 4
    assert count("entity-bytes=1048575:1048576") == 3
    assert count("entity-bytes=-1:*") == 2
    assert count("entity-bytes=1048576:-1048577") == 2
    assert count("entity-bytes=9999999:*") == 1
    assert count("entity-bytes=0:9999999") == 4


def test_scopes_have_etags_of_their_own(served: Served) -> None:
    base = f"/ipfs/{format_cid(served.file)}?format=car"
    queries = ["", "&dag-scope=block", "&dag-scope=entity", "&entity-bytes=0:1", "&car-dups=y"]
    tags = [served.get(base + query).headers["etag"] for query in queries]
    assert len(set(tags)) == len(tags)
    assert served.get(base, if_none_match=tags[0]).status == 304


def test_a_path_in_a_car_brings_the_blocks_along_it(served: Served) -> None:
    path = f"/ipfs/{format_cid(served.tree)}/big?format=car"
    roots, cids = blocks_in(served.get(path).body)
    assert roots == [served.file]
    assert cids[0] == served.tree
    assert len(cids) == 5
    _, cids = blocks_in(served.get(path + "&dag-scope=block").body)
    assert cids == [served.tree, served.file]


def test_a_key_in_a_car_brings_what_proves_it(served: Served) -> None:
    path = f"/ipfs/{served.root}/t2m/c/0/0?format=car&dag-scope=entity"
    _, cids = blocks_in(served.get(path).body)
    assert format_cid(cids[0]) == served.root  # type: ignore[arg-type]
    assert cids[-1] == served.chunk


def test_duplicates_where_they_are_wanted(served: Served) -> None:
    path = f"/ipfs/{format_cid(served.tree)}"
    once = served.get(path, accept=f"{CAR}; dups=n")
    often = served.get(path, accept=f"{CAR}; version=1; order=dfs; dups=y")
    assert often.headers["content-type"].endswith("dups=y")
    assert set(blocks_in(often.body)[1]) == set(blocks_in(once.body)[1])
    twice = encode(PBNode(b"\x08\x01", tuple(PBLink(served.page, name, 1) for name in "ab")))
    cid = cid_of(DAG_PB, SHA256, twice)
    served.repo.blocks.put(cid, twice)
    served.repo.blocks.flush()
    found = [
        blocks_in(served.get(f"/ipfs/{format_cid(cid)}?format=car&car-dups={dups}").body)[1]
        for dups in "ny"
    ]
    assert [cids.count(served.page) for cids in found] == [1, 2]


def test_a_missing_block_cuts_the_connection(served: Served) -> None:
    cid = broken_parent(served.repo)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        served.get(f"/ipfs/{cid}?format=car")
    few = broken_parent(served.repo, 1)  # found missing before anything was sent
    assert served.get(f"/ipfs/{few}?format=car").status == 404


# -- paths ----------------------------------------------------------------------------------------


def test_files_of_unixfs(served: Served) -> None:
    tree = format_cid(served.tree)
    found = served.get(f"/ipfs/{tree}/a%20%3Cb%3E.bin")
    assert matches(served.chunk, found.body)
    assert found.headers["etag"] == f'"{format_cid(served.chunk)}"'
    assert found.headers["x-ipfs-roots"] == f"{tree},{format_cid(served.chunk)}"
    whole = bytes(served.repo.at("main").get_value("large/c/0/0") or b"")
    assert served.get(f"/ipfs/{tree}/big").body == whole
    assert (
        served.get(f"/ipfs/{tree}/big", range="bytes=2000000-2000003").body
        == (whole[2000000:2000004])
    )


def test_a_directory_is_listed_and_escaped(served: Served) -> None:
    tree = format_cid(served.tree)
    moved = served.get(f"/ipfs/{tree}")
    assert (moved.status, moved.headers["location"]) == (301, f"/ipfs/{tree}/")
    page = served.get(f"/ipfs/{tree}/")
    assert page.headers["content-type"].startswith("text/html")
    assert b"a &lt;b&gt;.bin" in page.body
    assert b"<b>" not in page.body
    assert b'href="./a%20%3Cb%3E.bin"' in page.body
    names = [
        one["name"] for one in json.loads(served.get(f"/ipfs/{tree}/?format=json").body)["entries"]
    ]
    assert names == ["a <b>.bin", "big", "page"]


def test_index_html_stands_for_its_directory(served: Served) -> None:
    assert served.get(f"/ipfs/{format_cid(served.tree)}/page").status == 301
    found = served.get(f"/ipfs/{format_cid(served.tree)}/page/")
    assert found.body == b"<p>index</p>"
    assert found.headers["content-type"].startswith("text/html")


def test_links_of_ipld_data_are_followed(served: Served) -> None:
    by_commit = served.get(f"/ipfs/{served.commit}/root/t2m/c/0/0")
    assert by_commit.body == served.get(f"/ipfs/{served.root}/t2m/c/0/0").body
    older = served.get(f"/ipfs/{served.commit}/parents/0/root/t2m/c/0/0")
    assert older.body == served.get("/zarr/v1/t2m/c/0/0").body
    assert older.body != by_commit.body


def test_documents_are_given_as_they_are(served: Served) -> None:
    found = served.get(f"/ipfs/{served.root}")
    assert found.headers["content-type"] == "application/vnd.ipld.dag-json"
    assert json.loads(found.body)["header"]["type"] == "cas-zarr/root"
    assert served.get(f"/ipfs/{served.commit}").headers["content-type"] == (
        "application/vnd.ipld.dag-cbor"
    )
    assert served.get(f"/ipfs/{served.commit}?format=dag-json").status == 406


def test_metadata_are_consolidated_as_the_store_does_it(served: Served) -> None:
    for base in (f"/ipfs/{served.root}", "/zarr/main"):
        found = served.get(f"{base}/zarr.json")
        assert found.headers["content-type"] == "application/json"
        members = json.loads(found.body)["consolidated_metadata"]["metadata"]
        assert set(members) == {"large", "t2m"}
        again = served.get(f"{base}/zarr.json", if_none_match=found.headers["etag"])
        assert again.status == 304


def test_a_dataset_that_is_open_is_not_read_again(served: Served) -> None:
    class Counted(MemoryBlocks):
        reads: list[CidBytes]

        def _read(self, cid: CidBytes) -> bytes | None:
            self.reads.append(cid)
            return super()._read(cid)

    blocks, versions, root = Counted(), Versions("blake3"), as_cid_bytes(served.root)
    blocks.reads = []
    for _, cid in reachable(served.repo.blocks, root):
        blocks.put(cid, served.repo.blocks.get(cid))
    for _ in range(3):
        assert follow(versions, blocks, root, ["t2m", "c", "0", "0"]).block == served.chunk
    assert blocks.reads.count(root) <= 2


def test_named_versions(served: Served) -> None:
    found = served.get("/zarr/v1/t2m/c/0/0")
    assert found.status == 200
    assert found.headers["cache-control"] == "public, max-age=2"
    assert served.get("/zarr/main~1/t2m/c/0/0").body == found.body
    assert served.get("/zarr/main/t2m/c/0/0").body != found.body
    served.repo.create_branch("a/b", "v1")
    assert served.get("/zarr/a%2Fb/t2m/c/0/0").body == found.body


def test_a_history_may_be_longer_than_a_dag_is_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dags, "MAX_DEPTH", 10)
    blocks, last = MemoryBlocks(), cid_of(RAW_CODEC, SHA256, b"first")
    blocks.put(last, b"first")
    for number in range(50):  # as commits: what is here, then what was before
        root = dagcbor.encode({"number": number})
        data = dagcbor.encode({"a": Link(cid_of(DAG_CBOR, SHA256, root)), "b": [Link(last)]})
        last = cid_of(DAG_CBOR, SHA256, data)
        blocks.put_many([(cid_of(DAG_CBOR, SHA256, root), root), (last, data)])
    assert {cid for cid, _ in dags.dag_blocks(blocks, last)} == set(blocks.list())
    for _ in range(11):  # what is deep indeed
        data = dagcbor.encode([Link(last), Link(cid_of(DAG_CBOR, SHA256, b"\x00"))])
        last = cid_of(DAG_CBOR, SHA256, data)
        blocks.put(last, data)
    with pytest.raises(LimitError, match="deeper"):
        list(dags.dag_blocks(blocks, last))


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "path", "headers"),
    [
        (400, "/ipfs/nonsense", {}),
        (400, "/ipfs/{root}?format=nonsense", {}),
        (400, "/ipfs/{root}//t2m", {}),
        (400, "/ipfs/{root}/%00", {}),
        (400, "/ipfs/{root}/%ff", {}),
        (400, "/ipfs/{tree}/..%2f..", {}),
        (400, "/ipfs/{root}?format=car&dag-scope=x", {}),
        (400, "/ipfs/{root}?format=car&entity-bytes=x", {}),
        (400, "/ipfs/{root}?format=car&entity-bytes=5:2", {}),
        (400, "/ipfs/{root}?format=car&car-version=2", {}),
        (400, "/ipfs/{root}", {"service_worker": "script"}),
        (400, "/ipfs/bafkreh2akiscaildc?format=raw", {}),
        (400, "/ipfs/{sha512}?format=raw", {}),
        (404, "/ipfs/{gone}?format=raw", {}),
        (404, "/ipfs/{gone}?format=car", {}),
        (404, "/ipfs/{gone}", {}),
        (404, "/ipfs/{root}/t2m/c/9/9", {}),
        (404, "/ipfs/{root}/t2m", {}),
        (404, "/ipfs/{tree}/none", {}),
        (404, "/ipfs/{tree}/big/below", {}),
        (404, "/ipfs/{commit}/message", {}),
        (404, "/ipfs/{commit}/parents/7/root", {}),
        (404, "/ipns/example.com", {}),
        (404, "/zarr/none/zarr.json", {}),
        (404, "/zarr/main@%7B1%7D/zarr.json", {}),
        (404, "/zarr/main/none", {}),
        (404, "/cas-zarr/other", {}),
        (404, "/favicon.ico", {}),
        (406, "/ipfs/{tree}/?format=dag-json", {}),
        (406, "/ipfs/{tree}/big?format=dag-cbor", {}),
        (406, "/ipfs/{root}?format=tar", {}),
        (406, "/ipfs/{root}?format=ipns-record", {}),
        (406, "/ipfs/{root}", {"accept": "application/vnd.ipld.car; version=2"}),
        (406, "/ipfs/{root}", {"accept": "application/vnd.ipfs.ipns-record"}),
        (412, "/ipfs/{gone}?format=raw", {"cache_control": "only-if-cached"}),
    ],
)
def test_refusals(served: Served, status: int, path: str, headers: dict[str, str]) -> None:
    gone = "bafkreih5aznjvttude6c3wbvqeebb6rlx5wkbzyppv7garjiubll2ceym4"
    sha512 = format_cid(bytes([1, 0x55, 0x13, 64]) + bytes(64))  # type: ignore[arg-type]
    names: dict[str, Any] = {
        "root": served.root,
        "commit": served.commit,
        "tree": format_cid(served.tree),
        "gone": gone,
        "sha512": sha512,
    }
    for name, value in names.items():
        path = path.replace("{" + name + "}", value)
    found = served.get(path, **headers)
    assert found.status == status, found.body
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
    assert len(found.body) < 400
    assert served.repo.location.encode() not in found.body
    assert found.headers["access-control-allow-origin"] == "*"
    assert found.headers["cache-control"] == "no-store"


def test_a_long_path_is_refused(served: Served) -> None:
    assert served.get(f"/ipfs/{served.root}/" + "a" * 4096).status == 414
    assert served.get(f"/ipfs/{served.root}/" + "a/" * 200).status == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(served: Served, method: str) -> None:
    found = served.get(f"/ipfs/{served.root}", method)
    assert found.status == 405
    assert found.headers["allow"] == "GET, HEAD, OPTIONS"


def test_browsers_may_read_from_elsewhere(served: Served) -> None:
    found = served.get(f"/ipfs/{served.root}", "OPTIONS", origin="http://example.com")
    assert found.status == 204
    assert found.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
    assert "Range" in found.headers["access-control-allow-headers"]
    assert "X-Ipfs-Roots" in found.headers["access-control-expose-headers"]


def test_file_names_cannot_leave_their_header(served: Served) -> None:
    found = served.get(f"/ipfs/{format_cid(served.chunk)}?filename=t%C3%A4%22%0d%0aX:%20y.bin")
    assert found.headers["content-disposition"] == (
        "inline; filename=\"t____X: y.bin\"; filename*=UTF-8''t%C3%A4%22%0D%0AX%3A%20y.bin"
    )
    assert "x" not in found.headers
    down = served.get(f"/ipfs/{format_cid(served.chunk)}?filename=a.bin&download=true")
    assert down.headers["content-disposition"] == 'attachment; filename="a.bin"'


def test_a_car_that_was_cut_off_is_no_car(served: Served) -> None:
    whole = served.get(f"/ipfs/{served.root}?format=car").body
    with pytest.raises(FormatError):
        blocks_in(whole[:-1])


def test_plain_json_and_what_is_not_unixfs_in_a_directory(served: Served) -> None:
    data = b'{"a": 1}'
    plain = CidBytes(b"\x01\x80\x04\x12\x20" + SHA256.digest(data))
    served.repo.blocks.put(cid_of(RAW_CODEC, SHA256, data), data)
    names, root = ["data", "plain"], as_cid_bytes(served.root)
    directory = encode(
        PBNode(
            b"\x08\x01",
            tuple(PBLink(cid, name, 1) for name, cid in zip(names, (root, plain), strict=True)),
        )
    )
    cid = cid_of(DAG_PB, SHA256, directory)
    served.repo.blocks.put(cid, directory)
    served.repo.blocks.flush()
    found = served.get(f"/ipfs/{format_cid(cid)}/plain")
    assert (found.body, found.headers["content-type"]) == (data, "application/json")
    assert served.get(f"/ipfs/{format_cid(cid)}/data/t2m/c/0/0").body == (
        served.get("/zarr/main/t2m/c/0/0").body
    )
    car = served.get(f"/ipfs/{format_cid(cid)}/data?format=car&dag-scope=block").body
    assert blocks_in(car)[1] == [cid, root]
