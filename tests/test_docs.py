"""The pages of docs/ agree with the tree and with the command line."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_fam.cli.main import COMMANDS, make_parser
from captum_fam.demo import load_demo_network
from captum_fam.experiments import get_methods

ROOT = Path(__file__).parents[1]
# Pages that a build of the site writes, and that git ignores.
BUILT = re.findall(r"^/(docs/\S+?)/?$", (ROOT / ".gitignore").read_text(encoding="utf-8"), re.MULTILINE)
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if not any(page.is_relative_to(ROOT / built) for built in BUILT)
    ),
]
HOUSE = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")


def tree() -> Iterator[Path]:
    """The files and folders of the tree in docs/house.md, in their order."""
    block = HOUSE.partition("```\n")[2].partition("```")[0]
    folders: list[str] = []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name]
        yield Path(*folders)


def test_the_tree_of_the_house_is_that_of_the_package() -> None:
    named = list(tree())
    assert not [path for path in named if not (ROOT / path).exists()]
    rooms = {path.parent for path in (ROOT / "captum_fam").glob("*/__init__.py")}
    assert rooms == {ROOT / path for path in named if len(path.parts) == 2 and (ROOT / path).is_dir()}


def test_a_room_imports_from_rooms_above_it_only() -> None:
    rooms = [path.parts[1] for path in tree() if len(path.parts) == 2 and (ROOT / path).is_dir()]
    found = []
    for file in (ROOT / "captum_fam").rglob("*.py"):
        room = file.relative_to(ROOT / "captum_fam").parts[0]
        if room not in rooms:
            continue
        syntax = ast.parse(file.read_text(encoding="utf-8"))
        for_types = {
            id(node)
            for statement in ast.walk(syntax)
            if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test)
            for node in ast.walk(statement)
        }
        for node in ast.walk(syntax):
            if not isinstance(node, ast.ImportFrom) or id(node) in for_types or not node.module:
                continue
            other = node.module.removeprefix("captum_fam.").partition(".")[0]
            if node.module.startswith("captum_fam.") and other in rooms and rooms.index(other) > rooms.index(room):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.module}")
    assert not found


def test_the_examples_of_extensions_have_the_lines_that_are_printed() -> None:
    rows = re.findall(r"`(\w+\.py)` \| (\d+) \|$", HOUSE, re.MULTILINE)
    lines = {name: len((ROOT / "tests" / "extensions" / name).read_text("utf-8").splitlines()) for name, _ in rows}
    assert {name: int(count) for name, count in rows} == lines
    files = {path.name for path in (ROOT / "tests" / "extensions").glob("*.py") if path.stem != "test_extensions"}
    assert lines.keys() == files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def commands() -> Iterator[tuple[str, str]]:
    """Every command in a block of its own, as (page, command)."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        names = dict(re.findall(r"^([A-Z]+)=(\S+)$", text, re.MULTILINE))
        for name, value in names.items():
            text = text.replace(f"${name}", value)
        for line in re.findall(rf"^captum-fam ((?:{'|'.join(COMMANDS)}) .*)$", text, re.MULTILINE):
            yield page.relative_to(ROOT).as_posix(), line


def test_every_command_is_one_that_can_be_given() -> None:
    given = list(commands())
    assert len(given) > 40
    for page, line in given:
        command, *words = shlex.split(line)
        try:
            options = make_parser(command).parse_args(words)
        except SystemExit:
            pytest.fail(f"{page}: captum-fam {line}")
        if command in ("evaluate", "figure") and "--methods" in words:
            assert get_methods(words[words.index("--methods") + 1])
        assert options.run


def test_the_code_for_supports_runs() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "methods.md").read_text("utf-8"), re.S | re.M)
    model = load_demo_network()
    generator = torch.Generator().manual_seed(0)
    names: dict[str, Any] = {
        "model": model,
        "layer": model.features,
        "queries": torch.rand(2, 3, 84, 84, generator=generator),
        "images": torch.rand(8, 3, 84, 84, generator=generator),
        "labels": torch.arange(8) % 4,
    }
    exec(compile(code, "docs/methods.md", "exec"), names)
    assert names["class_scores"].shape == (2, 4)
    assert names["class_scores"].isfinite().all()
    assert names["gradient"].shape == names["account"].attributions.shape
    torch.testing.assert_close(names["account"].coverage, torch.ones(2))
    assert names["contrast"].scores.isfinite().all()
