"""The fixtures of others: IPLD's for its codecs, and the vectors of BLAKE3."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cas_zarr.cid import BLAKE3, DAG_CBOR, DAG_JSON, DAG_PB, SHA256, cid_of, format_cid
from cas_zarr.codecs import dagcbor, dagjson, dagpb
from cas_zarr.errors import FormatError

CODECS: dict[str, tuple[int, ModuleType]] = {
    ".dag-json": (DAG_JSON, dagjson),
    ".dag-cbor": (DAG_CBOR, dagcbor),
    ".dag-pb": (DAG_PB, dagpb),
}


@pytest.fixture(scope="module")
def fixtures(conformance: Path) -> dict[str, dict[str, Path]]:
    """Return the files of each value, by the name of the value and that of the codec."""
    folders = [
        path for path in (conformance / "codec-fixtures/fixtures").iterdir() if path.is_dir()
    ]
    found = {path.name: {file.suffix: file for file in path.iterdir()} for path in folders}
    assert len(found) > 100
    assert sum(map(len, found.values())) > 250
    return found


def test_every_file_is_encoded_again_to_its_bytes_and_cid(
    fixtures: dict[str, dict[str, Path]],
) -> None:
    for name, files in fixtures.items():
        for suffix, file in files.items():
            code, codec = CODECS[suffix]
            data = file.read_bytes()
            assert codec.encode(codec.decode(data)) == data, (name, suffix)
            assert format_cid(cid_of(code, SHA256, data)) == file.stem, (name, suffix)


def test_a_value_is_the_same_in_every_codec(fixtures: dict[str, dict[str, Path]]) -> None:
    for name, files in fixtures.items():
        values = {
            suffix: CODECS[suffix][1].decode(file.read_bytes()) for suffix, file in files.items()
        }
        if ".dag-pb" in values:
            values[".dag-pb"] = _as_value(values[".dag-pb"])
        first, *others = values.values()
        assert others, name
        for other in others:
            assert dagcbor.encode(other) == dagcbor.encode(first), name


def _as_value(node: dagpb.PBNode) -> dict[str, Any]:
    links: list[dict[str, Any]] = []
    for link in node.links:
        fields = {"Hash": dagjson.Link(link.cid), "Name": link.name, "Tsize": link.tsize}
        links.append({key: value for key, value in fields.items() if value is not None})
    return {"Links": links} | ({} if node.data is None else {"Data": node.data})


def test_every_file_is_refused_when_it_is_cut_off(fixtures: dict[str, dict[str, Path]]) -> None:
    for name, files in fixtures.items():
        for suffix, file in files.items():
            data = file.read_bytes()
            step = max(1, len(data) // 20)
            for length in range(0, len(data), step):
                _refused_or_canonical(CODECS[suffix][1], data[:length], name)


def test_every_file_is_refused_or_another_when_a_bit_flips(
    fixtures: dict[str, dict[str, Path]],
) -> None:
    for name, files in fixtures.items():
        for suffix, file in files.items():
            data = file.read_bytes()
            for bit in range(0, 8 * len(data), max(1, 8 * len(data) // 40) | 1):
                changed = bytearray(data)
                changed[bit // 8] ^= 1 << bit % 8
                _refused_or_canonical(CODECS[suffix][1], bytes(changed), name)


def _refused_or_canonical(codec: ModuleType, data: bytes, name: str) -> None:
    try:
        value = codec.decode(data)
    except FormatError:
        return
    if codec is dagpb and [link.name or "" for link in value.links] != sorted(
        link.name or "" for link in value.links
    ):
        return  # is read as it stands, and not written
    assert codec.encode(value) == data, name


def test_blake3_vectors(conformance: Path) -> None:
    cases = json.loads((conformance / "blake3/test_vectors.json").read_text())["cases"]
    assert len(cases) > 30
    for case in cases:
        data = bytes(at % 251 for at in range(case["input_len"]))
        assert BLAKE3.digest(data).hex() == case["hash"][:64]
        assert BLAKE3.digest(memoryview(data)).hex() == case["hash"][:64]
