"""What every test shares: the profiles of Hypothesis, fixtures by others, and children."""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from cas_zarr.cid import (
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    HASHES,
    RAW,
    CidBytes,
    Link,
    cid_of,
)

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

MEMORY = Path("/dev/shm")
ENOUGH = 4 << 30  # bytes


def _keep_folders_in_memory() -> None:
    """Let temporary folders lie in memory: nearly all that a flush costs there is its fsync.

    `TMPDIR` names another place, a disk say. No test asks what a disk keeps when its power fails:
    such deaths are simulated, call by call.
    """
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK):
        return
    place = os.statvfs(MEMORY)
    if place.f_bavail * place.f_frsize > ENOUGH and not place.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)  # of children, and of this process


_keep_folders_in_memory()


def pytest_collection_finish() -> None:
    """Leave what was imported out of every collection of garbage: else each looks at all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def conformance() -> Path:
    """Return the folder of fixtures by others; skip where it is absent.

    `CAS_ZARR_CONFORMANCE` names it; without that it is looked for beside the project.
    """
    project = Path(__file__).resolve().parent.parent
    default = project.parent / "shared" / "conformance"
    folder = Path(os.environ.get("CAS_ZARR_CONFORMANCE", default))
    if not folder.is_dir():
        pytest.skip(f"no conformance fixtures in {folder}; set CAS_ZARR_CONFORMANCE")
    return folder


@pytest.fixture(scope="session")
def processes() -> BaseContext:
    """Return what starts processes that share nothing with this one, and have imported the rest.

    They are forked from a server that did nothing but import, which takes a second and more.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cas_zarr", "xarray", "cas_zarr.distributed"])
    return context


@pytest.fixture
def forked() -> Callable[[Callable[[], object]], int]:
    """Return a function that runs another in a child and gives the child's exit status.

    The status is 0, or minus the signal, or 1 after an exception.
    """

    def run(body: Callable[[], object]) -> int:
        with warnings.catch_warnings():
            # The runner of the tests may have a thread; the child uses nothing of it.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            status = 1
            try:
                body()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


@pytest.fixture(scope="session")
def ipld_values() -> SearchStrategy[Any]:
    """Return a strategy for values of the IPLD data model that every codec can encode."""
    cids = st.builds(
        lambda codec, function, data: Link(cid_of(codec, function, data)),
        st.sampled_from([RAW, DAG_PB, DAG_CBOR, DAG_JSON]),
        st.sampled_from(list(HASHES.values())),
        st.binary(max_size=2),
    )
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**64), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
        st.binary(),
        cids,
        st.just(Link(CidBytes(b"\x12\x20" + bytes(32)))),  # a CIDv0
        st.just(Link(CidBytes(b"\x01\x55\x00\x03abc"))),  # an identity hash
    )
    keys = st.one_of(st.text(max_size=6), st.sampled_from(["", "/", "bytes", "a"]))

    def nested(values: SearchStrategy[Any]) -> SearchStrategy[Any]:
        maps = st.dictionaries(keys, values, max_size=5).filter(lambda found: not reserved(found))
        return st.one_of(st.lists(values, max_size=5), maps)

    def reserved(found: dict[str, Any]) -> bool:
        """Tell whether DAG-JSON would read a map as a link or as bytes."""
        inner = found.get("/")
        if inner is None or min(found) != "/":
            return False
        claims_bytes = isinstance(inner, dict) and isinstance(inner.get("bytes"), str)
        return isinstance(inner, str) or (claims_bytes and min(inner) == "bytes")

    return st.recursive(leaves, nested, max_leaves=20)
