"""A pinning service on loopback, as https://ipfs.github.io/pinning-services-api-spec/ has it.

It fetches nothing: a pin is queued, at the next look pinning, then pinned, or failed where its CID
is in `failing`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["TOKEN", "Pinning", "serve_pinning"]

TOKEN = "s3cret-t0ken"
_STATES = ("queued", "pinning", "pinned", "failed")
_MATCHES = {
    "exact": lambda name, wanted: name == wanted,
    "iexact": lambda name, wanted: name.lower() == wanted.lower(),
    "partial": lambda name, wanted: wanted in name,
    "ipartial": lambda name, wanted: wanted.lower() in name.lower(),
}


class Pinning:
    """What a service has, and what it was asked.

    Attributes
    ----------
    pins : dict of str to dict
        By request id, the oldest first.
    asked : list of str
        Method and path of each request.
    failing : set of str
        CIDs that it fails to pin.
    broke : bool
        Whether the account has no means left.
    busy : bool
        Whether it says so after it has taken a pin away.
    """

    def __init__(self) -> None:
        self.url = ""
        self.pins: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.failing: set[str] = set()
        self.broke = False
        self.busy = False
        self.made = 0
        self.lock = threading.Lock()

    def add(self, pin: dict[str, Any]) -> dict[str, Any]:
        self.made += 1
        created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self.made)
        entry = {
            "requestid": f"request {self.made}/ä",
            "status": "queued",
            "created": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "pin": pin,
            "delegates": [
                "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWL4mDRMmwh87QrjR69e4wZQbhTakVn64SshNYbtjbfMGL"
            ],
            "info": {"status_details": "waits"},
        }
        self.pins[entry["requestid"]] = entry
        return entry

    def look(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Return a pin as it is now; it is further at the next look."""
        now = json.loads(json.dumps(entry))
        if entry["status"] == "queued":
            entry["status"] = "pinning"
        elif entry["status"] == "pinning":
            failed = entry["pin"]["cid"] in self.failing
            entry["status"] = "failed" if failed else "pinned"
            entry["info"] = {"status_details": "nobody has it"} if failed else {}
        return now

    def listed(self, query: dict[str, list[str]]) -> dict[str, Any]:
        # lists have commas; of an option that comes again the first is read, as many servers do
        states = query.get("status", ["pinned"])[0].split(",")
        cids = query["cid"][0].split(",") if "cid" in query else []
        name = query.get("name", [""])[0]
        match = _MATCHES[query.get("match", ["exact"])[0]]
        meta = json.loads(query.get("meta", ["{}"])[0])
        found = [
            entry
            for entry in reversed(self.pins.values())
            if entry["status"] in states
            and (not cids or entry["pin"]["cid"] in cids)
            and (not name or match(entry["pin"].get("name", ""), name))
            and ("before" not in query or entry["created"] < query["before"][0])
            and ("after" not in query or entry["created"] > query["after"][0])
            and all(entry["pin"].get("meta", {}).get(key) == meta[key] for key in meta)
        ]
        limit = int(query.get("limit", ["10"])[0])
        return {"count": len(found), "results": [self.look(entry) for entry in found[:limit]]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one segment: the next request need not wait for the ack of two
    service: Pinning

    def _serve(self) -> None:
        size = int(self.headers.get("content-length", 0))
        body = self.rfile.read(size)
        with self.service.lock:
            self.service.asked.append(f"{self.command} {self.path}")
            status, answer = self._answer(body)
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _serve

    def _answer(self, body: bytes) -> tuple[int, Any]:
        service = self.service
        given = self.headers.get("authorization", "")
        if given != f"Bearer {TOKEN}":
            return _failure(401, "UNAUTHORIZED", f"{given.removeprefix('Bearer ')} is unknown")
        parts = urlsplit(self.path)
        folder, _, request_id = parts.path.removeprefix("/api/").partition("/")
        entry = service.pins.get(unquote(request_id))
        if folder != "pins" or (request_id and entry is None):
            return _failure(404, "NOT_FOUND", "the specified resource was not found")
        if self.command == "GET":
            if entry is not None:
                return 200, service.look(entry)
            return 200, service.listed(parse_qs(parts.query))
        if self.command == "POST":
            if service.broke:
                return _failure(409, "INSUFFICIENT_FUNDS", "pay first")
            pin = json.loads(body)
            if not isinstance(pin.get("cid"), str) or len(pin.get("name", "")) > 255:
                return _failure(400, "BAD_REQUEST", "no cid, or a name that is too long")
            if entry is not None:
                del service.pins[entry["requestid"]]
            return 202, service.add(pin)
        if entry is None:
            return _failure(400, "BAD_REQUEST", "which pin?")
        del service.pins[entry["requestid"]]
        return (503, None) if service.busy else (202, None)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _failure(status: int, reason: str, details: str) -> tuple[int, Any]:
    return status, {"error": {"reason": reason, "details": details}}


@contextmanager
def serve_pinning() -> Iterator[Pinning]:
    """Give a service that runs; its `url` is the endpoint."""
    service = Pinning()
    handler = type("Handler", (_Handler,), {"service": service})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}/api"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
