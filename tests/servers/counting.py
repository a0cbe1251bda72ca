"""A trustless gateway of some blocks that counts what it is asked, with a latency if need be."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import DAG_PB, CidBytes, as_cid_bytes, codec_of
from cas_zarr.codecs.car import CarWriter
from cas_zarr.errors import CasZarrError
from cas_zarr.tree.page import Page

__all__ = ["Counting", "counting_gateway"]


class Counting:
    """What a server was asked.

    Attributes
    ----------
    url : str
    requests : list of (format, CID as text)
        In the order in which they came; of a HEAD the format is ``head``.
    busiest : int
        How many there were at once.
    delay : float
        Seconds before each answer.
    cars : bool
        Whether it gives CARs: a page with all that it links; of files it gives none.
    """

    def __init__(self, blocks: BlockStore) -> None:
        self.blocks = blocks
        self.url = ""
        self.requests: list[tuple[str, str]] = []
        self.busiest = self.busy = 0
        self.delay = 0.0
        self.cars = True
        self.lock = threading.Lock()

    def taken(self) -> list[tuple[str, str]]:
        """Return the requests since the last time."""
        with self.lock:
            out, self.requests = self.requests, []
        return out

    def answer(self, form: str, cid: CidBytes) -> bytes | None:
        """Return what is served, or None."""
        try:
            data = self.blocks.get(cid)
        except CasZarrError:
            return None
        if form != "car":
            return data
        if not self.cars or codec_of(cid) == DAG_PB:
            return None
        out = io.BytesIO()
        with_links = [(cid, data)]
        page = Page.from_block(data)
        for row in range(len(page)):
            with_links.append((page.cid(row), self.blocks.get(page.cid(row))))
        writer = CarWriter(out, [cid], version=1)
        for one in with_links:
            writer.put(*one)
        writer.finish()
        return out.getvalue()


@contextmanager
def counting_gateway(blocks: BlockStore) -> Iterator[Counting]:
    """Serve blocks on loopback."""
    state = Counting(blocks)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or small answers wait for an acknowledgement

        def do_GET(self) -> None:
            self._serve()

        def do_HEAD(self) -> None:
            self._serve()

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            text = parts.path.rpartition("/")[2]
            form = parse_qs(parts.query).get("format", ["raw"])[0]
            with state.lock:
                state.requests.append(("head" if self.command == "HEAD" else form, text))
                state.busy += 1
                state.busiest = max(state.busiest, state.busy)
            time.sleep(state.delay)
            body = state.answer(form, as_cid_bytes(text))
            with state.lock:
                state.busy -= 1
            head = b"" if body is None else body
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(head)))
            self.send_header("Content-Type", f"application/vnd.ipld.{form}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(head)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing of clients that went away."""

    with Server(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
