"""The pinning service of the tests is one: Kubo's client of the same specification says so."""

from __future__ import annotations

import json
import os

from running import Kubo
from servers.pinning import TOKEN, serve_pinning

from cas_zarr.cid import BLAKE3, RAW, cid_of, format_cid
from cas_zarr.repository.pinning import PinningService

CID = cid_of(RAW, BLAKE3, b"pinned elsewhere")


def test_kubo_and_this_package_see_the_same_pins(kubo: Kubo) -> None:
    remote = f"--service=mine-{os.urandom(4).hex()}"
    name = remote.partition("=")[2]
    everything = "--status=queued,pinning,pinned,failed"
    with serve_pinning() as server:
        service = PinningService(server.url, TOKEN)
        kubo.run("pin", "remote", "service", "add", name, server.url, TOKEN)
        try:
            assert "0/0/0/0" in kubo.run("pin", "remote", "service", "ls", "--stat")
            assert "pinned" in kubo.run("pin", "remote", "add", remote, "--name=k", format_cid(CID))
            (seen,) = service.list()
            assert (seen.cid, seen.name, seen.state) == (CID, "k", "pinned")
            assert seen.origins or seen.delegates
            service.wait(service.add(CID, name="ours").request_id, timeout=10)
            told = kubo.run("pin", "remote", "ls", remote, everything, "--enc=json")
            found = [json.loads(line) for line in told.splitlines()]
            assert {(one["Name"], one["Cid"], one["Status"]) for one in found} == {
                ("k", format_cid(CID), "pinned"),
                ("ours", format_cid(CID), "pinned"),
            }
            kubo.run("pin", "remote", "rm", remote, "--name=k")
            assert [pin.name for pin in service.list()] == ["ours"]
        finally:
            kubo.run("pin", "remote", "service", "rm", name)
