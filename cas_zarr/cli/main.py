"""The entry point of the installed command."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401

        from cas_zarr.cli.group import run
    except KeyboardInterrupt:  # `run` tells of later ones
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        print("error: the command needs click and rich; install cas_zarr[cli]", file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(run(sys.argv[1:]))
