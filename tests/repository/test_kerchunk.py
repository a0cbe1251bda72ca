"""References as kerchunk writes them, in all of their forms."""

from __future__ import annotations

import base64
import json
import random
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cas_zarr import Repository
from cas_zarr.errors import (
    InvalidArgumentError,
    InvalidKeyError,
    MissingDependencyError,
    StorageError,
)
from cas_zarr.repository.linking import link


def test_all_forms_of_references(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    whole = random.Random(0).randbytes(40)
    (tmp_path / "data" / "file").write_bytes(whole)
    (tmp_path / "data" / "one% name").write_text("one")  # a URL quotes it
    (tmp_path / "data" / "two%25%20name").write_text("two")  # and many quote nothing
    refs: dict[str, Any] = {
        ".zgroup": {"zarr_format": 2},
        "a/.zarray": "{}",
        "a/0": ["{{ u }}", 8, 16],
        "a/1": "base64:" + base64.b64encode(whole).decode(),
        "a/2": ["data/file"],
        "a/3": [f"file://{tmp_path}/data/file", 0, 0],
        "a/4": [f"file://{tmp_path}/data/one%25%20name", 0, 3],
        "a/5": [f"file://localhost{tmp_path}/data/two%25%20name", 0, 3],
        "a/.zattrs": ["data/file", 2, 3],  # a document is copied
        "text": "ünïcode",
    }
    wanted = {
        ".zgroup": b'{"zarr_format": 2}',
        "a/.zarray": b"{}",
        "a/0": whole[8:24],
        "a/1": whole,
        "a/2": whole,
        "a/3": b"",
        "a/4": b"one",
        "a/5": b"two",
        "a/.zattrs": whole[2:5],
        "text": "ünïcode".encode(),
    }
    path = tmp_path / "refs.json"
    path.write_text(json.dumps({"version": 1, "templates": {"u": "data/file"}, "refs": refs}))
    repository = Repository.open(tmp_path / "links", create=True)
    done = link(repository, path, message="version 1")
    assert dict(repository.at("main")) == wanted
    assert (done.keys, done.linked) == (10, 5)
    assert done.size == sum(map(len, wanted.values()))
    refs["a/0"] = ["data/file", 8, 16]
    path.write_text(json.dumps(refs))
    link(repository, path, path="old", message="version 0")
    assert repository.same("main:a", "main:old/a")


# -- parquet -------------------------------------------------------------------------------------

READERS = [name for name in ("fastparquet", "pyarrow") if find_spec(name)]
READS_PARQUET = pytest.mark.skipif(not READERS, reason="nothing that reads parquet is installed")


def parquet(folder: Path, refs: dict[str, Any], record: int) -> Path:
    """Write references as kerchunk writes them in parquet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports
        frames = pytest.importorskip("kerchunk.df", exc_type=ImportError)
        frames.refs_to_dataframe(refs, str(folder), record_size=record, categorical_threshold=2)
    return folder


@READS_PARQUET
def test_references_in_parquet(tmp_path: Path) -> None:
    whole = random.Random(0).randbytes(400)
    (tmp_path / "data").write_bytes(whole)
    document = {"zarr_format": 2, "shape": [5, 4], "chunks": [2, 2]}
    refs: dict[str, Any] = {
        ".zgroup": json.dumps({"zarr_format": 2}),
        "a/.zarray": json.dumps(document),
        "a/0.0": ["data", 0, 9],
        "a/0.1": "inline",
        "a/1.1": ["data", 0, 0],  # the whole of it
        "a/2.1": ["data", 99, 1],
        "b/.zarray": json.dumps({"zarr_format": 2, "shape": [], "chunks": []}),
        "b/0": [str(tmp_path / "data"), 5, 2],
        "c/.zarray": json.dumps(document | {"dimension_separator": "/"}),
        "c/1.0": ["data", 3, 4],
    }
    folder = parquet(tmp_path / "refs.parq", refs, record=4)
    repository = Repository.open(tmp_path / "links", create=True)
    done = link(repository, folder, path="model", message="parquet")
    assert done.linked == 5
    found = dict(repository.at("main"))
    assert {key: found[f"model/{key}"] for key in refs if ".z" in key} == {
        key: json.dumps(json.loads(text)).encode() for key, text in refs.items() if ".z" in key
    }
    assert {key[6:]: value for key, value in found.items() if ".z" not in key} == {
        "a/0.0": whole[:9],
        "a/0.1": b"inline",
        "a/1.1": whole,
        "a/2.1": whole[99:100],
        "b/0": whole[5:7],
        "c/1/0": whole[3:7],
    }


@READS_PARQUET
def test_parquet_that_means_nothing_is_refused(tmp_path: Path) -> None:
    repository = Repository.open(tmp_path / "links", create=True)
    folder = tmp_path / "refs.parq"
    (folder / "a").mkdir(parents=True)
    array = {"shape": [1 << 40, 1 << 40], "chunks": [1, 1]}
    files = [
        ({"record_size": 0, "metadata": {}}, None, InvalidArgumentError, "as kerchunk writes"),
        ({"record_size": 1, "metadata": []}, None, InvalidArgumentError, "as kerchunk writes"),
        ({"record_size": 1, "metadata": {"../.zarray": array}}, None, InvalidKeyError, "[.][.]"),
        ({"record_size": 1, "metadata": {"a/.zarray": []}}, None, InvalidArgumentError, "array"),
        (
            {"record_size": 1, "metadata": {"a/.zarray": {"shape": [1], "chunks": [0]}}},
            None,
            InvalidArgumentError,
            "document of an array",
        ),
        ({"record_size": 1, "metadata": {"a/.zarray": array}}, b"PAR1", StorageError, "as parquet"),
    ]
    for index, data, error, message in files:
        (folder / ".zmetadata").write_text(json.dumps(index))
        if data is not None:
            (folder / "a" / "refs.7.parq").write_bytes(data)
        with pytest.raises(error, match=message):
            link(repository, folder)
    (folder / "a" / "refs.7.parq").unlink()
    assert link(repository, folder).keys == 1  # so large an array may well be empty


@pytest.mark.skipif(bool(READERS), reason="what reads parquet is installed")
def test_parquet_without_a_reader_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / ".zmetadata").write_text(
        '{"record_size": 1, "metadata": {".zarray": {"shape": [1], "chunks": [1]}}}'
    )
    (tmp_path / "refs.0.parq").write_bytes(b"PAR1")
    with pytest.raises(MissingDependencyError, match="fastparquet"):
        link(Repository.open(tmp_path / "links", create=True), tmp_path)
