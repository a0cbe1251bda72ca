"""nvCOMP's own formats as codecs of zarr: their configuration, their layout, and both ways.

The device is a stand-in (see fakecupy.py), and so are the streams, but for those of the library
that nvCOMP has for hosts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from gpu.arrays import create, field
from gpu.fakecupy import DeviceArray, Fake, on_device
from gpu.hostformats import deflated
from zarr.core import codec_pipeline
from zarr.core.array_spec import ArrayConfig, ArraySpec
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.core.dtype import UInt8
from zarr.registry import get_codec_class
from zarr.storage import MemoryStore

from cas_zarr import CASStore, gpu
from cas_zarr.errors import FormatError, InvalidArgumentError, MissingDependencyError
from cas_zarr.gpu import gdeflate
from cas_zarr.gpu.formats import Ans, Bitcomp, Cascaded, Gdeflate
from cas_zarr.gpu.nvcomp import MAJOR
from cas_zarr.gpu.pieces import PIECE, Layout, count_pieces, piece_sizes

CODECS = {
    "ans": Ans(),
    "bitcomp": Bitcomp(),
    "sparse bitcomp": Bitcomp(algorithm="sparse"),
    "cascaded": Cascaded(level=7),
    "gdeflate": Gdeflate(level=5),
}
each = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
own_library = pytest.mark.skipif(
    not gdeflate.has_library(), reason="no library of nvCOMP for hosts is installed"
)


# -- metadata -------------------------------------------------------------------------------------


@each
def test_a_configuration_survives_json(codec: Any) -> None:
    read = json.loads(json.dumps(codec.to_dict()))
    assert get_codec_class(read["name"]).from_dict(read) == codec


def test_zarr_finds_them_without_anything_of_cuda() -> None:
    code = """
import sys
sys.modules["cupy"] = None  # zarr loads it where it is installed
from zarr.registry import get_codec_class
names = ["cas_zarr.ans", "cas_zarr.bitcomp", "cas_zarr.cascaded", "cas_zarr.gdeflate"]
found = [get_codec_class(name).__name__ for name in names]
assert "cas_zarr.gpu.pipeline" not in sys.modules
print(*found)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["Ans", "Bitcomp", "Cascaded", "Gdeflate"]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        *(("float16", "uint16"), ("float32", "uint32"), ("float64", "uint64"), ("bool", "uint8")),
        *(("int8", "int8"), ("int32", "int32"), ("uint64", "uint64"), ("datetime64[s]", "int64")),
        *(("complex64", "uint32"), ("complex128", "uint64"), ("<U3", "uint32"), ("S8", "uint8")),
    ],
)
@pytest.mark.filterwarnings("ignore:The data type")
def test_the_data_type_is_that_of_the_array(dtype: str, expected: str) -> None:
    for codec in (Bitcomp(), Cascaded()):
        array = zarr.create_array({}, shape=(4,), dtype=dtype, compressors=[codec])
        assert array.compressors[0].data_type == expected
    array = zarr.create_array({}, shape=(4,), dtype=dtype, compressors=[Bitcomp("int16")])
    assert array.compressors[0].data_type == "int16"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Bitcomp("float32"),
        lambda: Bitcomp(algorithm="dense"),
        lambda: Cascaded(level=8),
        lambda: Cascaded(level=-1),
        lambda: Gdeflate(level=6),
        lambda: Gdeflate(level=True),
        lambda: Gdeflate.from_dict({"name": "cas_zarr.gdeflate", "configuration": {"levels": 1}}),
        lambda: Ans.from_dict({"name": "cas_zarr.ans", "configuration": {"level": 1}}),
        lambda: Ans.from_dict({"name": "cas_zarr.ans", "configuration": [1]}),
    ],
)
def test_a_wrong_configuration_is_refused(make: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="cas_zarr"):
        make()


# -- layout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 7])
def test_a_layout_is_read_as_it_was_written(size: int) -> None:
    sizes = piece_sizes(size)
    assert sizes.sum() == size
    lengths = np.arange(1, len(sizes) + 1) * 7
    layout = Layout.of(size, lengths)
    assert layout.head()[:16] == size.to_bytes(8, "little") + bytes([0, 0, 1, 0, MAJOR, 0, 0, 0])
    assert len(layout.head()) % 16 == 0
    assert (layout.starts % 16 == 0).all()
    assert (layout.starts[1:] - layout.starts[:-1] - layout.lengths[:-1] < 16).all()
    assert count_pieces(layout.head()[:16], layout.end, "x") == (size, len(sizes))
    table = layout.head()[16 : 16 + 4 * len(sizes)]
    read = Layout.read(size, table, layout.end, "x")
    assert (read.starts == layout.starts).all()
    for wrong in (layout.end - 1, layout.end + 1):
        with pytest.raises(FormatError, match=r"x has \d+ bytes"):
            Layout.read(size, table, wrong, "x")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (bytes(15), "fewer than its head"),
        (bytes(8) + bytes([0, 0, 2, 0, MAJOR, 0, 0, 0]), "pieces of 131072"),
        (bytes(8) + bytes([0, 0, 1, 0, 99, 0, 0, 0]), "nvCOMP 99"),
        (bytes(7) + bytes([255, 0, 0, 1, 0, MAJOR, 0, 0, 0]), "claims"),
    ],
)
def test_a_claim_that_cannot_be_is_refused(head: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        count_pieces(head, len(head), "x")


# -- both ways ------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("chunk", [(3, 5), (64, 64), (128, 129), (256, 256)], ids=str)
def test_a_device_reads_what_it_wrote(
    fake: Fake, tmp_path: Path, codec: Any, chunk: tuple[int, int]
) -> None:
    shape = (256, 256) if chunk[0] > 3 else (20, 31)  # of at most 64 chunks: one batch
    data = field(shape)
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        create(store, [codec], shape, chunk)[:] = on_device(data)
        store.commit("written on a device")
        found = zarr.open_array(CASStore(tmp_path / "repository", read_only=True))[:]
    assert isinstance(found, DeviceArray)
    np.testing.assert_array_equal(found.get(), data)
    calls = [name for name in fake.library.calls if name.endswith("CompressAsync")]
    assert len(calls) == 1
    for key in store._tree.mapping.list_keys("c/"):
        value = store._tree.mapping[key]
        size, count = count_pieces(value[:16], len(value), "x")
        layout = Layout.read(size, value[16 : 16 + 4 * count], len(value), "x")
        ends = [16 + 4 * count, *(layout.starts + layout.lengths)[:-1]]
        for end, start in zip(ends, layout.starts, strict=True):
            assert not any(value[end:start])


@each
@pytest.mark.usefixtures("fake")
def test_arrays_of_a_host_are_encoded_on_the_device(tmp_path: Path, codec: Any) -> None:
    data = field()
    device, enabled, plain = (CASStore(tmp_path / name) for name in ("device", "enabled", "plain"))
    with gpu.enabled():
        create(device, [codec])[:] = on_device(data)
        create(enabled, [codec])[:] = data
    create(plain, [codec])[:] = data  # zarr's own pipeline, which keeps chunks on the host
    found = zarr.open_array(plain, mode="r")[:]
    assert type(found) is np.ndarray
    np.testing.assert_array_equal(found, data)
    assert device.flush() == enabled.flush() == plain.flush()


@pytest.mark.skipif(
    not hasattr(codec_pipeline, "FusedCodecPipeline"), reason="this zarr has no such pipeline"
)
@each
@pytest.mark.usefixtures("fake")
def test_the_fused_pipeline_of_zarr(tmp_path: Path, codec: Any) -> None:
    data = field()
    fused, batched = (CASStore(tmp_path / name) for name in ("fused", "batched"))
    create(batched, [codec])[:] = data
    with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline"}):
        create(fused, [codec])[:] = data
        np.testing.assert_array_equal(zarr.open_array(fused, mode="r")[:], data)
    assert fused.flush() == batched.flush()


def test_arrays_of_a_host_are_halved_too(fake: Fake, tmp_path: Path) -> None:
    data = field((512, 64))
    with zarr.config.set({"codec_pipeline.batch_size": 64}):
        array = create(CASStore(tmp_path / "repository"), [Ans()], data.shape)
        fake.memory.largest = 40_000
        array[:] = data  # eight chunks of 16 KiB
        fake.memory.clear()
        np.testing.assert_array_equal(array[:], data)
    assert sum(name.endswith("ANSCompressAsync") for name in fake.library.calls) > 1


@each
@pytest.mark.usefixtures("fake")
def test_equal_chunks_have_equal_values(tmp_path: Path, codec: Any) -> None:
    data = np.tile(field((64, 64)), (4, 1))
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        create(store, [codec], data.shape)[:] = on_device(data)  # memory holds what was there
    mapping = store._tree.mapping
    assert len({mapping.cid_of(f"c/{row}/0") for row in range(4)}) == 1


@each
@pytest.mark.usefixtures("fake")
def test_a_chunk_of_no_bytes(codec: Any) -> None:
    prototype = default_buffer_prototype()
    spec = ArraySpec((0,), UInt8(), 0, ArrayConfig.from_dict({}), prototype)
    encoded = codec._encode_sync(prototype.buffer.from_bytes(b""), spec)
    assert encoded.to_bytes() == bytes(10) + bytes([1, 0, MAJOR, 0, 0, 0])
    assert codec._decode_sync(encoded, spec).to_bytes() == b""


@pytest.mark.usefixtures("fake")
def test_a_chunk_is_a_whole_number_of_elements(tmp_path: Path) -> None:
    data = np.arange(7, dtype="uint8")
    with gpu.enabled():
        store = CASStore(tmp_path / "repository")
        array = zarr.create_array(store, shape=7, dtype="uint8", compressors=[Bitcomp("int16")])
        with pytest.raises(InvalidArgumentError, match=r"give cas_zarr\.bitcomp the data_type"):
            array[:] = data
        array = zarr.create_array(
            store, shape=7, dtype="uint8", compressors=[Bitcomp("uint8")], overwrite=True
        )
        array[:] = data
        np.testing.assert_array_equal(array[:].get(), data)


@pytest.mark.filterwarnings("ignore:Creating a zarr.buffer.gpu.Buffer")  # zarr 3.1.0, of its own
def test_shards_and_missing_chunks(fake: Fake, tmp_path: Path) -> None:
    data = field()
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        array = zarr.create_array(
            store,
            shape=data.shape,
            shards=(128, 128),
            chunks=(64, 64),
            dtype="float32",
            compressors=[Bitcomp()],
        )
        array[:128] = on_device(data[:128])
        array[200:210, 3:7] = on_device(data[200:210, 3:7])
        found = array[:].get()
    expected = np.zeros_like(data)
    expected[:128], expected[200:210, 3:7] = data[:128], data[200:210, 3:7]
    np.testing.assert_array_equal(found, expected)
    assert fake.library.decoded


def test_a_batch_is_halved_while_memory_does_not_suffice(fake: Fake, tmp_path: Path) -> None:
    data = field((512, 64))
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        array = create(store, [Bitcomp()], data.shape)
        given = on_device(data)
        fake.memory.largest = 40_000  # two chunks of 16 KiB
        array[:] = given
        fake.memory.clear()
        assert sum(name.endswith("BitcompCompressAsync") for name in fake.library.calls) == 4
        np.testing.assert_array_equal(array[:].get(), data)


# -- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value[:-1], "the last ends at"),
        (lambda value: value + b"\0", "the last ends at"),
        (lambda value: value[:12] + b"\7" + value[13:], "nvCOMP 7"),
        (lambda value: bytes([1]) + value[1:], "do not decode to their sizes"),
        (lambda value: value[:5], "fewer than its head"),
        (lambda value: value[:7] + b"\1" + value[8:], "claims"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_values_that_are_none_of_the_format(tmp_path: Path, change: Any, message: str) -> None:
    store = CASStore(tmp_path / "repository")
    with gpu.enabled():
        array = create(store, [Ans()], (64, 64))
        array[:] = on_device(field((64, 64)))
        mapping = store._tree.mapping
        mapping["c/0/0"] = change(mapping["c/0/0"])
        with pytest.raises(FormatError, match=message):
            array[:]


def test_without_a_device_arrays_open_and_chunks_say_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    for name, codec in CODECS.items():
        store = CASStore(tmp_path / name)
        create(store, [codec])
        array = zarr.open_array(store)
        assert (array[:] == 0).all()  # no chunk, nothing to decode
        with pytest.raises(MissingDependencyError, match=f"{codec.name} are encoded on a GPU only"):
            array[:] = 1
        if codec.name == Gdeflate.name:
            monkeypatch.setattr(gdeflate, "find_library", lambda _: None)
            gdeflate._library.cache_clear()
        store._tree.mapping["c/0/0"] = Layout.of(0, piece_sizes(0)).head()
        with pytest.raises(
            MissingDependencyError, match=r"decoded on a GPU only.*install cas_zarr"
        ):
            array[:]
    gdeflate._library.cache_clear()


# -- the library for hosts ------------------------------------------------------------------------


def value_of(data: bytes) -> bytes:
    """Return a value of cas_zarr.gdeflate, as an encoder of a device lays it out."""
    streams = [deflated(data[at : at + PIECE]) for at in range(0, len(data), PIECE)]
    layout = Layout.of(len(data), np.array([len(stream) for stream in streams], np.int64))
    padded = [stream + bytes(-len(stream) % 16) for stream in streams]
    return (layout.head() + b"".join(padded))[: layout.end]


@own_library
@pytest.mark.parametrize("side", [1, 128, 129, 500])
def test_a_host_reads_gdeflate(tmp_path: Path, side: int) -> None:
    data = field((side, side))
    store = CASStore(tmp_path / "repository")
    create(store, [Gdeflate()], data.shape, data.shape)
    store._tree.mapping["c/0/0"] = value_of(data.tobytes())
    np.testing.assert_array_equal(zarr.open_array(store, mode="r")[:], data)


@own_library
def test_what_was_not_verified_is_decoded_on_the_host(fake: Fake) -> None:
    data = field((129, 129))
    values: Any = {}
    options: Any = {"shape": data.shape, "chunks": data.shape, "dtype": "f4"}
    zarr.create_array(MemoryStore(values), compressors=[Gdeflate()], **options)
    values["c/0/0"] = cpu.Buffer.from_bytes(value_of(data.tobytes()))
    with gpu.enabled():
        array = zarr.open_array(MemoryStore(values))
        np.testing.assert_array_equal(array[:].get(), data)
    assert fake.library.decoded == 0


@own_library
def test_wrong_streams_of_gdeflate_are_refused() -> None:
    data = field((100, 100)).tobytes()
    stream = deflated(data)
    assert gdeflate.decompress(stream, len(data)) == data
    for size in (len(data) - 1, len(data) + 1):
        with pytest.raises(FormatError, match="does not decode"):
            gdeflate.decompress(stream, size)
    with pytest.raises(FormatError, match="does not decode"):
        gdeflate.decompress(stream[: len(stream) // 2], len(data))
    random = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(stream)
        for at in random.integers(0, len(stream), 3):
            changed[at] ^= int(random.integers(1, 256))
        try:
            assert len(gdeflate.decompress(bytes(changed), len(data))) == len(data)
        except FormatError:
            continue
