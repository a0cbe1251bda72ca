"""Streams of nvCOMP's own formats, by the functions that its wheel has for hosts.

Those of Bitcomp trust what they are given, so only tests use them.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from cas_zarr.gpu import gdeflate
from cas_zarr.gpu.nvcomp import library

__all__ = ["bitcomp", "bitcomp_type", "deflated", "unbitcomp"]


def deflated(data: bytes) -> bytes:
    """Return a stream of gdeflate that gives up to 64 KiB."""
    host = gdeflate._library()
    host.libdeflate_alloc_gdeflate_compressor.restype = ctypes.c_void_p
    host.libdeflate_gdeflate_compress.restype = ctypes.c_size_t
    encoder = ctypes.c_void_p(host.libdeflate_alloc_gdeflate_compressor(6))
    room = ctypes.create_string_buffer(1 << 17)
    page = gdeflate.Page(ctypes.cast(room, ctypes.c_char_p), len(room))
    made = host.libdeflate_gdeflate_compress(
        encoder, data, ctypes.c_size_t(len(data)), ctypes.byref(page), ctypes.c_size_t(1)
    )
    host.libdeflate_free_gdeflate_compressor(encoder)
    assert made
    return room.raw[:made]


def bitcomp(data: bytes, code: int, variant: int) -> bytes:
    """Return a stream of Bitcomp, for an nvcompType_t and an algorithm."""
    plan, given = ctypes.c_void_p(), aligned(data)
    room = np.zeros(len(data) // 4 + 2048, np.uint64)
    status = library().bitcompCreatePlan(
        ctypes.byref(plan), ctypes.c_size_t(len(data)), code ^ 1, 0, variant
    )
    status |= library().bitcompHostCompressLossless(plan, at(given), at(room))
    size = ctypes.c_size_t()
    status |= library().bitcompGetCompressedSize(at(room), ctypes.byref(size))
    library().bitcompDestroyPlan(plan)
    assert status == 0
    return room.tobytes()[: size.value]


def unbitcomp(stream: bytes, size: int) -> bytes:
    """Decode a stream of Bitcomp that gives `size` bytes."""
    plan, given, made = ctypes.c_void_p(), aligned(stream), np.zeros(size // 8 + 1, np.uint64)
    status = library().bitcompCreatePlanFromCompressedData(ctypes.byref(plan), at(given))
    found = ctypes.c_size_t()
    status |= library().bitcompGetUncompressedSizeFromHandle(plan, ctypes.byref(found))
    assert (status, found.value) == (0, size)
    status = library().bitcompHostUncompress(plan, at(given), at(made))
    library().bitcompDestroyPlan(plan)
    assert status == 0
    return made.tobytes()[:size]


def bitcomp_type(stream: bytes) -> int:
    """Return the nvcompType_t that a stream of Bitcomp was encoded as."""
    plan, given, code = ctypes.c_void_p(), aligned(stream), ctypes.c_int()
    status = library().bitcompCreatePlanFromCompressedData(ctypes.byref(plan), at(given))
    status |= library().bitcompGetDataTypeFromHandle(plan, ctypes.byref(code))
    library().bitcompDestroyPlan(plan)
    assert status == 0
    return code.value ^ 1  # it counts unsigned types first, nvCOMP signed ones


def aligned(data: bytes) -> NDArray[np.uint64]:
    """Return memory that begins with bytes."""
    return np.frombuffer(data + bytes(-len(data) % 8 + 8), np.uint64)


def at(memory: NDArray[np.uint64]) -> ctypes.c_void_p:
    """Return where memory begins."""
    return ctypes.c_void_p(memory.ctypes.data)
