"""The commands, run as a user runs them, on a repository that they made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from commands import Command

from cas_zarr import CASStore, Repository
from cas_zarr.cid import format_cid
from cas_zarr.repository.signing import signer_text


def write_zarr(folder: Path, zarr_format: int = 3) -> None:
    group = zarr.open_group(folder, mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    group.attrs["title"] = "weather"
    values = np.arange(24, dtype="<f4").reshape(4, 6)
    for name in ("first", "second"):
        array = group.create_array(name, shape=(4, 6), chunks=(2, 3), dtype="<f4")
        array[:] = values
    group["second"][0, 0] = 99  # one of its four chunks differs


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a Zarr group in a folder."""
    folder = tmp_path / "weather.zarr"
    write_zarr(folder)
    return folder


@pytest.fixture
def repository(source: Path, tmp_path: Path, command: Command) -> Path:
    """Return a repository into which the group was imported."""
    folder = tmp_path / "weather.cas"
    result = command("import", source, folder, "-m", "first import", "--author", "A <a@b.c>")
    assert result.code == 0, result.err
    return folder


# -- import ---------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("path", ["", "deep/er"])
def test_import_is_byte_for_byte(
    tmp_path: Path, command: Command, zarr_format: int, path: str
) -> None:
    source, folder = tmp_path / "source", tmp_path / "repository"
    write_zarr(source, zarr_format)
    result = command("import", source, folder, "--path", path, "--json")
    assert result.code == 0
    expected = files_of(source)
    assert result.json["keys"] == len(expected)
    assert result.json["bytes"] == sum(map(len, expected.values()))
    mapping = CASStore(folder, version="main").mapping
    prefix = path + "/" if path else ""
    found = {key[len(prefix) :]: mapping[key] for key in mapping.list_keys(prefix)}
    assert found == expected
    # the groups above can be opened, too
    root = zarr.open_group(CASStore(folder, version="main"), mode="r")
    assert root.metadata.zarr_format == zarr_format


def test_import_from_an_archive_and_a_url_gives_the_same_root(
    source: Path, repository: Path, tmp_path: Path, command: Command
) -> None:
    archive = tmp_path / "weather.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in files_of(source).items():
            file.writestr(name, data)
    root = command("cid", repository).out
    for number, origin in enumerate((archive, source.as_uri(), f"zip://::{archive}")):
        folder = tmp_path / str(number)
        assert command("import", origin, folder).code == 0
        assert command("cid", folder).out == root


def test_import_again_changes_nothing_and_stores_nothing(
    source: Path, repository: Path, command: Command
) -> None:
    root = command("cid", repository).out
    with Repository.open(repository).blocks as blocks:
        before = sorted(blocks.list())
    assert "none: the branch has this root" in command("import", source, repository).out
    assert command("cid", repository).out == root
    assert len(command("log", repository, "--json").json) == 1
    with Repository.open(repository).blocks as blocks:
        assert sorted(blocks.list()) == before


def test_import_does_not_mix_with_what_is_there(
    repository: Path, tmp_path: Path, command: Command
) -> None:
    other = tmp_path / "other"
    zarr.open_group(other, mode="w").create_array("third", shape=(2,), dtype="i1")[:] = 1
    root = command("cid", repository).out
    refused = command("import", other, repository)
    assert refused.code == 1
    assert refused.err.startswith("error: the root holds '")
    assert "--replace" in refused.err
    assert command("cid", repository).out == root
    assert command("import", other, repository, "--replace").code == 0
    assert [row["path"] for row in command("ls", repository, "--json").json] == ["third"]


def test_import_what_is_not_there_or_no_zarr(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "repository"
    assert "does not exist" in command("import", tmp_path / "nothing", folder).err
    assert "no zarr array or group" in command("import", tmp_path, folder).err
    (tmp_path / "text.txt").write_text("text")
    assert "neither a folder" in command("import", tmp_path / "text.txt", folder).err
    unknown = command("import", "nonsense://x/y", folder)
    assert (unknown.code, unknown.err[:7]) == (1, "error: ")
    assert command("import", tmp_path, folder, "--chunks", "time=1").code == 2
    assert command("import", tmp_path, folder, "--chunks", "time").code == 2
    assert not folder.exists()


def test_an_import_that_fails_halfway_leaves_the_branch_as_it_was(
    repository: Path, tmp_path: Path, command: Command
) -> None:
    before = command("cid", repository).out
    archive = tmp_path / "many.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zarr.json", '{"node_type":"group","zarr_format":3}')
        for number in range(300):  # more than are read at once
            file.writestr(f"a/c/{number:03}", f"chunk {number:03}")
    archive.write_bytes(archive.read_bytes().replace(b"chunk 299", b"chunk XXX", 1))
    failed = command("import", archive, repository, "--path", "many")
    assert failed.code == 1
    assert failed.err.startswith(f"error: reading {archive} failed: Bad CRC-32")
    assert command("cid", repository).out == before
    assert "nothing to commit" in command("commit", repository, "-m", "all of it").err


def test_author_from_the_environment(
    source: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAS_ZARR_AUTHOR", "E <e@f.g>")
    folder = tmp_path / "repository"
    assert command("import", source, folder).code == 0
    assert command("log", folder, "--json").json[0]["author"] == "E <e@f.g>"


def test_import_with_sha256(source: Path, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "repository"
    assert command("import", source, folder, "--hash", "sha2-256").code == 0
    assert command("cat-root", folder).json["header"]["hash"] == "sha2-256"


# -- reading --------------------------------------------------------------------------------


def test_ls(repository: Path, command: Command) -> None:
    result = command("ls", repository)
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["NAME", "KIND", "TYPE", "SHAPE", "CHUNKS", "STORED", "SIZE"]
    assert [line[0] for line in lines[1:]] == ["first", "second"]
    assert lines[1][1:-2] == ["array", "float32", "4", "x", "6", "2", "x", "3", "4"]
    rows = command("ls", repository, "--recursive", "--json").json
    assert [(row["path"], row["kind"], row["shape"]) for row in rows] == [
        ("first", "array", [4, 6]),
        ("second", "array", [4, 6]),
    ]
    assert rows[0]["chunks"] == 4


def test_ls_and_show_of_an_array(weather: Path, tmp_path: Path, command: Command) -> None:
    (row,) = command("ls", weather, "t2m", "--json").json
    assert (row["path"], row["dimension_names"]) == ("t2m", ["time", "x"])
    assert command("ls", weather, "t2m").out == command("ls", weather).out
    shown = command("show", weather, "t2m").out.splitlines()
    assert "dimensions    time, x" in shown
    with CASStore(tmp_path / "one.cas") as store:
        zarr.create_array(store, shape=(3,), dtype="i1")
    assert command("ls", tmp_path / "one.cas").out.splitlines()[1].split()[:3] == [
        "/",
        "array",
        "int8",
    ]
    assert "dimensions" not in command("show", tmp_path / "one.cas").out


def test_show(repository: Path, command: Command) -> None:
    array = command("show", repository, "first", "--json").json
    store = CASStore(repository, version="main")
    assert array["cid"] == str(store.cid("first"))
    assert array["chunk_shape"] == [2, 3]
    assert array["bytes"] == sum(
        store.mapping.size_of(f"first/c/{row}/{column}") or 0
        for row in range(2)
        for column in range(2)
    )
    assert array["documents"]["zarr.json"]["shape"] == [4, 6]
    text = command("show", repository).out
    assert "group, zarr format 3" in text
    assert "weather" in text
    missing = command("show", repository, "third")
    assert (missing.code, missing.out) == (1, "")
    assert missing.err == "error: no node 'third' is in the root; there are: first, second\n"


def test_log(source: Path, repository: Path, command: Command) -> None:
    zarr.open_group(source, mode="a")["first"][0, 0] = 5
    assert command("import", source, repository, "-m", "second\n\nwith reasons").code == 0
    newest, oldest = command("log", repository, "--json").json
    assert newest["parents"] == [oldest["commit"]]
    assert (oldest["message"], oldest["author"]) == ("first import", "A <a@b.c>")
    text = command("log", repository, "-n", "1").out.splitlines()
    assert text[0] == f"commit {newest['commit']}"
    assert text[-3:] == ["    second", "    ", "    with reasons"]
    assert command("log", repository, "main~1", "--json").json == [oldest]


def test_versions(source: Path, repository: Path, command: Command) -> None:
    zarr.open_group(source, mode="a")["first"][0, 0] = 5
    old = command("cid", repository).out
    assert command("import", source, repository, "--no-commit").code == 0
    new = command("cid", repository).out
    assert new != old
    assert command("cid", repository, "--version", "main").out == old
    assert command("cid", repository, "--version", new.strip()).out == new
    unknown = command("cid", repository, "--version", "mian")
    assert unknown.code == 1
    assert "main" in unknown.err


def test_stats(repository: Path, command: Command) -> None:
    stats = command("stats", repository, "--json").json
    mapping = CASStore(repository, version="main").mapping
    keys = [key for key in mapping if not key.endswith(".json")]
    sizes = {mapping.cid_of(key): mapping.size_of(key) for key in keys}
    assert stats["values"] == len(keys) == 8
    assert stats["logical"] == sum(mapping.size_of(key) or 0 for key in keys)
    assert stats["stored"] == sum(size or 0 for size in sizes.values())
    assert stats["saved"] == stats["logical"] - stats["stored"] > 0
    first, second = stats["nodes"]
    assert first["shared"] == second["shared"] == stats["saved"]  # three of four chunks
    text = command("stats", repository).out
    assert "dedupe saved" in text
    assert text.split()[:5] == ["PATH", "VALUES", "LOGICAL", "STORED", "SHARED"]
    assert command("stats", repository, "first", "--json").json["nodes"][0]["shared"] == 0


def test_cid_of_a_box(repository: Path, command: Command) -> None:
    def cid(path: str, box: str) -> str:
        return command("cid", repository, path, "--box", box).out

    assert cid("first", "1:2,0:2") == cid("second", "1,0:2")
    assert cid("first", "0:1,0:2") != cid("second", "0:1,0:2")
    assert command("cid", repository, "first", "--box", "x").code == 2
    assert command("cid", repository, "first", "--box", "0:1").code == 1


def test_cat_root(repository: Path, command: Command) -> None:
    document = command("cat-root", repository).json
    assert document["nodes"]["first"]["docs"]["zarr.json"]["shape"] == [4, 6]
    process = _process("cat-root", "--raw", repository)
    opened = Repository.open(repository, read_only=True)
    assert process.stdout == opened.blocks.get(opened.resolve("main").root)


# -- damage and errors ----------------------------------------------------------------------


def test_verify(repository: Path, command: Command) -> None:
    whole = command("verify", repository)
    assert whole.code == 0
    assert "all whole" in whole.out
    mapping = CASStore(repository, version="main").mapping
    chunk = mapping["second/c/0/0"]
    cid = mapping.cid_of("second/c/0/0")
    assert cid is not None
    flipped = 0
    for pack in (repository / "packs").glob("*.car"):
        data = bytearray(pack.read_bytes())
        if chunk in data:
            data[data.index(chunk)] ^= 1
            pack.chmod(0o644)
            pack.write_bytes(data)
            flipped += 1
    assert flipped == 1
    assert command("verify", repository).code == 0  # the structure is whole
    damaged = command("verify", repository, "--data")
    assert damaged.code == 1
    assert "second/c/0/0" in damaged.out
    assert "hurt: second in main: 1 chunk [0:" in damaged.out
    report = command("verify", repository, "--data", "--json").json
    assert [found["cid"] for found in report["damaged"]] == [format_cid(cid)]
    (array,) = report["arrays"]
    assert (array["path"], array["chunks"], array["boxes"]) == ("second", 1, [[[0, 1], [0, 1]]])
    (fault,) = report["pack_faults"]
    assert fault["cid"] == format_cid(cid)
    version = ("verify", repository, "--version", "main")
    assert command(*version, "--sample", "100%").code == 1
    assert command(*version, "--sample", "0.000001").code == 0
    assert command(*version, "--path", "second", "--data").code == 1
    assert command(*version, "--path", "first", "--data").code == 0
    assert command(*version, "--sample", "5").code == 2


def test_verify_signatures(repository: Path, tmp_path: Path, command: Command) -> None:
    signers = tmp_path / "signers"
    signers.write_text(f"{signer_text(bytes(32))} nobody\n")
    told = command("verify", repository, "--signatures")
    assert told.code == 0
    assert "0 signed commits" in told.out
    refused = command("verify", repository, "--allowed-signers", signers)
    assert refused.code == 1
    assert "not signed" in refused.out
    assert command("verify", repository, "--allowed-signers", tmp_path / "none").code == 1


def test_no_repository(tmp_path: Path, command: Command) -> None:
    for name in ("ls", "show", "log", "stats", "cid", "verify", "cat-root"):
        result = command(name, tmp_path)
        assert (result.code, result.out) == (1, ""), name
        assert result.err.startswith("error: ")
        assert str(tmp_path) in result.err
    assert not any(tmp_path.iterdir())


def test_empty_repository(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "repository"
    Repository.open(folder, create=True).close()
    assert command("ls", folder, "--json").json == []
    assert command("stats", folder, "--json").json["values"] == 0
    assert command("show", folder).code == 0
    assert command("verify", folder).code == 0
    assert "nothing was written" in command("cid", folder).err
    assert "nothing was written" in command("cat-root", folder).err
    assert command("log", folder).code == 1


def test_reading_needs_no_right_to_write(repository: Path, command: Command) -> None:
    before = {file: file.stat().st_mtime_ns for file in repository.rglob("*")}
    for name in ("ls", "show", "log", "stats", "cid", "verify", "cat-root"):
        assert command(name, repository).code == 0
    assert {file: file.stat().st_mtime_ns for file in repository.rglob("*")} == before


def test_what_could_steer_a_terminal_is_escaped(tmp_path: Path, command: Command) -> None:
    source, folder = tmp_path / "source", tmp_path / "repository"
    source.mkdir()
    text = json.dumps({"node_type": "group", "attributes": {"a": "\x1b[2J\ud800", "b": [1.5, "ü"]}})
    (source / "zarr.json").write_text(text.replace("1.5", "NaN"))
    assert command("import", source, folder, "-m", "\x1b]0;title\x07\nü").code == 0
    shown = command("show", folder)
    assert r"\x1b[2J\ud800" in shown.out
    assert r"    \x1b]0;title\x07" in command("log", folder).out.splitlines()
    assert "    ü" in command("log", folder).out.splitlines()
    for arguments in (("show", "--json"), ("cat-root",), ("ls", "-r", "--json")):
        out = command(arguments[0], folder, *arguments[1:]).out
        assert "\x1b" not in out
        json.loads(out, parse_constant=lambda name: pytest.fail(name))


def test_words_of_git_are_answered(command: Command) -> None:
    for word, answer in {"status": "diff", "checkout": "--version", "serve": "gateway"}.items():
        told = command(word, "weather.cas")
        assert told.code == 2
        assert f"there is no command '{word}': " in told.err
        assert answer in told.err


def test_wrong_usage(command: Command) -> None:
    missing = command("ls")
    assert missing.code == 2
    assert "REPOSITORY" in missing.err
    assert command("nonsense").code == 2
    assert command("--help").code == 0
    assert command("--version").out.startswith("cas-zarr, version ")


def _process(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    code = "from cas_zarr.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


def test_progress_on_a_terminal_only(source: Path, tmp_path: Path) -> None:
    leader, follower = os.openpty()
    code = "from cas_zarr.cli.main import main; main()"
    folder = tmp_path / "repository"
    for arguments in (("import", source, folder), ("verify", folder)):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=follower,
            check=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        shown = os.read(leader, 100_000).decode()
        assert ("weather.zarr" if arguments[0] == "import" else "verify") in shown
        assert b"\x1b" not in done.stdout
    os.close(follower)
    os.close(leader)
    assert _process("verify", folder).stderr == b""


def test_installed_command(repository: Path, tmp_path: Path) -> None:
    whole = _process("ls", repository)
    assert (whole.returncode, whole.stderr) == (0, b"")
    assert _process("ls", tmp_path / "nothing").returncode == 1
    assert _process("ls").returncode == 2


def test_the_cid_of_a_box_of_inner_chunks(done: Command, command: Command, tmp_path: Path) -> None:
    with CASStore(tmp_path / "r.cas") as store:
        array = zarr.create_array(
            store, name="a", shape=(16, 16), chunks=(4, 4), shards=(8, 8), dtype="i4"
        )
        array[:] = 1
        expected = store.cid("a", ((0, 2), (0, 3)), inner=True)
    asked = ("cid", tmp_path / "r.cas", "a", "--inner")
    assert done(*asked, "--box", "0:2,0:3").out == f"{expected}\n"
    wrong = command(*asked)
    assert wrong.code == 2
    assert "--box" in wrong.err
