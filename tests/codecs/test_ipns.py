"""IPNS names and records: vectors that Kubo 0.43.1 made, and what must be refused."""

from __future__ import annotations

import time
from base64 import b32encode
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cas_zarr.cid import encode_varint
from cas_zarr.codecs import dagcbor
from cas_zarr.codecs.ipns import (
    MAX_RECORD_BYTES,
    ExpiredRecordError,
    IpnsName,
    IpnsRecord,
    decode_record,
    encode_record,
    is_name,
    name_of,
    parse_name,
)
from cas_zarr.errors import CasZarrError, FormatError, InvalidCIDError, LimitError

NAME = "k51qzi5uqu5dlee3aiptboyzwf70udyg16yz3n8d5jy7okuvdcchdbrwpt4dur"
PATH = "/ipfs/bafkreiey5jxe6ilpf62lnh77tm5ejbbmhbugzjuf6p2v3remlu73ced34q"
EXPIRES = 1795762204524272486
NOW = EXPIRES - 10**9
RECORD = bytes.fromhex(
    "0a412f697066732f6261666b7265696579356a786536696c706636326c6e683737746d35656a6262"
    "6d686275677a6a7566367032763372656d6c7537336365643334711240322f6a3ac7ed3427fbb072"
    "6d7350abad6f7e05f489ea816babb2ebda944cbedbceb2e73cd200423e778fc3f7ac5e37b8846882"
    "8d091e60f102af8cd1c4e703081800221e323032362d31312d32375430363a35303a30342e353234"
    "3237323438365a28003080f092cbdd084240af6d9f415b5b41fa1de46d5c262581246bbd6621f53c"
    "9ff554fd8a0a02ac379331a00720a0d32b5df89a45ae01516261039c9c3c4a893a2af1da4354091e"
    "190c4a9801a56354544c1b00000045d964b8006556616c756558412f697066732f6261666b726569"
    "6579356a786536696c706636326c6e683737746d35656a62626d686275677a6a7566367032763372"
    "656d6c7537336365643334716853657175656e6365006856616c6964697479581e323032362d3131"
    "2d32375430363a35303a30342e3532343237323438365a6c56616c69646974795479706500"
)
RSA_NAME = "k2k4r8oi7b5orcp9y5jemwzqhsuzjhrytr30k7nd1dwqzcjv7gqxzxby"
RSA_RECORD = bytes.fromhex(
    "0a412f697066732f6261666b7265696579356a786536696c706636326c6e683737746d35656a6262"
    "6d686275677a6a7566367032763372656d6c753733636564333471128002019f5a4dfd079366d7c6"
    "971aa3f74fb7c592427bda72586178a1a802909744743b23bd00df5d292fcd5d6a12287d43d7ec5f"
    "66ab8ce5b15eb59b974b7da21c836f90904d29bc00674d21359995bdeba65dcb9f40385df051111a"
    "84cdd6d6b88f5ebae9c39d0214e88d00479678a19a63b54acb962a842fc7bbf4dbfbe1ce6ba092e9"
    "32248f8878199f8b759d44fadcc6aef93f9ddbcea855c21d827381ea12be24b347228087302a60a3"
    "c9e89a1470d45afe0a09db2f4a9ca744e435fb895d4b2aeed9be131e70fb8e57dbc851564e58ab63"
    "67b28fe987968d88225da2b32d36227a00570decbe645fc547cc32e69e692df3866fbaeab374ad72"
    "ac2d6a6bf29e1800221e323032362d31312d32375430373a30373a32322e3431393936313634395a"
    "28003080f092cbdd083aab02080012a60230820122300d06092a864886f70d01010105000382010f"
    "003082010a0282010100e0bfd6b07c5de7f2a9e5fe3a0e68a7fea84462ea9d841e0d0fd139ceca99"
    "ee85e97679cef7a84a375780f08a2ba36abbb1310e74cc305b1d5d05906d32bb6cd074ffa275c2d9"
    "1f1a6aea8ed4e6a005ad36a6dcad5fe3fd813dcdd14bbe982ec398e540bab969420fd371d652e45c"
    "a75fed1911006cda8f55d5d7a29e7b8396b9cf47feaa8b72356372e7ec9847973f78f2d1dd2430ff"
    "3fe86795949ee195d0158ee74dd1cae744c7656e1da8edad6a161e1860bbc2a4d69b7a6dfb421326"
    "19e0f1a90d261a2e74b7c717fab478ff0662d5bf87f7e2fabc059cca7d3e7ca8fda9ad8e99947b7d"
    "eb8428ae0c3c147f6190f75cd88c119dd92e5bd91e32ed77214102030100014280024cc53071c6a2"
    "aa28b55e640bd3ad2525416e0762a1d2d7507bda22d65c6f4afe15286f8af02115d81665242fdee1"
    "c141e177d07839748ba9907b7f4c8c44481685325b1565d9512db286842155ef752979670f1047c5"
    "adfc40ba96b799264dc2a93fa3bfdb3602960eebe0a81beb5b4920037606f81b599e7f95ec1e549e"
    "eaf05ec979a0199e71de78bbdf434487704d2e7ffed480fc69c70ecc302db257a435425ffec606f8"
    "8cb7150741bf9b84e214dd0708d358f7504d0a6e41a725a08557186f8aeeb99358020e84f37eecd6"
    "5c2c274a8e26495f285dc34a24d04c25a4483a2d447a549c55733b9d8507b6114047f68018e9fed4"
    "100d73abc5aff5aea00d4a9801a56354544c1b00000045d964b8006556616c756558412f69706673"
    "2f6261666b7265696579356a786536696c706636326c6e683737746d35656a62626d686275677a6a"
    "7566367032763372656d6c7537336365643334716853657175656e6365006856616c696469747958"
    "1e323032362d31312d32375430373a30373a32322e3431393936313634395a6c56616c6964697479"
    "5479706500"
)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MINE = name_of(KEY.public_key().public_bytes_raw())
SOME = IpnsRecord(PATH, EXPIRES, 7, 300 * 10**9)


def entry(*fields: tuple[int, int | bytes]) -> bytes:
    """Return a message of Protocol Buffers."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += encode_varint(number << 3) + encode_varint(value)
        else:
            out += encode_varint(number << 3 | 2) + encode_varint(len(value)) + value
    return out


def signed(document: object) -> bytes:
    """Return a record whose signed part is any value."""
    data = dagcbor.encode(document)  # type: ignore[arg-type]
    return entry((8, KEY.sign(b"ipns-signature:" + data)), (9, data))


DOCUMENT = {
    "Value": PATH.encode(),
    "Validity": b"2026-11-27T06:50:04.524272486Z",
    "ValidityType": 0,
    "Sequence": 7,
    "TTL": 1,
}


def test_a_record_of_kubo() -> None:
    record = decode_record(RECORD, parse_name(NAME), now=NOW)
    assert record == IpnsRecord(PATH, EXPIRES, 0, 300 * 10**9)


def test_a_record_of_an_rsa_key() -> None:
    record = decode_record(RSA_RECORD, parse_name(RSA_NAME), now=NOW)
    assert record.value == PATH
    with pytest.raises(FormatError, match="another key"):
        decode_record(RSA_RECORD, IpnsName(b"\x12\x20" + bytes(32)), now=NOW)


@pytest.mark.parametrize("legacy", [True, False])
def test_what_was_encoded_is_decoded(legacy: bool) -> None:
    for record in (SOME, replace(SOME, ttl=None), replace(SOME, value="/ipns/example.org/a")):
        data = encode_record(record, KEY, legacy=legacy)
        assert decode_record(data, MINE, now=NOW) == record


def test_forms_of_a_name() -> None:
    cid = b"\x01\x72" + parse_name(NAME).multihash
    base32 = "b" + b32encode(cid).decode().rstrip("=").lower()
    for text in (f"/ipns/{NAME}", f"ipns://{NAME}", NAME.upper(), base32, "f" + cid.hex()):
        assert str(parse_name(text)) == NAME


def test_a_peer_id_is_a_name() -> None:
    peer = "12D3KooWL4mDRMmwh87QrjR69e4wZQbhTakVn64SshNYbtjbfMGL"
    name = parse_name(peer)
    assert str(name).startswith("k51")
    assert name.public_key is not None
    assert name_of(name.public_key) == name
    old = parse_name("QmatmE9msSfkKxoffpHwNLNKgwZG8eT9Bud6YoPab52vpy")  # of specs.ipfs.tech
    assert old.public_key is None
    assert str(old).startswith("k2k4r8")


@given(st.binary(min_size=32, max_size=32))
def test_a_key_is_its_name(key: bytes) -> None:
    assert parse_name(str(name_of(key))).public_key == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k",
        "example.org",
        "k51qzi5uqu5d!",
        NAME[:-1],
        "bafkreiey5jxe6ilpf62lnh77tm5ejbbmhbugzjuf6p2v3remlu73ced34q",  # no libp2p-key
        "12D3KooW",
        "f" * 200,
        "kä",
    ],
)
def test_what_is_no_name(text: str) -> None:
    assert not is_name(text)
    with pytest.raises(InvalidCIDError, match="no ipns name"):
        parse_name(text)


def test_an_expired_record() -> None:
    with pytest.raises(ExpiredRecordError, match=r"valid until 2026-11-27T06:50:04\.524272486Z"):
        decode_record(RECORD, parse_name(NAME), now=EXPIRES)
    old = encode_record(replace(SOME, expires=time.time_ns() - 1), KEY)
    with pytest.raises(ExpiredRecordError):
        decode_record(old, MINE)


def test_any_flipped_byte_of_the_signed_part_is_noticed() -> None:
    data = encode_record(SOME, KEY, legacy=False)
    for at in range(len(data)):
        broken = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        with pytest.raises(FormatError):
            decode_record(broken, MINE, now=NOW)


def test_a_record_of_another_name() -> None:
    with pytest.raises(FormatError, match=f"{MINE} cannot be trusted: its signature"):
        decode_record(RECORD, MINE, now=NOW)


def test_a_record_whose_unsigned_part_lies() -> None:
    data = encode_record(SOME, KEY)
    copy = entry((1, PATH.encode()))
    assert data.startswith(copy)
    with pytest.raises(FormatError, match="its Value is another"):
        decode_record(data.replace(copy, entry((1, PATH.replace("b", "c", 1).encode())), 1), MINE)
    for number, field in ((3, "ValidityType"), (5, "Sequence"), (6, "TTL")):
        other = encode_record(SOME, KEY, legacy=False) + entry((1, PATH.encode()))
        wrong = {3: 0, 4: DOCUMENT["Validity"], 5: 7, 6: 300 * 10**9} | {number: 99}
        other += entry(*wrong.items())  # type: ignore[arg-type]
        with pytest.raises(FormatError, match=f"its {field} is another"):
            decode_record(other, MINE, now=NOW)


def test_a_record_without_a_signature_of_version_2() -> None:
    data = entry((1, PATH.encode()), (2, bytes(64)))
    with pytest.raises(FormatError, match="an older one proves nothing"):
        decode_record(data, MINE, now=NOW)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "no map"),
        ({}, "no value"),
        (DOCUMENT | {"Value": PATH}, "no value"),
        (DOCUMENT | {"Value": b"/ipfs/\xff"}, "no text"),
        (DOCUMENT | {"Value": b"https://example.org"}, "no path"),
        (DOCUMENT | {"Validity": b"tomorrow"}, "no time"),
        (DOCUMENT | {"Validity": b"2026-02-31T00:00:00Z"}, "no time"),
        (DOCUMENT | {"Validity": b"9999-12-31T23:59:59-23:59"}, "no time"),
        (DOCUMENT | {"Validity": b"0001-01-01T00:00:00+23:59"}, "no time"),
        (DOCUMENT | {"ValidityType": 1}, "type 1"),
        (DOCUMENT | {"ValidityType": False}, "type False"),
        (DOCUMENT | {"Sequence": -1}, "no number"),
        (DOCUMENT | {"Sequence": None}, "no number"),
        (DOCUMENT | {"TTL": b""}, "no number"),
    ],
)
def test_a_signed_part_that_makes_no_sense(document: object, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        decode_record(signed(document), MINE, now=NOW)


def test_fields_of_others_and_other_zones_are_read() -> None:
    there = DOCUMENT | {"_mine": {"a": 1}, "Validity": b"2026-11-27T08:50:04+02:00"}
    record = decode_record(signed(there), MINE, now=NOW - 10**9)
    assert record.expires == EXPIRES // 10**9 * 10**9


def test_size_limits() -> None:
    with pytest.raises(FormatError, match="more than 10240 bytes"):
        decode_record(bytes(MAX_RECORD_BYTES + 1), MINE)
    with pytest.raises(LimitError, match="over 10240"):
        encode_record(replace(SOME, value=PATH + "/a" * 4000), KEY)


@given(st.binary(max_size=200))
def test_no_bytes_get_another_error_through(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_record(data, MINE)
    with pytest.raises(FormatError):
        decode_record(RECORD[: len(data)] + data, parse_name(NAME), now=NOW)


@pytest.mark.parametrize(
    "record",
    [
        replace(SOME, value="nothing"),
        replace(SOME, value="/ipfs/\udcff"),
        replace(SOME, sequence=-1),
        replace(SOME, ttl=2**63),
        replace(SOME, expires=10**30),
    ],
)
def test_what_cannot_be_encoded(record: IpnsRecord) -> None:
    with pytest.raises(CasZarrError):
        encode_record(record, KEY)
