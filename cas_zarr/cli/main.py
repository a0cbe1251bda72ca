"""The entry point of the installed command."""

from __future__ import annotations

import _thread
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

__all__ = ["main"]

_SOON = 0.05  # seconds: time for a finalizer to end


def main() -> None:
    """Run the command line and exit with its code."""
    sys.unraisablehook = _interrupt_again
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


def _interrupt_again(unraisable: UnraisableHookArgs) -> None:
    """Let an interrupt that came in a finalizer, where it is ignored, come once more."""
    if unraisable.exc_type is KeyboardInterrupt:
        again = threading.Timer(_SOON, _thread.interrupt_main)
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)
