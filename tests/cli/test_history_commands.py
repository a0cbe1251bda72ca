"""`commit`, `log`, `branch`, `tag`, `reset`, `reflog`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command

from cas_zarr import CASStore, Repository
from cas_zarr.cid import format_cid

Write = Callable[..., None]


def messages(command: Command, *arguments: object) -> list[str]:
    return [entry["message"] for entry in command("log", *arguments, "--json").json]


# -- commit ---------------------------------------------------------------------------------


def test_commit_makes_the_working_root_history(weather: Path, done: Command, write: Write) -> None:
    write((0, 0), 5)
    before = done("cid", weather).out.strip()
    result = done("commit", weather, "-m", "correct day 0", "--author", "B <b@c.d>", "--json").json
    assert result["root"] == before
    newest = done("log", weather, "-n", 1, "--json").json[0]
    assert (newest["commit"], newest["message"]) == (result["commit"], "correct day 0")
    assert newest["author"] == "B <b@c.d>"
    assert done("cid", weather, "--version", "main").out.strip() == before


def test_commit_of_nothing_is_refused_unless_asked_for(
    weather: Path, command: Command, done: Command
) -> None:
    refused = command("commit", weather, "-m", "again")
    assert (refused.code, refused.out) == (1, "")
    assert "there is nothing to commit on branch 'main': it shows what" in refused.err
    assert messages(done, weather) == ["first import"]
    done("commit", weather, "-m", "again", "--allow-empty")
    assert messages(done, weather) == ["again", "first import"]
    assert command("commit", weather).code == 2


def test_commit_signs_with_the_key_of_the_option_or_the_environment(
    weather: Path,
    tmp_path: Path,
    command: Command,
    done: Command,
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("cryptography")
    from cas_zarr.repository.signing import key_of, signer_text

    file = tmp_path / "key"
    file.write_bytes(bytes(range(32)))
    signer = signer_text(key_of(bytes(range(32))).public_key().public_bytes_raw())
    write((0, 0), 5)
    done("commit", weather, "-m", "signed", "--sign", file)
    write((0, 0), 6)
    monkeypatch.setenv("CAS_ZARR_SIGNING_KEY", str(file))
    done("commit", weather, "-m", "signed, too")
    entries = done("log", weather, "--json").json
    assert [entry["signature"] for entry in entries] == [signer, signer, None]
    assert f"signed {signer}\n" in done("log", weather, "-n", 1).out
    write((0, 0), 7)
    missing = command("commit", weather, "-m", "x", "--sign", tmp_path / "nothing")
    assert missing.code == 1
    assert str(tmp_path / "nothing") in missing.err


# -- log ------------------------------------------------------------------------------------


def test_log_of_a_path_and_of_a_box_of_the_index(
    weather: Path, command: Command, done: Command, write: Write
) -> None:
    write((0, 0), 5, "first chunk")
    write((3, 5), 5, "last chunk")
    with CASStore(weather) as store:
        store.mapping["notes/text"] = b"x"
        store.commit("a note")
    assert messages(done, weather, "--path", "t2m") == ["last chunk", "first chunk", "first import"]
    box = ("--path", "t2m", "--box")
    assert messages(done, weather, *box, "0:2,0:3") == ["first chunk", "first import"]
    assert messages(done, weather, *box, "2,:") == ["last chunk", "first import"]
    assert messages(done, weather, *box, ":,-1") == ["last chunk", "first import"]
    assert messages(done, weather, "--path", "notes") == ["a note"]
    assert command("log", weather, "--box", "0:2").code == 2
    nothing = command("log", weather, "--path", "nope")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "no commit changed 'nope'\n")
    assert "is no array" in command("log", weather, "--path", "notes", "--box", "0:2").err
    assert "too many" in command("log", weather, *box, "0,0,0").err


def test_log_between_times(weather: Path, done: Command) -> None:
    with CASStore(weather) as store:
        for day in (10, 20, 30):
            store.mapping["text"] = bytes([day])
            store.commit(f"day {day}", time=day * 86_400_000_000)
    assert messages(done, weather, "--until", "1970-01-21") == ["day 20", "day 10"]
    assert messages(done, weather, "--until", "1970-01-20") == ["day 10"]
    since = messages(done, weather, "--since", "1970-01-21", "--until", "1971-01-01")
    assert since == ["day 30", "day 20"]
    assert messages(done, weather, "--since", "1d") == ["first import"]


def test_log_draws_a_graph(weather: Path, done: Command, write: Write) -> None:
    done("branch", weather, "trial")
    write((0, 0), 5, "on main")
    write((3, 5), 5, "on trial", branch="trial")
    lines = done("log", weather, "trial", "--graph", "--oneline").out.splitlines()
    assert [line[0] for line in lines] == ["*", "*"]
    full = done("log", weather, "--graph").out.splitlines()
    commits = [entry["commit"] for entry in done("log", weather, "--json").json]
    assert full[0] == f"* commit {commits[0]}"
    assert f"* commit {commits[1]}" in full
    assert "|     on main" in full
    one = done("log", weather, "--oneline").out.splitlines()
    assert [line.split()[0] for line in one] == commits
    assert one[0].endswith("Z on main")


# -- branches and tags ------------------------------------------------------------------------


def test_branches(weather: Path, command: Command, done: Command, write: Write) -> None:
    commit = done("log", weather, "--json").json[0]["commit"]
    assert done("branch", weather, "trial").out == f"branch trial at {commit}\n"
    write((0, 0), 5, branch="trial")
    table = [line.split() for line in done("branch", weather).out.splitlines()]
    assert table[0] == ["NAME", "COMMIT", "DATE", "MESSAGE"]
    assert table[1][:2] == ["main", commit]
    assert table[2][:3] == ["*", "trial", commit]
    listed = done("branch", weather, "--json").json
    assert [(row["name"], row["uncommitted"]) for row in listed] == [
        ("main", False),
        ("trial", True),
    ]
    assert done("branch", weather, "trial", "--rename", "test").code == 0
    assert [row["name"] for row in done("branch", weather, "--json").json] == ["main", "test"]
    refused = command("branch", weather, "test", "--delete")
    assert "has work that no commit has" in refused.err
    assert "pass --force to drop it" in refused.err
    deleted = done("branch", weather, "test", "--delete", "--force")
    assert deleted.out == "deleted branch test; test@{1} is what it was\n"
    done("branch", weather, "again", "test@{1}")
    done("branch", weather, "again", "--delete")
    assert [row["name"] for row in done("branch", weather, "--json").json] == ["main"]
    gone = command("branch", weather, "test", "--delete")
    assert (gone.code, gone.out) == (1, "")
    assert "there is no branch 'test'" in gone.err
    for wrong in (["--delete"], ["--rename", "x"], ["a", "main", "--delete"]):
        assert command("branch", weather, *wrong).code == 2


def test_branch_lists_what_was_kept(weather: Path, done: Command) -> None:
    repository = Repository.open(weather)
    record = repository.refs.branch("main")
    assert record is not None
    name = repository.refs.keep("main", record)
    assert name not in done("branch", weather).out
    assert name in done("branch", weather, "--all").out
    kinds = {row["name"]: row["kind"] for row in done("branch", weather, "-a", "--json").json}
    assert kinds == {"main": "branch", name: "kept"}


def test_tags(weather: Path, command: Command, done: Command, write: Write) -> None:
    first = done("log", weather, "--json").json[0]["commit"]
    assert done("tag", weather, "v1").out == f"tag v1 at {first}\n"
    write((0, 0), 5, "second")
    second = done("log", weather, "--json").json[0]["commit"]
    taken = command("tag", weather, "v1")
    assert taken.code == 1
    assert "'v1' exists already" in taken.err
    assert "or move the one that is there" in taken.err
    assert done("tag", weather, "--json").json == [{"name": "v1", "commit": first}]
    done("tag", weather, "v1", "--move")
    assert done("tag", weather, "--json").json == [{"name": "v1", "commit": second}]
    done("tag", weather, "old", "main~1")
    assert [line.split()[:2] for line in done("tag", weather).out.splitlines()[1:]] == [
        ["old", first],
        ["v1", second],
    ]
    done("tag", weather, "old", "--delete")
    assert [row["name"] for row in done("tag", weather, "--json").json] == ["v1"]
    assert command("tag", weather, "--move").code == 2


# -- reset and reflog -------------------------------------------------------------------------


def test_reset_and_back_by_the_reflog(
    weather: Path, command: Command, done: Command, write: Write
) -> None:
    write((0, 0), 5, "second")
    root = done("cid", weather).out
    done("reset", weather, "main", "main~1")
    assert messages(done, weather) == ["first import"]
    assert done("cid", weather).out != root
    rows = done("reflog", weather, "main", "--json").json
    assert rows[0]["version"] == "main@{0}"
    assert rows[0]["why"].startswith("reset")
    assert rows[0]["new"]["commit"] == rows[1]["old"]["commit"]
    assert "main@{1}" in done("reflog", weather).out
    done("reset", weather, "main", "main@{1}")
    assert done("cid", weather).out == root
    write((1, 1), 6)
    refused = command("reset", weather, "main", "main~1")
    assert refused.code == 1
    assert "has work that no commit has" in refused.err
    assert "pass --force to drop it" in refused.err  # as it is said here, not in Python
    done("reset", weather, "main", "main~1", "--force")
    assert messages(done, weather) == ["first import"]


def test_a_deleted_branch_comes_back(weather: Path, done: Command, write: Write) -> None:
    done("branch", weather, "trial")
    write((0, 0), 5, "on trial", branch="trial")
    commit = done("log", weather, "trial", "--json").json[0]["commit"]
    done("branch", weather, "trial", "--delete")
    row = done("reflog", weather, "trial", "--json").json[0]
    assert row["new"] is None
    assert row["old"]["commit"] == commit
    done("branch", weather, "trial", "trial@{1}")
    assert done("log", weather, "trial", "--json").json[0]["commit"] == commit


def test_tags_stand_in_the_reflog(weather: Path, done: Command) -> None:
    done("tag", weather, "v1")
    done("tag", weather, "v1", "--delete")
    rows = done("reflog", weather, "v1", "--json").json
    assert [(row["kind"], row["version"]) for row in rows] == [("tag", "v1@{0}"), ("tag", "v1@{1}")]
    tag = Repository.open(weather).resolve("main").commit
    assert tag is not None
    assert rows[1]["new"] == {"commit": format_cid(tag)}
