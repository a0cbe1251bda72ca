"""The node that the benchmarks of IPFS speak with: that of the tests, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["running_node"]

TESTS = Path(__file__).resolve().parent.parent / "tests" / "ipfs"


@contextmanager
def running_node(folder: Path) -> Iterator[Any]:
    """Give an empty node, offline and on loopback, while it runs: its `rpc` and its `gateway`."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    import programs
    from running import Kubo

    folder.mkdir()
    node = Kubo(programs.kubo(), folder)
    try:
        node.start()
        yield node
    finally:
        node.stop()
