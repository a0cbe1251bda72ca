"""The import of a hierarchy: exact, repeatable, and never half mixed with something else."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from cas_zarr import Repository
from cas_zarr.errors import InvalidArgumentError, InvalidKeyError, NotFoundError, StorageError
from cas_zarr.repository import imports
from cas_zarr.repository.imports import import_zarr

GROUP = b'{"node_type":"group","zarr_format":3}'


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def test_every_file_comes_through(tmp_path: Path) -> None:
    files = {
        "zarr.json": GROUP,
        "a/zarr.json": b"{}",
        "a/c/0/0": b"",
        "a/c/0/1": os.urandom(100),
        "a/big": os.urandom((1 << 20) + 1),
        ".hidden/ünïcode name": b"x",
    }
    source = write(tmp_path / "source", files)
    calls: list[tuple[int, int]] = []
    session = Repository.memory().session()
    done = import_zarr(source, session, progress=lambda done, total: calls.append((done, total)))
    total = sum(map(len, files.values()))
    assert (done.keys, done.size, done.path) == (len(files), total, "")
    assert dict(session.mapping) == files
    assert calls[-1] == (total, total)
    assert not session.dirty


def test_links_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"c/0": b"chunk"})
    source = write(tmp_path / "source", {"zarr.json": GROUP})
    (source / "a").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    session = Repository.memory().session()
    import_zarr(source, session)
    assert session.mapping["a/c/0"] == b"chunk"


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"zarr.json": GROUP, "a/b": b""})
    (source / "a" / "again").symlink_to(source, target_is_directory=True)
    session = Repository.memory().session()
    with pytest.raises((InvalidArgumentError, StorageError)):
        import_zarr(source, session)
    assert not list(session.mapping)


def test_it_is_durable_on_the_way_and_seen_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "_FLUSH_BYTES", 1000)
    monkeypatch.setattr(imports, "_BATCH_KEYS", 2)
    files = {f"c/{number}": bytes([number]) * 100 for number in range(30)} | {"zarr.json": GROUP}
    source = write(tmp_path / "source", files)
    repository = Repository.open(tmp_path / "repository", create=True)
    session = repository.session()
    durable: list[int] = []

    def look(*_: int) -> None:
        record = repository.record("main")
        assert record is None or record.work is None
        if session.root is not None:
            other = Repository.open(tmp_path / "repository")
            durable.append(len(other.at(session.root)))

    import_zarr(source, session, progress=look)
    assert 0 < durable[0] < len(files)
    assert len(repository.session().mapping) == len(files)


def test_an_interrupted_import_goes_on(tmp_path: Path) -> None:
    files = {f"c/{number}": b"%d" % number for number in range(1000)} | {"zarr.json": GROUP}
    source = write(tmp_path / "source", files)
    repository = Repository.memory()

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    session = repository.session()
    with pytest.raises(KeyboardInterrupt):
        import_zarr(source, session, progress=interrupt)
    session.discard()
    again = repository.session()
    assert not list(again.mapping)
    import_zarr(source, again)
    assert dict(again.mapping) == files


def test_parents_of_each_format(tmp_path: Path) -> None:
    session = Repository.memory().session()
    import_zarr(write(tmp_path / "3", {"zarr.json": GROUP}), session, path="/three/x/")
    import_zarr(write(tmp_path / "2", {".zgroup": b"{}"}), session, path="two/x/y")
    assert set(session.mapping) == {
        "zarr.json",  # the root was there when the second came
        "three/zarr.json",
        "three/x/zarr.json",
        "two/.zgroup",
        "two/x/.zgroup",
        "two/x/y/.zgroup",
    }


def test_replace_removes_what_the_source_has_not(tmp_path: Path) -> None:
    session = Repository.memory().session()
    old = write(tmp_path / "old", {"zarr.json": GROUP, "c/0": b"0", "c/1": b"1"})
    new = write(tmp_path / "new", {"zarr.json": GROUP, "c/0": b"new"})
    import_zarr(old, session, path="a")
    import_zarr(old, session, path="b")
    root = session.root
    with pytest.raises(InvalidArgumentError, match=r"a holds 'a/c/1'.*another path"):
        import_zarr(new, session, path="a")
    assert session.flush() == root
    import_zarr(new, session, path="a", replace=True)
    assert set(session.mapping.list_keys("a/")) == {"a/zarr.json", "a/c/0"}
    assert session.mapping["b/c/1"] == b"1"


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    session = Repository.memory().session()
    with pytest.raises(NotFoundError, match="does not exist"):
        import_zarr(tmp_path / "nothing", session)
    with pytest.raises(NotFoundError, match="no zarr array or group"):
        import_zarr(write(tmp_path / "x", {"a": b""}), session)
    with pytest.raises(InvalidKeyError):
        import_zarr(write(tmp_path / "y", {"zarr.json": GROUP}), session, path="a/../b")
    secret = write(tmp_path / "z", {"zarr.json": GROUP}) / "c"
    secret.symlink_to(tmp_path / "gone")
    with pytest.raises(InvalidArgumentError, match="link to nothing"):
        import_zarr(tmp_path / "z", session)
    os.mkfifo(write(tmp_path / "pipe", {"zarr.json": GROUP}) / "0")
    with pytest.raises(InvalidArgumentError, match="neither a file nor a folder"):
        import_zarr(tmp_path / "pipe", session)
    inside = Repository.prepare(tmp_path / "y" / "repository").session()
    with pytest.raises(InvalidArgumentError, match="holds the repository"):
        import_zarr(tmp_path / "y", inside)
    assert not list(session.mapping)


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zarr.json", GROUP)
        file.writestr("a/c/0", b"a chunk of some length")
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"a chunk", b"a crack", 1))
    session = Repository.memory().session()
    with pytest.raises(StorageError, match=r"data\.zip failed: Bad CRC-32"):
        import_zarr(archive, session)
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(StorageError, match="not a zip file"):
        import_zarr(archive, session)
