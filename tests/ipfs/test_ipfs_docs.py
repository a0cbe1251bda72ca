"""The Python of the pages about IPFS runs, against a node."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
from running import Kubo
from test_docs import IPFS, VERSIONS, blocks, name_of, run

import cas_zarr
from cas_zarr.cid import format_cid
from cas_zarr.repository.publishing import publish

RPC, GATEWAY = "http://127.0.0.1:5001", "http://127.0.0.1:8080"


@pytest.fixture(autouse=True)
def _no_server_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def here_only(host: Any, *arguments: Any, **options: Any) -> Any:
        assert host in ("127.0.0.1", "::1", "localhost"), f"a page asks {host}"
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", here_only)


def first(page: Path) -> tuple[int, str]:
    return next(blocks(page, "python"))


@pytest.mark.parametrize("page", sorted(IPFS.glob("*.md")), ids=name_of)
def test_the_python_of_a_page_runs(
    page: Path, kubo: Kubo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    namespace: dict[str, Any] = {"__name__": "__main__", "folder": tmp_path}

    def run_here(page: Path, line: int, code: str) -> None:
        code = code.replace(RPC, kubo.rpc).replace(GATEWAY, kubo.gateway)
        run(page, line, code, namespace)

    # what all pages go on from: a repository, and its publication
    run_here(VERSIONS / "index.md", *first(VERSIONS / "index.md"))
    index = IPFS / "index.md"
    run_here(index, *first(index))
    history = publish(namespace["repo"], "main", to=kubo.rpc, history=True)
    namespace["commit"] = format_cid(history.cid)
    for line, code in blocks(page, "python"):
        if page != index or (line, code) != first(index):
            run_here(page, line, code)
    namespace.clear()


@pytest.mark.parametrize("name", ["publishing.md", "names-and-pins.md"])
def test_the_messages_of_a_page_are_those_of_the_program(name: str) -> None:
    sources = "".join(file.read_text() for file in Path(cas_zarr.__file__).parent.rglob("*.py"))
    texts = re.sub(r'"\n\s*f?"', "", sources)  # literals that go on in the next line
    table = (IPFS / name).read_text().partition("## What can go wrong")[2]
    rows = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    assert len(rows) > 5
    for row in rows:
        for part in row.split("…"):
            assert part.strip("`() ") in texts, f"{name} has {row!r}"
