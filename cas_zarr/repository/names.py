"""Names of refs: what is allowed, so that each is a safe path and never reads as a CID.

Source: git's check-ref-format, less the parts that only git needs.
"""

from __future__ import annotations

import re

from cas_zarr.cid import as_cid_bytes
from cas_zarr.errors import InvalidCIDError, InvalidKeyError

__all__ = ["MAX_NAME_BYTES", "check_name", "looks_like_cid"]

MAX_NAME_BYTES = 512
"""Longest name of a ref, in bytes of UTF-8; a segment is at most 255, as in file systems.

That of a branch or a tag is 32 bytes shorter: work that cannot be placed on a branch is kept under
``conflicts/<branch>/<end of a cid>``.
"""

# The shortest text of a CID whose hash has 32 bytes is CIDv0 in base58: 46 characters.
_SHORTEST_CID = 46

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]")


def looks_like_cid(text: str) -> bool:
    """Tell whether `text` reads as a CID, in any base."""
    if len(text) < _SHORTEST_CID:  # spares branch names the import of a base decoder
        return False
    try:
        as_cid_bytes(text)
    except InvalidCIDError:
        return False
    return True


def check_name(name: str) -> str:
    """Return `name` if a branch or a tag can be called so.

    Raises
    ------
    InvalidKeyError
        If it is empty, too long, has a forbidden character or sequence, or reads as a CID.
    """
    reason = _fault(name)
    if reason is not None:
        shown = name if isinstance(name, str) and len(name) <= 80 else f"{str(name)[:80]}…"
        raise InvalidKeyError(
            f"ref name {shown!r} {reason}; use letters, digits, '-', '_', '.' and '/'"
        )
    return name


def _fault(name: str) -> str | None:
    if not isinstance(name, str) or not name:
        return "is no name"
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        return "has a lone surrogate"
    longest = MAX_NAME_BYTES - (0 if name.startswith("conflicts/") else 32)
    if len(encoded) > longest:
        return f"is longer than {longest} bytes"
    if _FORBIDDEN.search(name):
        return "has a space, a control character or one of ~ ^ : ? * [ \\"
    if ".." in name or "@{" in name:
        return "has '..' or '@{'"
    if name.startswith("-"):
        return "begins with '-'"
    for segment in name.split("/"):
        if not segment:
            return "begins or ends with '/', or has '//'"
        if segment.startswith(".") or segment.endswith((".", ".lock")):
            return "has a part that begins with '.', or ends with '.' or '.lock'"
        if len(segment.encode("utf-8")) > 255:
            return "has a part longer than 255 bytes"
    if looks_like_cid(name):
        return "reads as a cid"
    return None
