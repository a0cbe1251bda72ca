"""Measure the GPU path: `python -m benchmarks.gpu`, on a machine that has one.

`hash` hashes batches of many sizes where they lie; `stages` takes the writing of a batch apart
(encode, hash, copy to the host, pageable and pinned, gathered and one by one, and all of it);
`write` writes an array of CuPy beside the same array of NumPy on all cores, with batches of 1 to
256 chunks, chunks of 64 KiB to 16 MiB, and 0, 50 and 90 % of chunks that are there already; `read`
reads it back. The data are fields of air temperature, refined, with the last digits of a
measurement: zeros would tell nothing.

Times are those of the caller: they hold the host's part, and in `stages`, `write` and `read` that
of the file system below the repository (`--folder`: a disk can be slower than all before it).
Without a device it says what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import zarr

from benchmarks.parts import Figure
from benchmarks.report import RESULTS, describe_machine, format_seconds, machine_line
from cas_zarr import CASStore, gpu
from cas_zarr.cid import BLAKE3, SHA256
from cas_zarr.errors import MissingDependencyError
from cas_zarr.gpu.nvcomp import MAJOR

__all__ = ["main"]

MIB = 1 << 20
ROUNDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print a table of each part, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--size", type=int, default=512, help="MiB of an array (default: 512)")
    parser.add_argument("--folder", help="where repositories lie; temporary by default")
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu.json", help="results")
    options = parser.parse_args(arguments)
    try:
        gpu.require()
    except MissingDependencyError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return 2
    folder = Path(options.folder or tempfile.gettempdir())
    machine = describe_machine(folder) | _device()
    print(machine_line(machine), *_device().values(), sep="; ", flush=True)
    figures: dict[str, list[Figure]] = {}
    missing = 0
    for part in options.parts or PARTS:
        figures[part] = []
        print(f"\n{part}", flush=True)
        try:
            with tempfile.TemporaryDirectory(dir=folder, prefix="cas-zarr-benchmark-") as place:
                for figure in PARTS[part](Path(place), options.size * MIB):
                    print(f"  {figure.what}: {_told(figure)}", flush=True)
                    figures[part].append(figure)
        except MissingDependencyError as error:
            print(f"no figures: {error}", file=sys.stderr)
            missing = 2
        _keep(options.json, machine, figures)
    print(f"\nwritten to {options.json}")
    return missing


def _told(figure: Figure) -> str:
    value = format_seconds(figure.value) if figure.unit == "s" else f"{figure.value:.3g}"
    unit = "" if figure.unit == "s" else f" {figure.unit}".rstrip()
    return f"{value}{unit}" + (f" ({figure.note})" if figure.note else "")


def _keep(path: Path, machine: dict[str, Any], figures: dict[str, list[Figure]]) -> None:
    """Write what there is so far: who stops a long run loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {part: [asdict(one) for one in some] for part, some in figures.items()}
    path.write_text(json.dumps({"machine": machine, "figures": found}, indent=2))


# -- parts ----------------------------------------------------------------------------------------


def hashes(folder: Path, size: int) -> Iterator[Figure]:
    """Hash batches where they lie, ten one after the other; GB/s."""
    from cas_zarr.gpu.hashing import digest_slab

    del folder
    for function in (BLAKE3, SHA256):
        for total in (MIB, 16 * MIB, 256 * MIB, size):
            slab = _random(total)
            for blob in (64 << 10, MIB):
                if blob > total:
                    continue
                offsets = np.arange(0, total, blob)
                sizes = np.full(len(offsets), blob)
                took = _timed(
                    lambda s=slab, o=offsets, n=sizes, f=function: digest_slab(s, o, n, f),
                    calls=10 if function is BLAKE3 else 1,
                )
                what = f"{function.name}: {total // MIB} MiB in blobs of {blob >> 10} KiB"
                least = {16 * MIB: 100, 256 * MIB: 400}.get(total) if function is BLAKE3 else None
                note = "" if least is None else f"bar on an H100: {least} GB/s"
                yield Figure(what, total / took / 1e9, "GB/s", note=note)


def stages(folder: Path, size: int) -> Iterator[Figure]:
    """Take the writing of one batch of 1 MiB chunks apart."""
    import cupy

    from cas_zarr.gpu.gather import to_host
    from cas_zarr.gpu.hashing import digest_many
    from cas_zarr.gpu.memory import pinned
    from cas_zarr.gpu.nvcomp import LZ4, ZSTD, Codec

    total = min(size, 64 * MIB)
    field = cupy.asarray(fields(total)).view(cupy.uint8).ravel()
    chunks = [field[at : at + MIB] for at in range(0, total, MIB)]
    for name, algorithm in (("zstd", ZSTD), ("lz4", LZ4)):
        codec = Codec(algorithm)
        encoded = codec.compress(chunks)
        sizes = [one.nbytes for one in encoded]
        addresses = [one.data.ptr for one in encoded]
        joined = cupy.concatenate(encoded)
        page, pin = np.empty(joined.nbytes, np.uint8), pinned(joined.nbytes)
        what = f"{name}, {len(chunks)} chunks of 1 MiB, {total / sum(sizes):.2f} times smaller: "
        yield Figure(what + "encode", _timed(lambda c=codec: c.compress(chunks)), "s")
        yield Figure(
            what + "hash", _timed(lambda a=addresses, s=sizes: digest_many(a, s, BLAKE3)), "s"
        )
        yield Figure(what + "copy, pageable", _timed(lambda j=joined, h=page: j.get(out=h)), "s")
        yield Figure(what + "copy, pinned", _timed(lambda j=joined, h=pin: j.get(out=h)), "s")
        with gpu.enabled():
            numbers = count()
            whole = _timed(
                lambda n=numbers, a=name: _write(folder / f"{a}{next(n)}", field, MIB, a)
            )
        _clear(folder)
        yield Figure(what + "all, with a commit", whole, "s")
    yield from _encoders(chunks)
    for blob, many in ((4 << 10, 256), (64 << 10, 64), (256 << 10, 64), (MIB, 64)):
        parts = [field[at : at + blob] for at in range(0, min(many * blob, total), blob)]
        what = f"{len(parts)} blobs of {blob >> 10} KiB to the host: "
        for how, gathered in (("gathered", True), ("one by one", False)):
            took = _timed(lambda p=parts, g=gathered: to_host(p, gathered=g))
            yield Figure(what + how, took, "s")


def _encoders(chunks: Sequence[Any]) -> Iterator[Figure]:
    """Encode a batch and decode it in formats that take more than one call of nvCOMP."""
    from cas_zarr.gpu.formats import Ans, Bitcomp, Cascaded, Gdeflate
    from cas_zarr.gpu.frames import Shuffle, Zlib
    from cas_zarr.gpu.pieces import decode, encode

    sizes = [chunk.nbytes for chunk in chunks]
    works: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        codec.name: (
            lambda given, c=codec: encode(c.nvcomp, given),
            lambda given, c=codec: decode(c.nvcomp, given, c.name),
        )
        for codec in (Ans(), Bitcomp("uint32"), Cascaded("uint32"), Gdeflate())
    }
    for name, frame in (("zlib", Zlib(1)), ("shuffle", Shuffle(4))):
        works[name] = frame.encode, lambda given, f=frame: f.decode(given, sizes)
    for name, (there, back) in works.items():
        made = there(chunks)
        smaller = sum(sizes) / sum(one.nbytes for one in made)
        what = f"{name}, {len(chunks)} chunks of 1 MiB, {smaller:.2f} times smaller: "
        yield Figure(what + "encode", _timed(lambda w=there: w(chunks)), "s")
        yield Figure(what + "decode", _timed(lambda w=back, m=made: w(m)), "s")


def writes(folder: Path, size: int) -> Iterator[Figure]:
    """Write arrays from a device and, in turns, from the host."""
    import cupy

    host = fields(size)
    device = cupy.asarray(host)

    def on_device(codec: str, chunk: int, batch: int, share: float) -> float:
        with gpu.enabled(batch):
            return _written(folder, device, chunk, codec, share)

    def on_host(codec: str, chunk: int) -> float:
        return _written(folder, host, chunk, codec, 0)

    for codec in ("zstd", "lz4"):
        none = 0.0
        for chunk in (64 << 10, MIB, 16 * MIB):
            on_device(codec, chunk, 64, 0)  # compiles, allocates and pins
            pairs = [(on_device(codec, chunk, 64, 0), on_host(codec, chunk)) for _ in range(3)]
            took, beside = (median(times) for times in zip(*pairs, strict=True))
            none = took if chunk == MIB else none
            what = f"{codec}, chunks of {chunk >> 10} KiB"
            yield Figure(f"{what}: GPU", size / took / 1e9, "GB/s")
            note = "bar: 5" if chunk == MIB else ""
            yield Figure(
                f"{what}: times the CPU, {os.cpu_count()} cores", beside / took, "", note=note
            )
        for batch in (1, 16, 256):
            took = median(on_device(codec, MIB, batch, 0) for _ in range(3))
            yield Figure(f"{codec}, batches of {batch}: GPU", size / took / 1e9, "GB/s")
        for share in (0.5, 0.9):
            took = median(on_device(codec, MIB, 64, share) for _ in range(3))
            note = "bar: 3" if share == 0.9 else ""
            what = f"{codec}, {share:.0%} there already: times as fast"
            yield Figure(what, none / took, "", note=note)


def reads(folder: Path, size: int) -> Iterator[Figure]:
    """Read arrays into a device and, in turns, to the host."""
    host = fields(size)
    for codec in ("zstd", "lz4"):
        for chunk in (64 << 10, MIB, 16 * MIB):
            place = folder / f"{codec}-{chunk}"
            _write(place, host, chunk, codec)
            with gpu.enabled():
                took = _timed(lambda p=place: _read(p), rounds=3)
            beside = _timed(lambda p=place: _read(p), rounds=3)
            _clear(folder)
            what = f"{codec}, chunks of {chunk >> 10} KiB, verified"
            yield Figure(f"{what}: GPU", size / took / 1e9, "GB/s")
            yield Figure(f"{what}: times the CPU, {os.cpu_count()} cores", beside / took, "")


PARTS: dict[str, Callable[[Path, int], Iterator[Figure]]] = {
    "hash": hashes,
    "stages": stages,
    "write": writes,
    "read": reads,
}


# -- data, arrays and clocks ----------------------------------------------------------------------


@cache
def fields(size: int) -> np.ndarray:
    """Return so many bytes of air temperature, as float32 in hundredths of a kelvin.

    Raises
    ------
    MissingDependencyError
        If the data, or what reads them, is not installed.
    """
    try:
        import h5py  # netCDF-4 is HDF5
        import iris_sample_data
    except ImportError as error:
        raise MissingDependencyError(
            f"this part takes real fields: {error}; install iris-sample-data and h5py"
        ) from None
    with h5py.File(Path(iris_sample_data.path) / "A1B_north_america.nc") as data:
        years = data["air_temperature"][:].astype("f4")
    fine = years.repeat(8, axis=1).repeat(8, axis=2)
    for axis in (1, 2):  # between the points of the grid it goes from one to the next
        fine = np.mean([np.roll(fine, step, axis) for step in range(8)], axis=0, dtype="f4")
    wanted = size // 4
    tiled = np.resize(fine.ravel(), wanted)
    noise = np.random.default_rng(0).normal(0, 0.05, wanted).astype("f4")
    return np.round(tiled + noise, 2, out=tiled)


def _written(folder: Path, data: Any, chunk: int, codec: str, share: float) -> float:
    """Return the time to write an array of which a share of the chunks is there already."""
    there = int(len(data) * share) // (chunk // 4) * (chunk // 4)
    if there:
        _write(folder / "data", data[:there], chunk, codec)
    _synchronize()
    start = perf_counter()
    _write(folder / "data", data, chunk, codec)
    _synchronize()
    took = perf_counter() - start
    _clear(folder)
    return took


def _clear(folder: Path) -> None:
    """Delete the repositories in a folder: all of them would fill a disk."""
    for each in folder.iterdir():
        shutil.rmtree(each)


def _write(folder: Path, data: Any, chunk: int, codec: str) -> None:
    from zarr.codecs import ZstdCodec
    from zarr.codecs.numcodecs import LZ4

    compressor = ZstdCodec(level=3) if codec == "zstd" else LZ4()
    with CASStore(folder) as store:
        array = zarr.create_array(
            store,
            name="data",
            shape=(data.nbytes // 4,),
            chunks=(chunk // 4,),
            dtype="f4",
            compressors=compressor,
            overwrite=True,
        )
        array[:] = data.view("f4")
        store.commit("data")


def _read(folder: Path) -> Any:
    with CASStore(folder, version="main") as store:
        return zarr.open_array(store, path="data", mode="r")[:]


def _random(size: int) -> Any:
    import cupy

    return cupy.asarray(np.frombuffer(np.random.default_rng(0).bytes(size), np.uint8))


def _timed(call: Callable[[], Any], *, calls: int = 1, rounds: int = ROUNDS) -> float:
    """Return the median time of a call, the device's work in; the first round is left out.

    It compiles kernels, and has memory allocated and pinned that is kept from then on.
    """
    times = []
    for _ in range(rounds + 1):
        _synchronize()
        start = perf_counter()
        for _ in range(calls):
            call()
        _synchronize()
        times.append((perf_counter() - start) / calls)
    return median(times[1:])


def _synchronize() -> None:
    import cupy

    cupy.cuda.get_current_stream().synchronize()


def _device() -> dict[str, str]:
    """Return the device, its driver, and what works on it."""
    import cupy

    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    return {
        "gpu": name,
        "driver": f"CUDA {runtime.driverGetVersion()}",
        "cupy": f"CuPy {cupy.__version__}, CUDA {runtime.runtimeGetVersion()}",
        "nvcomp": f"nvCOMP {MAJOR}",
    }


if __name__ == "__main__":
    sys.exit(main())
