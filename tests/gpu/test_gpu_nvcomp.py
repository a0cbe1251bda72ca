"""What nvCOMP's own headers and library say, where its wheel is installed: no device is needed."""

from __future__ import annotations

import ctypes
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from cas_zarr.errors import MissingDependencyError
from cas_zarr.gpu import nvcomp
from cas_zarr.gpu.nvcomp import GZIP, LZ4, ZSTD, Algorithm, Codec, Options, library

ALGORITHMS = [GZIP, LZ4, ZSTD]
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
    found = find_spec("nvidia.libnvcomp") if find_spec("nvidia") else None
    if found is None or not found.submodule_search_locations:
        pytest.skip("no wheel of nvCOMP is installed")
    return Path(next(iter(found.submodule_search_locations)))


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
    assert decompress == [size, *Options().words]
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


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    library.cache_clear()
    monkeypatch.setattr(nvcomp, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match="install cas_zarr"):
        library()
