"""GDeflate on the host, by the library that comes in the wheel of nvCOMP.

It is libdeflate with NVIDIA's additions, and its functions are those of ``libdeflate.h``: invalid
bytes are refused, unlike by nvCOMP's decoders for devices.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from cas_zarr.errors import FormatError
from cas_zarr.gpu.nvcomp import MAJOR, find_library

__all__ = ["decompress", "has_library"]


class Page(ctypes.Structure):
    """A stream: where it lies, and its bytes."""

    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t))


def has_library() -> bool:
    """Tell whether the library is installed."""
    return _library() is not None


def decompress(stream: bytes, size: int) -> bytes:
    """Decode a stream that gives `size` bytes, at most 64 KiB.

    Raises
    ------
    FormatError
        If it does not.
    """
    library = _library()
    decoder = library.libdeflate_alloc_gdeflate_decompressor()
    try:
        page, made = Page(stream, len(stream)), ctypes.create_string_buffer(size)
        count = ctypes.c_size_t()
        status = library.libdeflate_gdeflate_decompress(
            decoder, ctypes.byref(page), 1, made, size, ctypes.byref(count)
        )
    finally:
        library.libdeflate_free_gdeflate_decompressor(decoder)
    if status or count.value != size:
        raise FormatError(
            f"a stream of gdeflate does not decode to {size} bytes (status {status}); it was not "
            "written by an encoder of that format"
        )
    return made.raw


@cache
def _library() -> Any:
    path = find_library(f"libnvcomp_cpu.so.{MAJOR}")
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    library.libdeflate_alloc_gdeflate_decompressor.restype = ctypes.c_void_p
    library.libdeflate_free_gdeflate_decompressor.argtypes = (ctypes.c_void_p,)
    library.libdeflate_gdeflate_decompress.argtypes = (
        *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p),
    )
    return library
