"""The entry point of the installed command."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError:
        print("error: the command needs click and rich; install cas_zarr[cli]", file=sys.stderr)
        raise SystemExit(1) from None
    from cas_zarr.cli.group import run

    raise SystemExit(run(sys.argv[1:]))
