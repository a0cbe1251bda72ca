"""`repair`, `prove`, `verify-proof`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command

from cas_zarr import CASStore

Write = Callable[..., None]


def flip(folder: Path, chunk: bytes) -> None:
    """Flip a bit of a chunk in whatever pack has it."""
    for pack in (folder / "packs").glob("*.car"):
        data = bytearray(pack.read_bytes())
        if chunk in data:
            data[data.index(chunk)] ^= 1
            pack.chmod(0o644)
            pack.write_bytes(data)


def test_repair_from_another_repository(
    weather: Path, tmp_path: Path, command: Command, done: Command
) -> None:
    backup = tmp_path / "backup.cas"
    shutil.copytree(weather, backup)
    mapping = CASStore(weather, version="main").mapping
    chunks = mapping["t2m/c/1/1"], mapping["t2m/c/0/0"]
    flip(weather, chunks[0])
    assert command("verify", weather, "--data").code == 1
    fixed = done("repair", weather, "--from", backup)
    assert "fetched  1 block" in fixed.out
    assert "all whole" in fixed.out
    assert done("verify", weather, "--data").code == 0
    for folder in (weather, backup):
        flip(folder, chunks[1])
    lost = command("repair", weather, "--from", backup)
    assert lost.code == 1
    assert "lost: block bafk" in lost.out
    report = command("repair", weather, "--from", backup, "--json")
    assert (report.code, report.json["ok"], len(report.json["lost"])) == (1, False, 1)


@pytest.mark.parametrize("chunks", [False, True])
def test_a_proof_holds_without_the_dataset(
    weather: Path, tmp_path: Path, done: Command, chunks: bool
) -> None:
    file = tmp_path / "t2m.car"
    options = ["--chunks"] if chunks else []
    made = done("prove", weather, "t2m", "-o", file, "--box", "0:1,:", "--json", *options).json
    assert made["root"] == done("cid", weather).out.strip()
    assert made["bytes"] == file.stat().st_size
    shutil.move(weather, tmp_path / "away")
    proof = done("verify-proof", file, "t2m", "--root", made["root"], "--box", "0:1,:", "--json")
    assert proof.json["box"] == [[0, 1], [0, 2]]
    assert [chunk["coordinates"] for chunk in proof.json["chunks"]] == [[0, 0], [0, 1]]
    assert proof.json["data_verified"] is chunks
    text = done("verify-proof", file, "t2m", "--root", made["root"], "--box", "0,0").out
    assert "present  1 chunk of" in text
    assert text.splitlines()[-1] == "result   the proof holds"


def test_a_proof_that_was_touched_or_is_of_another_root(
    weather: Path, tmp_path: Path, command: Command, done: Command, write: Write
) -> None:
    file = tmp_path / "t2m.car"
    root = done("prove", weather, "t2m", "--chunks", "-o", file, "--json").json["root"]
    write((0, 0), 5, "second")
    other = done("cid", weather).out.strip()
    for trusted in (other, "bafkr4iaeth2mkgextpalg7v4xe2inn54svdpn52tbb4nsxj264n756vfkm", "x"):
        assert command("verify-proof", file, "t2m", "--root", trusted).code == 1
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    told = command("verify-proof", file, "t2m", "--root", root)
    assert (told.code, told.out) == (1, "")
    assert told.err.startswith("error: ")
    assert command("verify-proof", tmp_path / "nothing", "t2m", "--root", root).code == 2


def test_proofs_of_groups_and_of_versions(weather: Path, tmp_path: Path, done: Command) -> None:
    file = tmp_path / "root.car"
    root = done("prove", weather, "", "--version", "main", "-o", file, "--json").json["root"]
    assert "documents  zarr.json" in done("verify-proof", file, "--root", root).out


def test_a_proof_on_the_standard_output(weather: Path, tmp_path: Path, command: Command) -> None:
    code = "from cas_zarr.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "prove", weather, "t2m"], capture_output=True, check=True
    )
    assert command("prove", weather, "t2m", "-o", tmp_path / "p.car").code == 0
    assert (tmp_path / "p.car").read_bytes() == done.stdout
    assert command("prove", weather, "t2m", "--json").code == 2
