"""CIDs in what people read."""

from __future__ import annotations

from dataclasses import dataclass, field

from cas_zarr.cid import BLAKE3, RAW, CidBytes, ReadableCids, as_cid_bytes, cid_of, format_cid


@dataclass(frozen=True, slots=True, repr=False)
class Record(ReadableCids):
    cid: CidBytes | None
    all: tuple[CidBytes, ...] = ()
    data: bytes = b""
    hidden: int = field(default=0, repr=False)


def test_records_show_their_cids_as_text_that_can_be_used() -> None:
    cid = cid_of(RAW, BLAKE3, b"x")
    text = format_cid(cid)
    shown = repr(Record(cid, (cid,), b"\x01 no cid"))
    assert shown == f"Record(cid={text}, all=({text},), data=b'\\x01 no cid')"
    assert as_cid_bytes(text) == cid
    assert repr(Record(None, (cid, cid))) == f"Record(cid=None, all=({text}, {text}), data=b'')"
