"""CIDs in what people read."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from cas_zarr.cid import BLAKE3, RAW, CidBytes, ReadableCids, as_cid_bytes, cid_of, format_cid
from cas_zarr.errors import InvalidCIDError


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


@pytest.mark.parametrize("value", [-1, 5, 1 << 62, 1.5, None, [300], ("a",), object()])
def test_what_is_no_cid_at_all(value: object) -> None:
    with pytest.raises(InvalidCIDError, match="is no cid; give text"):
        as_cid_bytes(value)  # type: ignore[arg-type]
