"""The pages say what is so: their Python runs, their commands exist, their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from cas_zarr.cli.group import cli
from cas_zarr.cli.sections import Command

PROJECT = Path(__file__).resolve().parent.parent
VERSIONS = PROJECT / "docs" / "versions"
IPFS = PROJECT / "docs" / "ipfs"  # their Python is run by tests/ipfs/test_ipfs_docs.py
VERSION_PAGES = sorted(VERSIONS.glob("*.md"))
PAGES = [*VERSION_PAGES, *sorted(IPFS.glob("*.md"))]
WITH_COMMANDS = [
    PROJECT / "README.md",
    PROJECT / "docs" / "cli.md",
    *PAGES,
]

EXTRAS = {"dask": "dask", "sign": "cryptography", "plot": "matplotlib"}
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NEEDS = re.compile(r"# needs cas_zarr\[(\w+)\]\n")


def name_of(page: Path) -> str:
    return str(page.relative_to(PROJECT))


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """Yield the blocks of a language, and the line of the page on which each begins."""
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        if match[1] == language:
            yield text.count("\n", 0, match.start()) + 2, match[2]


def run(page: Path, line: int, code: str, namespace: dict[str, Any]) -> None:
    # empty lines before it, so that a traceback names the line of the page
    exec(compile("\n" * (line - 1) + code, page, "exec"), namespace)


@pytest.mark.parametrize("page", VERSION_PAGES, ids=name_of)
def test_the_python_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    first, *_ = blocks(VERSIONS / "index.md", "python")
    run(VERSIONS / "index.md", *first, namespace)  # makes what all pages go on from
    missing = set()
    for line, code in blocks(page, "python"):
        if (page.name, line) == ("index.md", first[0]):
            continue
        needs = _NEEDS.match(code)
        if needs is not None and importlib.util.find_spec(EXTRAS[needs[1]]) is None:
            missing.add(needs[1])
            continue
        run(page, line, code, namespace)
    namespace.clear()
    if missing:
        pytest.skip(f"the blocks that need cas_zarr[{','.join(sorted(missing))}] did not run")


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield the words of each `cas-zarr` command in lines for a shell."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        while "cas-zarr" in words:
            words = words[words.index("cas-zarr") + 1 :]
            ends = [words.index(sign) for sign in ("|", "&&", "||", ">", ";") if sign in words]
            yield words[: min(ends, default=len(words))]


def check(words: list[str]) -> None:
    """Fail if a command line does not name a command, or has an option or a value of no sense."""
    name, *arguments = words
    assert name in cli.commands, f"there is no command {name!r}"
    command = cli.commands[name]
    context = click.Context(command, info_name=name)
    values, left, _ = command.make_parser(context).parse_args(list(arguments))
    assert left == [], f"{name} does not take {left}"
    for parameter in command.params:
        value = values.get(parameter.name, UNSET)
        if isinstance(parameter.type, click.Path):  # it need not be there
            assert value not in (UNSET, None) or not parameter.required, parameter.name
            continue
        parameter.process_value(context, value)


UNSET = getattr(click.core, "UNSET", None)  # what click 8.3 has for an option that is not given


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    found = 0
    for line, text in blocks(page, "sh"):
        for words in commands_in(text):
            found += 1
            try:
                check(words)
            except (AssertionError, click.UsageError) as error:
                pytest.fail(f"{page}:{line}: cas-zarr {shlex.join(words)}: {error}")
    assert found > 0 or page.parent == IPFS


def test_the_examples_in_the_help_are_commands() -> None:
    for name, command in cli.commands.items():
        assert isinstance(command, Command), name
        assert command.examples, name
        assert f"cas-zarr {name}" in " ".join(command.examples), name
        for words in commands_in("\n".join(command.examples)):
            check(words)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["log"],
        ["log", "a", "b", "c"],
        ["log", "a", "--nonsense"],
        ["gc", "a", "--grace", "x"],
    ],
)
def test_what_is_no_command_is_noticed(words: list[str]) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        check(words)


@pytest.mark.parametrize("page", sorted((PROJECT / "docs").rglob("*.md")), ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        assert file.exists(), target
        if anchor:
            assert anchor in set(anchors(file)), target


def anchors(page: Path) -> Iterator[str]:
    """Yield the names under which the headings of a page can be linked."""
    for title in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_every_verb_has_a_page() -> None:
    shown = "\n".join(text for page in PAGES for _, text in blocks(page, "sh"))
    used = {words[0] for words in commands_in(shown)}
    versions = {
        str(entry.name)
        for section, entries in cli.sections().items()
        for entry in entries
        if section != "data"
    }
    assert versions - used == set()


def test_the_index_names_every_page() -> None:
    for page in PAGES:
        text = (page.parent / "index.md").read_text()
        assert page.name == "index.md" or f"({page.name})" in text, page
