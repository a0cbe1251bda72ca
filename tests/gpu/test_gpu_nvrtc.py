"""What NVRTC makes of the kernels: it needs neither a driver nor a device.

The log of its assembler says how many registers a thread takes, and whether they were enough.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

from cas_zarr.cid import BLAKE3, SHA256, HashFunction
from cas_zarr.gpu.kernels import NAMES, OPTIONS, source

WHEELS = ["nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"]
SOURCES = [BLAKE3, SHA256, *(name for name in NAMES if isinstance(name, str))]
ARCHITECTURES = [75, 80, 86, 89, 90, 100, 120]

# What CuPy adds, but for folders: cupy/cuda/compiler.py.
CUPY = ("-ftz=true", "--device-as-default-execution-space")

# 512 threads of a multiprocessor's 65 536 registers are enough to hide what a load takes.
MOST_REGISTERS = 128


@dataclass(frozen=True, slots=True)
class Compiled:
    """What one compilation gave."""

    status: int
    log: str
    size: int


class Nvrtc:
    """The library of one wheel."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def architectures(self) -> list[int]:
        """Return the architectures that it can compile for, such as 90."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return list(found)

    def compile(self, code: str, architecture: int) -> Compiled:
        """Compile for one architecture, as far as machine code."""
        options = [*OPTIONS, *CUPY, f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v"]
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), code.encode(), b"code.cu", 0, None, None
        )
        try:
            status = self._library.nvrtcCompileProgram(program, len(options), encoded)
            self._call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            self._call("nvrtcGetProgramLog", program, log)
            if status == 0:
                self._call("nvrtcGetCUBINSize", program, ctypes.byref(size))
            return Compiled(status, log.value.decode(), size.value if status == 0 else 0)
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        assert status == 0, f"{name} gave {status}"


@pytest.fixture(scope="session", params=WHEELS)
def nvrtc(request: pytest.FixtureRequest) -> Nvrtc:
    """Return the NVRTC of each wheel; in CI there has to be the first."""
    wheel: str = request.param
    try:
        [library] = [
            file for file in files(wheel) or [] if re.fullmatch(r"libnvrtc\.so\.\d+", file.name)
        ]
    except PackageNotFoundError:
        message = f"{wheel} is not installed; pip install {wheel}"
        if os.environ.get("CI") and wheel == WHEELS[0]:
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    return Nvrtc(Path(str(library.locate())))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("of", SOURCES, ids=lambda of: of if isinstance(of, str) else of.name)
def test_nothing_spills(nvrtc: Nvrtc, of: HashFunction | str, architecture: int) -> None:
    if architecture not in nvrtc.architectures():
        pytest.skip(f"this NVRTC does not know sm_{architecture}")
    compiled = nvrtc.compile(source(of), architecture)
    assert compiled.status == 0, compiled.log
    assert compiled.size > 0
    assert "warning" not in compiled.log, compiled.log
    names = re.findall(r"Compiling entry function '(\w+)'", compiled.log)
    assert sorted(names) == sorted(NAMES[of if isinstance(of, str) else of.code])
    frames = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", compiled.log
    )
    assert frames == [("0", "0", "0")] * len(names), compiled.log
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", compiled.log)]
    assert len(registers) == len(names)
    assert max(registers) <= MOST_REGISTERS, compiled.log


def test_the_log_tells_what_spills(nvrtc: Nvrtc) -> None:
    code = """
    extern "C" __global__ void __launch_bounds__(1024) spilling(float* x) {
      float kept[128];
      #pragma unroll
      for (int i = 0; i < 128; i++) kept[i] = x[i];
      __syncthreads();
      #pragma unroll
      for (int i = 0; i < 128; i++) x[i] = kept[127 - i] * kept[i];
    }
    """
    compiled = nvrtc.compile(code, 90)
    assert compiled.status == 0, compiled.log
    assert re.search(r"[1-9]\d* bytes spill stores", compiled.log), compiled.log
