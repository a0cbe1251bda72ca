"""Whatever bit of a repository is flipped: no read gives anything else than what was written.

And `verify` with all data finds each flipped bit, in whatever file it is.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import zarr

from cas_zarr import CASStore
from cas_zarr.cid import format_cid
from cas_zarr.errors import CasZarrError
from cas_zarr.repository.repository import Repository

Model = dict[str, dict[str, bytes]]
"""Version -> key -> value."""

Flip = tuple[str, int]
"""A file of the repository, and which of its bits."""

PARTS = 8


def make_repository(path: Path) -> Model:
    """Make a small repository with two commits, a tag, work that is not committed, and a log."""
    store = CASStore(path)
    group = zarr.create_group(store, attributes={"title": "a"}, zarr_format=2)  # short documents
    array = group.create_array("x", shape=(50,), chunks=(1,), dtype="u1", compressors=None)
    array[:] = np.arange(50) % 3 + 1  # a page of its own, and few values
    store.commit("one")
    other = group.create_array("y", shape=(2, 2), chunks=(1, 2), dtype="u1", compressors=None)
    other[:] = [[201, 202], [203, 204]]
    store.commit("two")
    other[0, 0] = 99
    store.flush()
    store.close()
    repo = Repository.open(path)
    repo.create_tag("v1", "main~1")
    work = repo.refs.branch("main")
    assert work is not None
    assert work.work is not None
    versions = ("v1", "main", format_cid(work.work))
    model = {version: read(repo, version) for version in versions}
    repo.close()
    return model


def read(repo: Repository, version: str) -> dict[str, bytes]:
    mapping = repo.at(version)
    return {key: bytes(mapping[key]) for key in mapping}


def files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def all_flips(path: Path) -> list[Flip]:
    return [
        (str(file.relative_to(path)), bit)
        for file in files(path)
        for bit in range(8 * file.stat().st_size)
    ]


def telling_flips(path: Path) -> list[Flip]:
    """Return all flips, but of each byte of a block in a pack one: to a hash they are alike."""
    bodies: set[tuple[str, int]] = set()
    with Repository.open(path, read_only=True) as repo:
        blocks = [repo.blocks.get(cid) for cid in repo.blocks.list()]
    for file in path.rglob("*.car"):
        pack = file.read_bytes()
        for block in blocks:
            at = pack.find(block) if len(block) > 40 else -1  # longer than what an index holds
            bodies |= {(str(file.relative_to(path)), at + i) for i in range(len(block)) if at >= 0}
    return [
        (name, bit)
        for name, bit in all_flips(path)
        if (name, bit // 8) not in bodies or bit % 8 == bit // 8 % 8
    ]


def check(path: Path, model: Model) -> list[str]:
    """Read everything and verify; return what is wrong about how the damage is met.

    Chunks that an older version has as well are the same blocks, and are read of it alone.
    """
    wrong = []
    done: set[tuple[str, bytes]] = set()
    try:
        repo = Repository.open(path, read_only=True)
    except CasZarrError:
        return []  # and verify cannot open it either
    for version, values in model.items():
        try:
            mapping = repo.at(version)
            if set(mapping) != values.keys():
                wrong.append(f"{version} lists other keys")
        except CasZarrError:
            continue
        for key, value in values.items():
            if (key, value) in done:
                continue
            if key.startswith("x/"):
                done.add((key, value))
            try:
                if mapping[key] != value:
                    wrong.append(f"{key} of {version} is another")
            except CasZarrError:
                continue
    try:
        if repo.verify(data=True).ok:
            wrong.append("verify has not found it")
    except CasZarrError:
        pass
    repo.close()
    return wrong


def attempt(path: Path, model: Model, flips: list[Flip]) -> list[str]:
    """Flip bits, one at a time; return what is wrong, with file and bit."""
    found = []
    for name, bit in flips:
        file = path / name
        descriptor = os.open(file, os.O_RDWR)
        try:
            whole = os.pread(descriptor, 1, bit // 8)
            os.pwrite(descriptor, bytes([whole[0] ^ 1 << bit % 8]), bit // 8)
            try:
                found += [f"{name} bit {bit}: {reason}" for reason in check(path, model)]
            except Exception as error:
                found.append(f"{name} bit {bit}: {type(error).__name__}: {error}")
            os.pwrite(descriptor, whole, bit // 8)
        finally:
            os.close(descriptor)
    return found


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, Model]:
    path = tmp_path / "repo"
    model = make_repository(path)
    for file in files(path):
        file.chmod(0o644)
    assert check(path, model) == ["verify has not found it"]  # there is nothing to find
    assert Repository.open(path).verify(data=True).ok
    return path, model


def test_some_flipped_bits(whole: tuple[Path, Model]) -> None:
    path, model = whole
    flips = all_flips(path)
    chosen = random.Random(0).sample(flips, 400)
    # and of each small file more than its size earns
    for name in {name for name, _ in flips} - {name for name, _ in chosen}:
        chosen += random.Random(name).sample([flip for flip in flips if flip[0] == name], 8)
    assert attempt(path, model, chosen) == []


def test_flipped_bits_in_the_other_records(whole: tuple[Path, Model], tmp_path: Path) -> None:
    """Of a remote and what is known of it, of a history that was cut, and of a collection."""
    clone = tmp_path / "clone"
    repo = Repository.clone(whole[0], clone, depth=1)
    session = repo.session()
    session.prepare().set_value("junk", b"junk")
    session.flush()
    session.prepare().set_value("junk", b"other")
    session.commit("three")
    repo.refs.trim_log(1 << 62)
    repo.gc()
    model = {"main": read(repo, "main")}
    repo.close()
    names = {file.name for file in files(clone)}
    assert {"gc", "origin", "shallow", "main"} <= names
    assert any(name.endswith(".condemned") for name in names)
    for file in files(clone):
        file.chmod(0o644)
    flips = [flip for flip in all_flips(clone) if not flip[0].endswith(".car")]
    assert attempt(clone, model, random.Random(2).sample(flips, 150)) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_flip_that_may_tell(whole: tuple[Path, Model], part: int) -> None:
    path, model = whole
    assert attempt(path, model, telling_flips(path)[part::PARTS]) == []


def test_the_model_is_what_zarr_reads(whole: tuple[Path, Model]) -> None:
    path, model = whole
    assert json.loads(model["main"][".zattrs"]) == {"title": "a"}
    group = zarr.open_group(CASStore(path, version="main"), mode="r")
    assert np.array_equal(group["x"][:], np.arange(50) % 3 + 1)  # type: ignore[index]
    assert np.array_equal(group["y"][:], [[201, 202], [203, 204]])  # type: ignore[index]
    assert sum(map(len, model.values())) > 150
