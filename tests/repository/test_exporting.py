"""Export of versions, parts and differences to CAR files, and their import."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from syncing import array, commit, contents, grid, held

from cas_zarr.blocks import disk
from cas_zarr.blocks.carfile import CarBlocks
from cas_zarr.cid import (
    BLAKE3,
    DAG_CBOR,
    DAG_JSON,
    RAW,
    SHA256,
    CidBytes,
    cid_of,
    codec_of,
    format_cid,
)
from cas_zarr.codecs.car import CarReader, CarWriter
from cas_zarr.errors import (
    BlockNotFoundError,
    CasZarrError,
    ConflictError,
    CorruptBlockError,
    FormatError,
    InvalidArgumentError,
    NotFoundError,
    ReadOnlyError,
    RemoteError,
    StorageError,
    VersionNotFoundError,
)
from cas_zarr.mapping import CASMapping
from cas_zarr.repository.applying import import_car
from cas_zarr.repository.exporting import CarNote, export
from cas_zarr.repository.repository import Repository
from cas_zarr.tree.walk import reachable

FIRST = {"zarr.json": b'{"zarr_format":3,"node_type":"group"}', **grid("a/t", 30), "a/big": b""}
FIRST["a/big"] = bytes(range(256)) * 10_000


@pytest.fixture
def repo() -> Repository:
    """Return a repository with two commits."""
    repo = Repository.memory()
    commit(repo, FIRST, "one")
    commit(repo, {"a/t/c/3/4": b"news", "a/t/c/0/0": None}, "two")
    return repo


def sections(path: Path) -> list[CidBytes]:
    with CarReader(path) as car:
        return [cid for cid, _ in car]


# -- export -------------------------------------------------------------------------------------


def test_a_version_is_one_car_with_all_of_it(repo: Repository, tmp_path: Path) -> None:
    path = tmp_path / "x.car"
    report = export(repo, "main", path)
    found = sections(path)
    assert report.root == repo.resolve("main").root == found[0]
    assert set(found) == {cid for _, cid in reachable(repo.blocks, report.root)}
    assert report.blocks == len(found) == len(set(found))
    assert report.size == path.stat().st_size
    assert (report.version, report.since) == (2, None)
    kinds = [codec_of(cid) in (DAG_JSON, DAG_CBOR) for cid in found]
    assert kinds == sorted(kinds, reverse=True)  # what a reader asks for first comes first
    with CarBlocks(path) as car:
        assert car.roots == (report.root,)
        mapping = CASMapping(car, car.roots[0], read_only=True)
        assert {key: bytes(value) for key, value in mapping.items()} == contents(repo)
    assert [one.name for one in tmp_path.iterdir()] == ["x.car"]


def test_the_same_data_give_the_same_bytes(repo: Repository, tmp_path: Path) -> None:
    other = Repository.open(tmp_path / "other", create=True)
    values = list(reversed(contents(repo).items()))
    for start in range(0, len(values), 150):
        commit(other, dict(values[start : start + 150]))
    for options in ({}, {"path": "a/t"}, {"path": "a/t", "box": [(0, 20), slice(4, 8)]}):
        export(repo, "main", tmp_path / "1.car", **options)
        export(other, "main", tmp_path / "2.car", **options)
        assert (tmp_path / "1.car").read_bytes() == (tmp_path / "2.car").read_bytes()


def test_what_cannot_seek_gets_version_1(repo: Repository, tmp_path: Path) -> None:
    read, write = os.pipe()
    out = tmp_path / "piped.car"

    def drain() -> None:
        with open(read, "rb") as source:
            out.write_bytes(source.read())

    thread = threading.Thread(target=drain)
    thread.start()
    with open(write, "wb") as target:
        report = export(repo, "main", target)
    thread.join()
    assert report.version == 1
    assert out.stat().st_size == report.size
    export(repo, "main", tmp_path / "x.car")
    assert sections(out) == sections(tmp_path / "x.car")
    buffer = io.BytesIO()
    export(repo, "main", buffer)
    assert buffer.getvalue() == (tmp_path / "x.car").read_bytes()


def test_a_part_is_a_dataset_of_its_own(repo: Repository, tmp_path: Path) -> None:
    report = export(repo, "main", tmp_path / "x.car", path="a/t")
    with CarBlocks(tmp_path / "x.car") as car:
        mapping = CASMapping(car, car.roots[0], read_only=True)
        here = {key: bytes(value) for key, value in mapping.items()}
    expected = {k[4:]: v for k, v in contents(repo).items() if k.startswith("a/t/")}
    assert here == expected
    other = Repository.memory()
    import_car(other, tmp_path / "x.car", branch="main")
    assert contents(other) == expected
    assert other.resolve("main").root == report.root
    with pytest.raises(NotFoundError, match="none"):
        export(repo, "main", tmp_path / "y.car", path="a/none")


@pytest.mark.parametrize("how", ["box", "path"])
def test_a_box_is_an_array_of_which_only_that_is_there(
    repo: Repository, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "x.car"
    if how == "box":
        report = export(repo, "main", path, path="a/t", box=[slice(6, 10), (8, 12)])
    else:
        report = export(repo, "main", path, path="a/t[6:10, 8:12]")
    assert report.root == export(repo, "main", io.BytesIO(), path="a/t").root
    with CarBlocks(path) as car:
        mapping = CASMapping(car, report.root, read_only=True)
        for i in range(3, 5):
            for j in range(4, 6):
                assert mapping[f"c/{i}/{j}"] == contents(repo)[f"a/t/c/{i}/{j}"]
        for key in ("c/20/20", "c/3/3"):
            with pytest.raises(BlockNotFoundError, match=r"which has the box \[6:10, 8:12\] alone"):
                mapping.get_value(key)
        assert car.note == CarNote(report.root, box="[6:10, 8:12]")
        assert sum(codec_of(cid) == RAW for cid in car.list()) == 4
    with pytest.raises(BlockNotFoundError, match=r"box \[6:10, 8:12\] alone"):
        import_car(Repository.memory(), path, branch="main")


def test_a_history_goes_along_where_it_is_asked_for(repo: Repository, tmp_path: Path) -> None:
    path = tmp_path / "x.car"
    report = export(repo, "main", path, history=True)
    assert sections(path)[0] == report.root == repo.resolve("main").commit
    other = Repository.memory()
    done = import_car(other, path, branch="main")
    assert done.commit == report.root
    assert [one.cid for one in other.log("main")] == [one.cid for one in repo.log("main")]
    for version in ("main", "main~1"):
        assert contents(other, version) == contents(repo, version)
    again = import_car(other, path, branch="main")
    assert (again.blocks, again.held) == (0, report.blocks)


def test_what_makes_no_sense_is_refused(repo: Repository, tmp_path: Path) -> None:
    root = repo.resolve("main").root
    path = tmp_path / "x.car"
    wrong: tuple[tuple[object, dict[str, object]], ...] = (
        ("main", {"path": "a", "history": True}),
        ("main", {"path": "a/t", "box": [0], "since": "main~1"}),
        ("main", {"path": "a/t[0:1]", "box": [0]}),
        ("main", {"path": "a/t", "box": "0:1"}),
        ("main", {"path": "a/t", "box": [slice(0, 4, 2)]}),
        ("main", {"path": "a/t", "box": [("x", 1)]}),
        ("main", {"path": "a", "box": [0]}),
        (root, {"history": True}),
    )
    for version, options in wrong:
        with pytest.raises(InvalidArgumentError):
            export(repo, version, path, **options)  # type: ignore[arg-type]
    for version, options in (("none", {}), ("main", {"since": "none"})):
        with pytest.raises(VersionNotFoundError):
            export(repo, version, path, **options)  # type: ignore[arg-type]
    for folder in (tmp_path, f"{tmp_path}/none/"):
        with pytest.raises(InvalidArgumentError, match="is a folder"):
            export(repo, "main", folder)
    with pytest.raises(InvalidArgumentError, match="no path of a file"):
        export(repo, "main", f"{tmp_path}/nul\0")
    closed = io.BytesIO()
    closed.close()
    for target in (5, b"x.car", io.StringIO(), closed):
        with pytest.raises(InvalidArgumentError, match="no file that is open as binary"):
            export(repo, "main", target)  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        export(repo, "main", tmp_path / "none" / "x.car")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_or_a_missing_block_leaves_what_was_there(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.car"
    path.write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(disk, name, full)
            with pytest.raises(StorageError, match="free some space"):
                export(repo, "main", path)
    repo.blocks.delete(
        next(c for _, c in reachable(repo.blocks, repo.resolve("main").root) if codec_of(c) == RAW)
    )
    with pytest.raises(BlockNotFoundError):
        export(repo, "main", path)
    assert path.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["x.car"]


def test_a_file_object_that_fails_is_told(repo: Repository, tmp_path: Path) -> None:
    path = tmp_path / "x.car"
    path.write_bytes(b"")
    with path.open("rb") as file, pytest.raises(StorageError):
        export(repo, "main", file)
    with open("/dev/full", "r+b", buffering=0) as file, pytest.raises(StorageError, match="space"):
        export(repo, "main", file)


def test_a_pipe_and_a_link_stay_what_they_are(repo: Repository, tmp_path: Path) -> None:
    whole = io.BytesIO()
    export(repo, "main", whole)
    pipe, link, real = tmp_path / "pipe", tmp_path / "latest.car", tmp_path / "far" / "x.car"
    os.mkfifo(pipe)
    read: list[bytes] = []
    thread = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    thread.start()
    report = export(repo, "main", pipe)
    thread.join(timeout=10)
    assert pipe.is_fifo()
    assert (len(read[0]), report.version) == (report.size, 1)
    real.parent.mkdir()
    link.symlink_to(real)
    for _ in range(2):  # where it leads there is no file, then there is one
        export(repo, "main", link)
        assert link.is_symlink()
        assert real.read_bytes() == whole.getvalue()
    assert {one.name for one in real.parent.iterdir()} == {"x.car"}


def test_any_name_that_a_file_may_have_is_taken(repo: Repository, tmp_path: Path) -> None:
    for name in ("\u6f22" * 85, "." * 200, os.fsdecode(b"\xff\xfe.car")):
        export(repo, "main", tmp_path / name)
        assert len(sections(tmp_path / name)) > 900


def test_a_file_that_was_opened_to_append_gets_version_1(repo: Repository, tmp_path: Path) -> None:
    path = tmp_path / "x.car"
    path.write_bytes(b"before")
    with path.open("ab") as target:
        report = export(repo, "main", target)
    assert report.version == 1
    with path.open("rb") as source:
        assert source.read(6) == b"before"
        assert import_car(Repository.memory(), source).blocks == report.blocks


# -- differences --------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [False, True])
def test_a_difference_is_applied_where_its_base_is(
    repo: Repository, tmp_path: Path, history: bool
) -> None:
    base, news = tmp_path / "base.car", tmp_path / "news.car"
    export(repo, "main~1", base, history=history)
    report = export(repo, "main", news, since="main~1", history=history)
    assert report.blocks < 8
    found = repo.resolve("main~1")
    assert report.since == (found.commit if history else found.root)
    other = Repository.memory()
    with pytest.raises(BlockNotFoundError) as caught:
        import_car(other, news, branch="main")
    assert format_cid(report.since) in str(caught.value)
    assert format_cid(report.root) in str(caught.value)
    assert other.branches() == {}
    import_car(other, base, branch="main")
    done = import_car(other, news, branch="main")
    assert done.since == report.since
    assert contents(other) == contents(repo)
    assert len(list(other.log("main"))) == 2
    note = sections(news)[0]
    assert note not in held(other)
    with CarBlocks(news) as car, CarBlocks(base) as whole:
        assert whole.note is None
        with pytest.raises(
            BlockNotFoundError, match=f"was new since .* {format_cid(report.since)}"
        ):
            car.get(whole.roots[0])


def test_a_difference_of_equal_versions_and_of_a_new_part(repo: Repository, tmp_path: Path) -> None:
    path = tmp_path / "x.car"
    assert export(repo, "main", path, since="main").blocks == 0
    import_car(repo, path, branch="main")
    commit(repo, grid("b", 3), "b")
    report = export(repo, "main", path, path="b", since="main~1")
    assert report.since is None
    import_car(Repository.memory(), path, branch="main")


def test_a_note_is_read_as_it_was_written_and_nothing_else_is_one() -> None:
    root = CidBytes(bytes([1, 0x71, 0x1E, 32]) + bytes(32))
    for note in (CarNote(root, root), CarNote(root, None, "[0:1]")):
        assert CarNote.from_block(*note.to_block()) == note
    cid, data = note.to_block()
    newer = data.replace(b"gversion\x01", b"gversion\x02")
    assert newer != data
    for other in (b"", data[:-1], data.replace(b"root", b"toor"), data + bytes(5000), newer):
        assert CarNote.from_block(cid, other) is None


# -- import -------------------------------------------------------------------------------------


def test_a_root_becomes_a_commit_or_what_the_branch_shows(repo: Repository, tmp_path: Path) -> None:
    path = tmp_path / "x.car"
    root = export(repo, "main", path).root
    other = Repository.memory(author="A <a@b.c>")
    report = import_car(other, path, branch="main", commit=False)
    assert report.commit is None
    assert other.record("main").work == root == report.root  # type: ignore[union-attr]
    report = import_car(other, path, branch="main", message="taken over")
    entry = next(iter(other.log("main")))
    assert (entry.cid, entry.commit.message, entry.commit.author) == (
        report.commit,
        "taken over",
        "A <a@b.c>",
    )
    assert import_car(other, path, branch="main").commit == report.commit
    assert import_car(other, path, branch="new").commit != report.commit


def test_without_a_branch_nothing_moves(repo: Repository, tmp_path: Path) -> None:
    path = tmp_path / "x.car"
    report = export(repo, "main", path)
    other = Repository.open(tmp_path / "other", create=True)
    done = import_car(other, path)
    assert (done.roots, done.root, done.branch, done.commit) == (
        (report.root,),
        report.root,
        None,
        None,
    )
    assert done.blocks == report.blocks
    assert other.branches() == {}
    assert contents(other, report.root) == contents(repo)


def test_nothing_of_a_branch_is_dropped(repo: Repository, tmp_path: Path) -> None:
    whole, history = tmp_path / "x.car", tmp_path / "h.car"
    export(repo, "main", whole)
    export(repo, "main", history, history=True)
    other = Repository.memory()
    mine = commit(other, {"mine": b"1"}, "mine")
    for path in (whole, history):
        with pytest.raises(ConflictError, match="another branch"):
            import_car(other, path, branch="main")
    with other.session() as session:
        session.prepare().set_value("more", b"2")
        session.flush()
    before = other.record("main")
    for path in (whole, history):
        with pytest.raises(ConflictError, match="work that no commit has"):
            import_car(other, path, branch="main")
    assert other.record("main") == before
    done = import_car(other, whole, branch="main", replace=True)
    assert other.resolve("main~1").commit == mine
    assert contents(other) == contents(repo)
    assert done.commit == other.resolve("main").commit


def test_an_older_commit_does_not_take_a_branch_back(repo: Repository, tmp_path: Path) -> None:
    export(repo, "main~1", tmp_path / "x.car", history=True)
    before = repo.record("main")
    with pytest.raises(ConflictError):
        import_car(repo, tmp_path / "x.car", branch="main")
    assert repo.record("main") == before


def damaged(data: bytes) -> list[tuple[str, bytes]]:
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    return [("cut", data[:middle]), ("flipped", flipped), ("empty", b""), ("page", b"<html>")]


def test_a_damaged_car_moves_nothing_and_is_taken_up_again(
    repo: Repository, tmp_path: Path
) -> None:
    path = tmp_path / "x.car"
    report = export(repo, "main", path)
    whole = path.read_bytes()
    other = Repository.open(tmp_path / "other", create=True)
    for name, data in damaged(whole):
        path.write_bytes(data)
        with pytest.raises((FormatError, CorruptBlockError), match=r"x\.car"):
            import_car(other, path, branch="main")
        assert other.branches() == {}, name
    again = Repository.open(tmp_path / "other")
    before = len(held(again))
    assert before
    path.write_bytes(whole)
    done = import_car(again, path, branch="main")
    assert (done.held, done.blocks) == (before, report.blocks - before)
    assert contents(again) == contents(repo)


def test_a_car_whose_root_is_no_version_or_many_moves_nothing(
    repo: Repository, tmp_path: Path
) -> None:
    path = tmp_path / "x.car"
    root = repo.resolve("main").root
    chunk = next(c for _, c in reachable(repo.blocks, root) if codec_of(c) == RAW)
    other = Repository.memory()
    for roots in ([chunk], [], [chunk, chunk]):
        with path.open("wb") as file:
            writer = CarWriter(file, roots)
            writer.put(chunk, repo.blocks.get(chunk))
            writer.finish()
        with pytest.raises(InvalidArgumentError, match="import it without a branch"):
            import_car(other, path, branch="main")
        assert import_car(other, path).held == 1
    with path.open("wb") as file:
        CarWriter(file, [root]).finish()
    with pytest.raises(BlockNotFoundError, match=format_cid(root)):
        import_car(other, path)
    assert other.branches() == {}


def foreign(cid: CidBytes, data: bytes) -> io.BytesIO:
    stream = io.BytesIO()
    writer = CarWriter(stream, [cid])
    writer.put(cid, data)
    writer.finish()
    stream.seek(0)
    return stream


@pytest.mark.parametrize(
    ("codec", "data"),
    [(DAG_CBOR, b"\xa1aa\x01"), (DAG_CBOR, b"no cbor"), (DAG_JSON, b'{"a":1}'), (DAG_JSON, b"{")],
)
def test_what_others_made_is_kept_and_moves_no_branch(codec: int, data: bytes) -> None:
    cid = cid_of(codec, SHA256, data)
    other = Repository.memory()
    report = import_car(other, foreign(cid, data))
    assert (report.roots, report.root, report.blocks) == ((cid,), None, 1)
    assert other.blocks.get(cid) == data
    with pytest.raises(InvalidArgumentError, match="import it without a branch"):
        import_car(other, foreign(cid, data), branch="main")
    inline = CidBytes(b"\x01\x55\x00\x03abc")
    assert import_car(other, foreign(inline, b"abc")).roots == (inline,)


def test_a_version_of_a_newer_release_is_refused() -> None:
    data = b'{"header":{"hash":"blake3","type":"cas-zarr/root","version":99}}'
    cid = cid_of(DAG_JSON, BLAKE3, data)
    with pytest.raises(FormatError, match="99"):
        import_car(Repository.memory(), foreign(cid, data))


def test_pieces_that_come_in_any_order_make_a_whole(repo: Repository, tmp_path: Path) -> None:
    path = tmp_path / "x.car"
    root = export(repo, "main", path).root
    with CarReader(path) as car:
        blocks = list(car)
    other = Repository.open(tmp_path / "other", create=True)
    for rows in (range(1, len(blocks), 2), range(0, len(blocks), 2)):
        stream = io.BytesIO()
        writer = CarWriter(stream, [root], version=1)
        for row in reversed(rows):
            writer.put(*blocks[row])
        writer.finish()
        stream.seek(0)
        if rows[0]:
            with pytest.raises(BlockNotFoundError):
                import_car(other, stream, branch="main")
        else:
            import_car(other, stream, branch="main")
    assert contents(other) == contents(repo)


def test_a_version_that_is_hurt_does_not_stop_the_import_of_another(
    repo: Repository, tmp_path: Path
) -> None:
    export(repo, "main", tmp_path / "x.car")
    other = Repository.memory()
    commit(other, {"mine": b"1"}, "mine")
    other.blocks.delete(other.resolve("main").root)
    import_car(other, tmp_path / "x.car", branch="theirs")
    assert contents(other, "theirs") == contents(repo)


def test_a_name_that_is_no_text_makes_a_message(repo: Repository, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.car")
    export(repo, "main", path)
    other = Repository.open(tmp_path / "other", create=True)
    import_car(other, path, branch="main")
    assert next(iter(other.log("main"))).commit.message == "import ?.car"
    assert [move.ref for move in other.refs.log("main")] == ["heads/main"]


def test_an_import_goes_on_beside_a_collection(repo: Repository, tmp_path: Path) -> None:
    path = tmp_path / "x.car"
    export(repo, "main", path)
    other = Repository.open(tmp_path / "other", create=True)
    import_car(other, path)  # garbage, as no ref leads to it
    beside = Repository.open(tmp_path / "other")
    assert beside.gc().condemned_blocks
    import_car(other, path, branch="main")
    assert beside.gc(grace=timedelta(0)).deleted_blocks == 0
    assert contents(Repository.open(tmp_path / "other")) == contents(repo)


def test_a_car_is_imported_from_a_server(repo: Repository, tmp_path: Path) -> None:
    export(repo, "main", tmp_path / "x.car")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/x.car"
        other = Repository.memory()
        report = import_car(other, url, branch="main")
        with pytest.raises(RemoteError, match=r"none\.car answered with status 404"):
            import_car(other, url.replace("x.car", "none.car"), branch="new")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert report.source == url
    assert next(iter(other.log("main"))).commit.message == "import x.car"
    assert contents(other) == contents(repo)


def test_a_read_only_repository_and_what_is_no_car_are_refused(tmp_path: Path) -> None:
    Repository.open(tmp_path / "r", create=True)
    with pytest.raises(ReadOnlyError):
        import_car(Repository.open(tmp_path / "r", read_only=True), tmp_path / "x.car")
    with pytest.raises(StorageError):
        import_car(Repository.open(tmp_path / "r"), tmp_path / "x.car")
    with pytest.raises(InvalidArgumentError):
        import_car(Repository.open(tmp_path / "r"), 5)  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        import_car(Repository.prepare(tmp_path / "new"), tmp_path / "x.car")
    assert not (tmp_path / "new").exists()


def test_errors_name_what_is_missing(repo: Repository) -> None:
    root = repo.resolve("main").root
    stream = io.BytesIO()
    writer = CarWriter(stream, [root])
    gone = [c for _, c in reachable(repo.blocks, root)][-2:]
    for _, cid in reachable(repo.blocks, root):
        if cid not in gone:
            writer.put(cid, repo.blocks.get(cid))
    writer.finish()
    stream.seek(0)
    with pytest.raises(CasZarrError, match="2 blocks that it leads to are missing") as caught:
        import_car(Repository.memory(), stream)
    assert any(format_cid(cid) in str(caught.value) for cid in gone)


def test_a_block_that_is_its_own_cid_is_passed_over(repo: Repository) -> None:
    root = repo.resolve("main").root
    stream = io.BytesIO()
    export(repo, "main", stream)
    stream.seek(0)
    with CarReader(stream) as car:
        blocks = list(car)
    stream = io.BytesIO()
    writer = CarWriter(stream, [root])
    for prefix in (b"\x01\x55", b"\x01\xa9\x02"):
        writer.put(CidBytes(prefix + b"\x00\x02hi"), b"hi")
    for cid, data in blocks:
        writer.put(cid, data)
    writer.finish()
    stream.seek(0)
    report = import_car(Repository.memory(), stream, branch="main")
    assert report.blocks == len(blocks)


def test_progress_is_told(repo: Repository, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    note: Callable[[int, int], None] = lambda blocks, size: told.append((blocks, size))  # noqa: E731
    report = export(repo, "main", tmp_path / "x.car", progress=note)
    assert told[-1][0] == report.blocks
    told.clear()
    other = Repository.memory()
    done = import_car(other, tmp_path / "x.car", progress=note)
    assert told[-1] == (done.blocks, done.size)
    told.clear()
    assert import_car(other, tmp_path / "x.car", progress=note).blocks == 0
    assert told[-1] == (done.blocks, done.size)  # what was read, whether it was here or not


def test_a_box_of_an_array_of_more_chunks_than_there_can_be(tmp_path: Path) -> None:
    repo = Repository.memory()
    commit(repo, {"zarr.json": array((1 << 70,), (1,)), "c/7": b"1"})
    assert export(repo, "main", tmp_path / "x.car", box=[slice(None)]).blocks == 2


def test_an_array_without_chunks_is_exported(tmp_path: Path) -> None:
    repo = Repository.memory()
    commit(repo, {"zarr.json": array((4,), (2,))}, "empty")
    export(repo, "main", tmp_path / "x.car", box=[slice(0, 2)])
    import_car(Repository.memory(), tmp_path / "x.car", branch="main")
