"""What the documents promise: their commands parse, their links lead somewhere, the files, tests and make targets they name are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestration.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "infra").rglob("*.md")),
]
UsageError: Any = typer.BadParameter.__base__  # click's, or that of typer's own copy of click
FOLDERS = ("orchestration", "pipelines", "workers", "models", "tests", "infra", "docs", "benchmarks")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(page: Path) -> list[str]:
    """What stands between single backticks in the text."""
    found = re.findall(r"(?<!`)`([^`]+)`(?!`)", without_fences(page.read_text()))
    return [" ".join(span.split()) for span in found]


def shown_commands(text: str) -> list[str]:
    """Command lines of fenced blocks: what follows `$`, or begins a line; a comment or two spaces end one, a backslash continues it."""
    found = []
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
            line = re.split(r"\s{2,}(?=\S)|\s#", line.strip().removeprefix("$ "))[0]
            if line.startswith("calotype "):
                found.append(line)
    return found


def find(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words after `calotype` name, and the words that are left for it. Raises KeyError for a name that is none."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(line: str) -> None:
    """Parse a command line as the program does, without running it. Raises KeyError or UsageError."""
    command, words = find(shlex.split(line)[1:])
    command.make_context(command.name, words)


@pages
def test_every_command_that_is_shown_parses(page: Path) -> None:
    for line in shown_commands(page.read_text()):
        try:
            parse(line)
        except (KeyError, UsageError) as error:
            pytest.fail(f"{line}: {error}")
    for line in spans(page):
        if line.startswith("calotype "):
            find(line.split()[1:])  # prose may leave out the arguments
            if " -" in line:
                parse(line)


@pages
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = without_fences(page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), target


@pages
def test_every_file_and_test_that_is_named_exists(page: Path) -> None:
    for name in spans(page):
        if re.fullmatch(r"test_\w+", name):
            assert any(f"def {name}(" in file.read_text() for file in (ROOT / "tests").rglob("test_*.py")), name
        elif re.fullmatch(r"\w+\.py", name):
            assert any(next((ROOT / folder).rglob(name), None) for folder in FOLDERS), name
        elif re.fullmatch(r"[\w.*/-]+", name) and name.split("/")[0] in FOLDERS and "/" in name:
            assert any(ROOT.glob(name.rstrip("/"))), name


@pages
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    text = page.read_text()
    for name in re.findall(r"(?:`|^|\s{3})make (\w+)", "\n".join([*spans(page), *re.findall(r"^make .*", text, flags=re.MULTILINE)])):
        assert name in targets, name


@pytest.mark.parametrize("line", ["restore photos", "run", "run job.yaml --no-such-option", "manifest edit photos", "verify a b"])
def test_a_wrong_command_is_noticed(line: str) -> None:
    with pytest.raises((KeyError, UsageError)):
        parse(f"calotype {line}")


def test_commands_are_found_in_blocks_without_their_comments_and_output() -> None:
    block = "```\n$ calotype run job.yaml   runs it\nverified: 3 rows\ncalotype list \\\n  runs\n```\n"
    assert shown_commands(block) == ["calotype run job.yaml", "calotype list runs"]
