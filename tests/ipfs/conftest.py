"""A Kubo node, a Node.js and a Chromium, for the tests that speak with programs of others.

`kubo` is a node of this session's own (of each worker's own under xdist): offline, on loopback, in
a temporary folder. `node_js` runs the scripts in tests/ipfs/js; `chromium` opens pages. A program
that cannot be had skips its tests with the reason, and fails them where `CI` is set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import programs
import pytest
from programs import brought
from running import Chromium, Kubo, NodeJs


@pytest.fixture(scope="session")
def kubo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubo]:
    """Give a node that runs; a test that stops it starts it again."""
    node = Kubo(brought(programs.kubo), tmp_path_factory.mktemp("kubo"))
    try:
        node.start()
        yield node
    finally:
        node.stop()


@pytest.fixture(scope="session")
def node_js(tmp_path_factory: pytest.TempPathFactory) -> NodeJs:
    """Return what runs scripts of JavaScript."""
    program, packages = brought(programs.node), brought(programs.node_modules)
    return NodeJs(program, packages, tmp_path_factory.mktemp("js"))


@pytest.fixture
def chromium(tmp_path: Path) -> Chromium:
    """Return a browser with a profile of its own."""
    return Chromium(brought(programs.chromium), tmp_path)
