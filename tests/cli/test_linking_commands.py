"""`link`, `sources`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr
from commands import Command

from cas_zarr import CASStore, Repository


def test_link_refers_and_sources_follows(tmp_path: Path, done: Command, command: Command) -> None:
    values = np.arange(4096, dtype="f4").reshape(64, 64)
    zarr.create_array(tmp_path / "era5.zarr", data=values, chunks=(16, 64))
    links = tmp_path / "links.cas"
    first = done("link", tmp_path / "era5.zarr", links, "--path", "era5", "--json").json
    assert (first["linked"], first["path"]) == (4, "era5")
    assert [entry.commit.message for entry in Repository.open(links).log()] == [
        "link era5.zarr as era5"
    ]
    assert "4 blocks" in done("sources", links).out
    (tmp_path / "era5.zarr").rename(tmp_path / "moved.zarr")
    (found,) = done("sources", links, "--json").json
    assert len(found["missing"]) == 4
    assert "4 files missing" in done("sources", links).out
    failed = command("sources", links, "--move", tmp_path / "wrong", tmp_path / "moved.zarr")
    assert failed.code == 1
    assert "nothing at" in failed.err
    moved = done("sources", links, "--move", tmp_path / "era5.zarr", tmp_path / "moved.zarr")
    assert str(tmp_path / "moved.zarr") in moved.out
    assert "missing" not in moved.out
    array = zarr.open_array(CASStore(str(links), version="main"), path="era5", mode="r")
    assert np.array_equal(array[:], values)
    copy = tmp_path / "copy.cas"
    assert command("link", tmp_path / "era5.zarr", copy).code == 1
    assert not copy.exists()
    again = done("link", tmp_path / "moved.zarr", copy, "--path", "era5", "--copy", "--json").json
    assert (again["linked"], again["root"]) == (0, first["root"])
    assert done("sources", copy, "--json").json == []
