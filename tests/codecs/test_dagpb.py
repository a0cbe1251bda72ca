"""DAG-PB: links and bytes, with one encoding for each node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from cas_zarr.cid import BLAKE3, RAW, CidBytes, cid_of
from cas_zarr.codecs import dagpb
from cas_zarr.codecs.dagpb import PBLink, PBNode
from cas_zarr.errors import FormatError

CID = cid_of(RAW, BLAKE3, b"x")
HASH = b"\x0a\x24" + CID
LINK = b"\x12\x26" + HASH

links = st.builds(
    PBLink,
    st.sampled_from([CID, CidBytes(b"\x12\x20" + bytes(32)), CidBytes(b"\x01\x55\x00\x00")]),
    st.none() | st.just("") | st.text(max_size=5),
    st.none() | st.integers(0, 2**63 - 1),
)
nodes = st.builds(
    PBNode,
    st.none() | st.binary(),
    st.lists(links, max_size=4).map(
        lambda found: tuple(sorted(found, key=lambda link: (link.name or "").encode("utf-8")))
    ),
)


@given(nodes)
def test_what_is_encoded_is_decoded(node: PBNode) -> None:
    encoded = dagpb.encode(node)
    assert dagpb.decode(encoded) == node
    assert dagpb.encode(dagpb.decode(encoded)) == encoded


@given(nodes, st.data())
def test_a_changed_byte_is_refused_or_means_another_node(node: PBNode, data: DataObject) -> None:
    encoded = bytearray(dagpb.encode(node) or b"\x0a\x00")
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    _refused_or_known(bytes(encoded))


@given(st.binary(max_size=12))
def test_any_bytes_are_refused_or_known(data: bytes) -> None:
    _refused_or_known(data)


def _refused_or_known(data: bytes) -> None:
    try:
        node = dagpb.decode(data)
    except FormatError:
        return
    names = [(link.name or "").encode("utf-8") for link in node.links]
    if names != sorted(names):  # is read as it stands, and not written
        with pytest.raises(FormatError, match="order"):
            dagpb.encode(node)
    elif not node.links or not data.startswith(b"\x0a"):  # the links come first
        assert dagpb.encode(node) == data


@given(nodes)
def test_data_is_read_before_links_too(node: PBNode) -> None:
    data = dagpb.encode(PBNode(node.data))
    assert dagpb.decode(data + dagpb.encode(PBNode(None, node.links))) == node


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x02a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\x80\x00",  # a varint longer than it needs to be
        b"\x0a\x00\x0a\x00",  # the data twice
        LINK + b"\x0a\x00" + LINK,  # and between the links
        b"\x08\x00",  # a wire type and fields that are not in it
        b"\x1a\x00",
        b"\x02\x00",
        b"\x00",
        b"\x12\x00",  # a link without a cid
        b"\x12\x02\x12\x00",
        b"\x12\x02\x0a\x00",
        b"\x12\x04\x0a\x02\x12\x20",
        b"\x12\x28" + HASH + b"\x18\x80",
        b"\x12\x29" + HASH + b"\x12\x01\xff",  # a name that is not utf-8
        b"\x12\x28" + b"\x12\x00" + HASH,  # fields out of order, and twice
        b"\x12\x2a" + HASH + b"\x18\x00\x18\x00",
        b"\x12\x2a" + HASH + b"\x18\x00\x12\x00",
        b"\x12\x2c" + HASH + b"\x12\x00\x18\x00\x18\x00",
        b"\x12\x2a" + b"\x0a\x24" + b"\x02" + CID[1:] + b"\x12\x00\x18\x00",
    ],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        dagpb.decode(data)


@pytest.mark.parametrize(
    "node",
    [
        PBNode(None, (PBLink(CID, "b"), PBLink(CID, "a"))),
        PBNode(None, (PBLink(CID, "a"), PBLink(CID))),
        PBNode(None, (PBLink(CID, "\uffff"), PBLink(CID, "\ud800"))),
        PBNode(None, (PBLink(CID, "", -1),)),
        PBNode(None, (PBLink(CID, "", 2**63),)),
        PBNode(None, (PBLink(CidBytes(b"no cid")),)),
    ],
)
def test_what_is_no_node_is_refused(node: PBNode) -> None:
    with pytest.raises(FormatError):
        dagpb.encode(node)
