"""A directory of UnixFS as a page of HTML, or as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from itertools import islice
from typing import Final
from urllib.parse import quote

from cas_zarr.blocks.base import BlockStore
from cas_zarr.cid import CidBytes, format_cid
from cas_zarr.tree.directories import list_directory

__all__ = ["MAX_ENTRIES", "listing"]

MAX_ENTRIES: Final = 10_000
"""Entries of a listing; of a larger directory the first ones are shown."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>body{{font-family:sans-serif;margin:2em}}td{{padding:0 1em 0 0}}code{{color:#666}}</style>
</head>
<body>
<h1>{title}</h1>
<table>
{rows}
</table>
{note}
</body>
</html>
"""


def listing(
    blocks: BlockStore, cid: CidBytes, names: Sequence[str], *, as_json: bool = False
) -> tuple[bytes, str]:
    """Return a listing of a directory, and its Content-Type.

    Parameters
    ----------
    blocks : BlockStore
    cid : CidBytes
    names : sequence of str
        The path that leads there, for the title.
    as_json : bool
        Whether to give JSON: the CID, the entries, and whether there are more.
    """
    entries = list(islice(list_directory(blocks, cid), MAX_ENTRIES + 1))
    more = len(entries) > MAX_ENTRIES
    entries = sorted(entries[:MAX_ENTRIES])
    if as_json:
        rows = [{"name": name, "cid": format_cid(one), "size": size} for name, one, size in entries]
        value = {"cid": format_cid(cid), "entries": rows, "more": more}
        return json.dumps(value).encode(), "application/json"
    title = "/".join(["/ipfs", format_cid(cid)] if not names else [*names])
    lines = [
        f'<tr><td><a href="./{quote(name, safe="")}">{html.escape(name)}</a></td>'
        f"<td>{size}</td><td><code>{format_cid(one)}</code></td></tr>"
        for name, one, size in entries
    ]
    note = f"<p>Only the first {MAX_ENTRIES} entries are shown.</p>" if more else ""
    page = _PAGE.format(title=html.escape(title), rows="\n".join(lines), note=note)
    return page.encode("utf-8", "replace"), "text/html; charset=utf-8"
