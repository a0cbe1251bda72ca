"""What nvCOMP's own headers and library say, where its wheel is installed: no device is needed."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from cas_zarr.errors import MissingDependencyError
from cas_zarr.gpu import nvcomp
from cas_zarr.gpu.formats import Ans, Bitcomp, Cascaded, Gdeflate
from cas_zarr.gpu.nvcomp import (
    DEFLATE,
    GZIP,
    LZ4,
    MAJOR,
    ZSTD,
    Algorithm,
    Codec,
    Options,
    find_library,
    library,
)
from cas_zarr.gpu.pieces import PIECE

OWN = [Ans().nvcomp, Bitcomp().nvcomp, Cascaded("uint32").nvcomp, Gdeflate().nvcomp]
ALGORITHMS = [DEFLATE, GZIP, LZ4, ZSTD, *OWN]
each = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)

PROGRAM = """
#include <stdbool.h>
#include <stdio.h>
#include "nvcomp/%(header)s.h"
static void show(const void *options, size_t size) {
  printf("%%zu", size);
  for (size_t row = 0; row < size / 4; row++) printf(" %%u", ((const unsigned *)options)[row]);
  printf("\\n");
}
int main(void) {
  show(&nvcompBatched%(name)sCompressDefaultOpts, sizeof(nvcompBatched%(name)sCompressOpts_t));
  show(&nvcompBatched%(name)sDecompressDefaultOpts, sizeof(nvcompBatched%(name)sDecompressOpts_t));
  printf("%%zu %%zu\\n", (size_t)nvcomp%(name)sCompressionMaxAllowedChunkSize,
         (size_t)nvcomp%(decoder)sDecompressionMaxAllowedChunkSize);
  return 0;
}
"""


@pytest.fixture(scope="session")
def wheel() -> Path:
    """Return the folder of the wheel; skip without it."""
    found = find_library(f"libnvcomp.so.{MAJOR}")
    if found is None:
        pytest.skip("no wheel of nvCOMP is installed")
    return found.parents[1]


@each
def test_options_are_those_of_the_headers(
    wheel: Path, compiler: Path, tmp_path: Path, algorithm: Algorithm
) -> None:
    program = tmp_path / "program.c"
    decoder = "GzipNaive" if algorithm is GZIP else algorithm.name
    names = {"name": algorithm.name, "header": algorithm.name.lower(), "decoder": decoder}
    program.write_text(PROGRAM % names)
    include = [f"-I{wheel / 'include'}", f"-I{tmp_path}"]
    (tmp_path / "cuda_runtime.h").write_text("typedef struct CUstream_st *cudaStream_t;\n")
    built = tmp_path / "program"
    compile_c = [str(compiler), "-x", "c", str(program), *include, "-o", str(built)]
    subprocess.run(compile_c, check=True)
    shown = subprocess.run([str(built)], check=True, capture_output=True, text=True).stdout
    compress, decompress, largest = (
        [int(word) for word in line.split()] for line in shown.splitlines()
    )
    size = ctypes.sizeof(Options)
    assert compress == [size, *Options(algorithm.options).words]
    assert decompress == [size, *Options(algorithm.decoding).words]
    assert algorithm.largest <= min(largest)


@each
def test_the_library_answers_what_needs_no_device(wheel: Path, algorithm: Algorithm) -> None:
    assert wheel
    codec = Codec(algorithm)
    options = Options(algorithm.options)
    for way in ("Compress", "Decompress"):
        found = codec._alignments(way)
        assert all(256 % each == 0 for each in (found.input, found.output, found.temp))
    most = ctypes.c_size_t()
    codec._call("CompressGetMaxOutputChunkSize", 1 << 20, options, ctypes.byref(most))
    assert 1 << 20 < most.value < 4 << 20


@each
def test_every_function_is_there(wheel: Path, algorithm: Algorithm) -> None:
    assert wheel
    for name in ("CompressAsync", "DecompressAsync", "GetDecompressSizeAsync"):
        assert getattr(library(), f"nvcompBatched{algorithm.name}{name}")


@pytest.mark.parametrize("algorithm", OWN, ids=lambda algorithm: algorithm.name)
def test_pieces_suit_the_library(wheel: Path, algorithm: Algorithm) -> None:
    assert wheel
    codec = Codec(algorithm)
    for way in ("Compress", "Decompress"):
        found = codec._alignments(way)
        assert 16 % found.input == 0  # where pieces lie in a value
        assert 256 % found.output == 0
    assert algorithm.largest == PIECE


@pytest.mark.parametrize("level", range(8))
def test_every_option_is_taken(wheel: Path, level: int) -> None:
    assert wheel
    types = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
    for codec in (
        *(Bitcomp(name, algorithm) for name in types for algorithm in ("default", "sparse")),
        *(Cascaded(name, level) for name in types),
        Gdeflate(min(level, 5)),
    ):
        most = ctypes.c_size_t()
        options = Options(codec.nvcomp.options)
        Codec(codec.nvcomp)._call(
            "CompressGetMaxOutputChunkSize", PIECE, options, ctypes.byref(most)
        )
        assert most.value > PIECE


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    library.cache_clear()
    monkeypatch.setattr(nvcomp, "_WHEELS", ())
    with pytest.raises(MissingDependencyError, match="install cas_zarr"):
        library()


def test_a_library_of_another_version_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(tmp_path, "5.1.0", "libnvcomp.so.5")
    monkeypatch.syspath_prepend(tmp_path)
    library.cache_clear()
    monkeypatch.setattr(nvcomp, "_WHEELS", ("nvidia-libnvcomp-cu12",))
    with pytest.raises(MissingDependencyError, match=r"nvidia-libnvcomp-cu12 5\.1\.0 is installed"):
        library()


def test_the_library_is_found_where_nvidia_is_a_package_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library_file = install(tmp_path / "site", "6.0.0", "libnvcomp.so.6")
    other = tmp_path / "other" / "nvidia"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.syspath_prepend(other.parent)
    assert find_library("libnvcomp.so.6") == library_file


def install(site: Path, version: str, name: str) -> Path:
    """Lay out an empty library as its wheel does."""
    made = site / "nvidia" / "libnvcomp" / "lib64" / name
    made.parent.mkdir(parents=True)
    made.touch()
    info = site / f"nvidia_libnvcomp_cu12-{version}.dist-info"
    info.mkdir()
    text = f"Metadata-Version: 2.1\nName: nvidia-libnvcomp-cu12\nVersion: {version}\n"
    (info / "METADATA").write_text(text)
    return made
