"""A repository to serve, and a client that follows nothing."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cas_zarr import CASStore, Repository
from cas_zarr.cid import DAG_PB, SHA256, CidBytes, cid_of, format_cid
from cas_zarr.codecs.dagpb import PBLink, PBNode, encode
from cas_zarr.codecs.unixfsdir import directory_blocks

__all__ = ["Answer", "Served", "broken_parent", "make"]


@dataclass(frozen=True)
class Answer:
    """What a server answered: names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Served:
    """A repository that is served, and what lies in it.

    `root` and `commit` are text; `chunk` is the CID of t2m/c/0/0 and `file` that of a value of
    three mebibytes; `tree` is a UnixFS directory of both, with `index.html` in `tree/page`.
    """

    url: str
    repo: Repository
    root: str
    commit: str
    chunk: CidBytes
    file: CidBytes
    tree: CidBytes
    page: CidBytes

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Send one request, over a connection of its own."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=named)
            found = connection.getresponse()
            lowered = {name.lower(): value for name, value in found.getheaders()}
            return Answer(found.status, lowered, found.read())
        finally:
            connection.close()


def make(folder: Path) -> tuple[Repository, dict[str, Any]]:
    """Make a repository of two commits, a tag, and a UnixFS tree over its values."""
    with CASStore(folder) as store:
        group = zarr.open_group(store, mode="a")
        array = group.create_array("t2m", shape=(4, 6), chunks=(2, 3), dtype="<f4")
        array[:] = np.arange(24, dtype="<f4").reshape(4, 6)
        large = group.create_array(
            "large", shape=(2, 3 << 18), chunks=(1, 3 << 18), dtype="<f4", compressors=None
        )
        large[:] = np.arange(6 << 18, dtype="<f4").reshape(2, 3 << 18)
        store.commit("first", author="A <a@b.c>")
        array[0, 0] = 7
        commit = store.commit("second", author="A <a@b.c>")
        root = str(store.flush())
    repo = Repository.open(folder)
    repo.create_tag("v1", "main~1")
    mapping = repo.at("main")
    chunk, file = mapping.cid_of("t2m/c/0/0"), mapping.cid_of("large/c/0/0")
    assert chunk is not None
    assert file is not None
    page = b"<p>index</p>"
    leaf = cid_of(0x55, SHA256, page)
    repo.blocks.put(leaf, page)
    inner = list(directory_blocks(["index.html"], leaf, [len(page)], SHA256))
    names, links = ["a <b>.bin", "big", "page"], chunk + file + inner[-1].cid
    outer = list(directory_blocks(names, links, [33, 3 << 20, 60], SHA256))
    for block in (*inner, *outer):
        repo.blocks.put(block.cid, block.data)
    repo.blocks.flush()
    return repo, {
        "root": root,
        "commit": str(commit),
        "chunk": chunk,
        "file": file,
        "tree": outer[-1].cid,
        "page": inner[-1].cid,
    }


def broken_parent(repo: Repository, leaves: int = 40) -> str:
    """Store a node that links large blocks, then one that is nowhere; return its CID."""
    links = []
    for number in range(leaves):
        data = bytes([number]) * (1 << 20)
        cid = cid_of(0x55, SHA256, data)
        repo.blocks.put(cid, data)
        links.append(PBLink(cid, f"{number:02}", 1))
    links.append(PBLink(cid_of(0x55, SHA256, b"nowhere"), "zz", 1))
    data = encode(PBNode(b"\x08\x01", tuple(links)))
    cid = cid_of(DAG_PB, SHA256, data)
    repo.blocks.put(cid, data)
    repo.blocks.flush()
    return format_cid(cid)
