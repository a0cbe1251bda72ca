"""Taking back what was published to a real node."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Kubo

from cas_zarr import Repository
from cas_zarr.blocks.kubo import KuboNode
from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.cli.group import run
from cas_zarr.errors import InvalidArgumentError, NotFoundError
from cas_zarr.repository.expiring import expire
from cas_zarr.repository.published import Published, published_at
from cas_zarr.repository.publishing import publish
from cas_zarr.repository.unpublishing import unpublish

GROUP = b'{"zarr_format":3,"node_type":"group"}'
ARRAY = (
    b'{"zarr_format":3,"node_type":"array","shape":[4],"data_type":"uint8","chunk_grid":{"name":'
    b'"regular","configuration":{"chunk_shape":[1]}},"chunk_key_encoding":{"name":"default",'
    b'"configuration":{"separator":"/"}},"fill_value":0,"codecs":[{"name":"bytes"}]}'
)


@pytest.fixture
def node(kubo: Kubo) -> KuboNode:
    return KuboNode(kubo.rpc)


@pytest.fixture
def repo() -> Iterator[Repository]:
    """Three commits whose data nobody else has."""
    with Repository.memory() as repo:
        session = repo.session()
        for number in range(3):
            keys = session.prepare()
            keys["zarr.json"] = GROUP
            keys["a/zarr.json"] = ARRAY
            keys[f"a/c/{number}"] = os.urandom(20)
            session.commit(f"commit {number}")
        yield repo


def main_ones(entries: Iterable[Published]) -> list[CidBytes]:
    """Return the CIDs of what was published."""
    return [one.cid for one in entries]


def recorded(repo: Repository, kubo: Kubo) -> list[CidBytes]:
    return main_ones(published_at(repo.refs, kubo.rpc).entries)


def test_one_version(repo: Repository, node: KuboNode, kubo: Kubo) -> None:
    old, new = publish(repo, "main~1", to=kubo.rpc), publish(repo, to=kubo.rpc)
    told = unpublish(repo, kubo.rpc, version="main~1", dry_run=True)
    assert main_ones(told.unpinned) == [old.cid]
    assert node.is_pinned(old.cid)
    done = unpublish(repo, kubo.rpc, version="main~1")
    assert (done.unpinned, done.kept, done.location) == (told.unpinned, 1, kubo.rpc)
    assert not any(node.is_pinned(one.cid) for one in done.unpinned)
    assert not node.is_pinned(old.cid)
    assert node.is_pinned(new.cid)
    assert recorded(repo, kubo) == [new.cid]
    with pytest.raises(NotFoundError, match="known to have been published"):
        unpublish(repo, kubo.rpc, version="main~1")


def test_what_expired(repo: Repository, node: KuboNode, kubo: Kubo) -> None:
    kept = publish(repo, to=kubo.rpc, name=f"kept-{os.urandom(4).hex()}")
    history = publish(repo, "main~1", to=kubo.rpc, history=True)
    old = publish(repo, "main~2", to=kubo.rpc)
    part = publish(repo, "main~2", to=kubo.rpc, path="a")
    view = publish(repo, "main~2", to=kubo.rpc, view="unixfs")
    here = publish(repo, to=kubo.rpc, view="unixfs")
    assert unpublish(repo, kubo.rpc, expired=True).unpinned == ()
    expire(repo, keep=1)
    done = unpublish(repo, kubo.rpc, expired=True)
    gone = {history.cid, old.cid, part.cid, view.cid}
    assert set(main_ones(done.unpinned)) == gone
    assert not any(node.is_pinned(one.cid) for one in done.unpinned)
    assert node.is_pinned(kept.cid)
    assert node.is_pinned(here.cid)
    assert set(recorded(repo, kubo)) == {kept.cid, here.cid}


def test_pins_of_others_are_left_alone(repo: Repository, node: KuboNode, kubo: Kubo) -> None:
    mine, theirs, lost = (publish(repo, f"main~{back}", to=kubo.rpc) for back in range(3))
    node.pin_add(theirs.cid, name="somebody else's")
    node.pin_rm(lost.cid)
    foreign = unpublish(repo, kubo.rpc, version="main~1")
    assert [one.cid for one in foreign.foreign] == [theirs.cid]
    assert foreign.unpinned == ()
    assert node.is_pinned(theirs.cid)
    assert [one.cid for one in unpublish(repo, kubo.rpc, version="main~2").gone] == [lost.cid]
    assert recorded(repo, kubo) == [mine.cid]
    node.pin_rm(theirs.cid)


def test_a_version_that_is_gone_from_here(repo: Repository, node: KuboNode, kubo: Kubo) -> None:
    root = publish(repo, "main~1", to=kubo.rpc).cid
    # the record is asked, not the blocks
    for block in list(repo.blocks.list()):
        if block == root:
            repo.blocks.delete(block)
    unpublish(repo, kubo.rpc, version=format_cid(root))
    assert not node.is_pinned(root)


def test_what_to_take_back_must_be_said(repo: Repository, kubo: Kubo) -> None:
    for options in ({}, {"version": "main", "expired": True}):
        with pytest.raises(InvalidArgumentError, match="what to take back"):
            unpublish(repo, kubo.rpc, **options)  # type: ignore[arg-type]
    assert unpublish(repo, kubo.rpc, expired=True).kept == 0


def test_the_commands(
    node: KuboNode, kubo: Kubo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a.cas"
    with Repository.open(folder, create=True) as repo:
        session = repo.session()
        session.prepare()["note"] = os.urandom(20)
        session.commit("first")
        key = f"command-{os.urandom(4).hex()}"
        made = publish(repo, to=kubo.rpc, name=key)
    assert made.ipns is not None

    def done(*arguments: str) -> dict[str, Any]:
        assert run([*arguments, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    found = done("resolve", made.ipns, "--node", kubo.rpc, "--gateway", kubo.gateway)
    assert found["path"] == f"/ipfs/{format_cid(made.cid)}"
    options = ("--version", "main", "--to", kubo.rpc)
    assert done("unpublish", str(folder), *options, "--dry-run")["dry_run"]
    assert node.is_pinned(made.cid)
    taken = done("unpublish", str(folder), *options)
    assert [one["cid"] for one in taken["unpinned"]] == [format_cid(made.cid)]
    assert not node.is_pinned(made.cid)
    sent = done("upload", str(folder), "--to", kubo.rpc)
    assert sent["cid"] == format_cid(made.cid)
    assert node.is_pinned(made.cid)
