"""What a release would publish: its wheel, the metadata, and what it says it needs."""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import packages_distributions
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "captum_fam"


def load_checks() -> ModuleType:
    spec = spec_from_file_location("check_release", ROOT / ".ci" / "check_release.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECKS = load_checks()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / ".git").exists():
        pytest.skip("the files of a release are those that git knows, and this is no clone")
    folder: Path = CHECKS.copy_sources(tmp_path_factory.mktemp("release") / "sources")
    CHECKS.make_links_absolute(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="77", reason="an older setuptools does not read the metadata")
    path: Path = CHECKS.build_wheel(sources, tmp_path_factory.mktemp("dist"))
    return path


@pytest.mark.slow
def test_the_wheel_has_the_package_and_its_metadata_and_runs(wheel: Path, sources: Path, tmp_path: Path) -> None:
    assert CHECKS.wheel_faults(wheel, sources) == []
    CHECKS.try_wheel_offline(wheel, tmp_path / "installed")


def changed(wheel: Path, folder: Path, *, without: str = "", added: str = "", old: str = "", new: str = "") -> Path:
    """A copy of a wheel without a file, with a file more, or with other words in its metadata."""
    copy = folder / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(copy, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            if name != without:
                content = source.read(name)
                if old and name.endswith((".dist-info/METADATA", ".dist-info/entry_points.txt")):
                    content = content.replace(old.encode(), new.encode())
                target.writestr(name, content)
        if added:
            target.writestr(added, "")
    return copy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"without": "captum_fam/py.typed"}, "captum_fam/py.typed is not in the wheel"),
        ({"without": "captum_fam/report/report.js"}, "captum_fam/report/report.js is not in the wheel"),
        ({"added": "tests/test_house.py"}, "tests/test_house.py does not belong into the wheel"),
        ({"added": "captum_fam/gone.py"}, "captum_fam/gone.py does not belong into the wheel"),
        ({"old": "Requires-Python: >=3.10", "new": "Requires-Python: >=3.10,<3.14"}, "Requires-Python is '>=3.10,<3"),
        ({"old": "Project-URL: Changelog", "new": "Project-URL: Changes"}, "there is no link to Changelog"),
        ({"old": "captum_fam.cli.main:main", "new": "captum_fam.cli.gone:main"}, "the entry point captum-fam leads to"),
        ({"old": "Requires-Dist: captum>=0.7", "new": "X: y"}, "the package depends on"),
        ({"old": "# captum-fam\n", "new": "# UNKNOWN\n"}, "the description is not the README"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_a_fault_of_a_wheel_is_named(
    wheel: Path, sources: Path, tmp_path: Path, change: dict[str, str], fault: str
) -> None:
    faults = CHECKS.wheel_faults(changed(wheel, tmp_path, **change), sources)
    assert len(faults) == 1
    assert faults[0].startswith(fault)


def test_the_readme_of_a_release_links_to_the_version_in_the_web(tmp_path: Path) -> None:
    for name, text in {
        "pyproject.toml": '[project.urls]\nRepository = "https://example.org/one"\n',
        "captum_fam/__init__.py": '__version__ = "0.2.0"\n',
        "README.md": "![a map](docs/map.png) and [a\npage](docs/page.md#part), [up](#top), "
        "[PyTorch](https://pytorch.org)\n\n"
        "```python\nmaps[0](image)\n```\n\n[![both](docs/map.png)](docs/page.md)\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    CHECKS.make_links_absolute(tmp_path)
    raw, blob = "https://example.org/one/raw/v0.2.0/docs/", "https://example.org/one/blob/v0.2.0/docs/"
    assert (tmp_path / "README.md").read_text("utf-8") == (
        f"![a map]({raw}map.png) and [a\npage]({blob}page.md#part), [up](#top), [PyTorch](https://pytorch.org)\n\n"
        f"```python\nmaps[0](image)\n```\n\n[![both]({raw}map.png)]({blob}page.md)\n"
    )


def test_a_description_with_a_relative_link_is_a_fault(tmp_path: Path) -> None:
    metadata = Message()
    metadata.set_payload("[how](docs/howto.md) and\n\n```python\nmaps[0](image)\n```\n")
    (tmp_path / "README.md").write_text(metadata.get_payload(), "utf-8")
    (tmp_path / "captum_fam").mkdir()
    (tmp_path / "captum_fam" / "__init__.py").write_text('__version__ = "0.2.0"\n', "utf-8")
    found = [fault for fault in CHECKS.metadata_faults(metadata, tmp_path) if "description" in fault]
    assert found == ["the description links to docs/howto.md, which a registry does not have"]


def test_the_version_is_the_same_everywhere(sources: Path) -> None:
    assert CHECKS.version_faults(sources) == []


def test_a_version_that_differs_is_named(tmp_path: Path) -> None:
    for name, text in {
        "captum_fam/__init__.py": '__version__ = "0.2.0"\n',
        "CITATION.cff": "cff-version: 1.2.0\nversion: 0.1.0\n",
        ".conda/meta.yaml": '{% set version = "0.1.0" %}\n',
        "CHANGELOG.md": "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-01-31\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    words = " ".join(CHECKS.version_faults(tmp_path, "v0.1.0"))
    assert "CITATION.cff has the version ['0.1.0'], the package 0.2.0" in words
    assert ".conda/meta.yaml has" in words
    assert "no section of the version 0.2.0" in words
    assert "the tag is v0.1.0, expected v0.2.0" in words
    assert "no date at the version 0.2.0" in words
    for name in ("CITATION.cff", ".conda/meta.yaml", "CHANGELOG.md"):
        (tmp_path / name).write_text((tmp_path / name).read_text("utf-8").replace("0.1.0", "0.2.0"), "utf-8")
    assert CHECKS.version_faults(tmp_path, "v0.2.0") == []


def project() -> dict[str, object]:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def named(requirements: object) -> set[str]:
    """The packages in a list of requirements, in the spelling of the registry."""
    assert isinstance(requirements, list)
    return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in requirements}


def imported_without_an_extra() -> Iterator[str]:
    """The packages in all import statements of the core; an extra is imported by its name as text, but for three."""
    for file in PACKAGE.rglob("*.py"):
        if (PACKAGE / "experiments") in file.parents:
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield node.module.partition(".")[0]


def test_the_core_depends_on_what_it_imports_and_on_nothing_else() -> None:
    modules = set(imported_without_an_extra()) - sys.stdlib_module_names - {"captum_fam"}
    known = packages_distributions()
    packages = {known.get(module, [module])[0].lower().replace("_", "-") for module in modules}
    # A metric and the callback are classes of an extra's classes; IPython is there where a notebook is.
    assert packages - {"ipython", "lightning", "torchmetrics"} == named(project()["dependencies"])


def test_the_oldest_python_is_the_same_everywhere() -> None:
    oldest = str(project()["requires-python"]).removeprefix(">=")
    assert re.fullmatch(r"3\.\d+", oldest), "no upper bound, which would shut out each new Python"
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    versions = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    first, last = int(oldest[2:]), int(versions[-1][2:])
    assert versions == [f"3.{minor}" for minor in range(first, last + 1)]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    assert set(re.findall(r'"(3\.\d+)"', workflow.partition("matrix:")[2].partition("steps:")[0])) == set(versions)


def test_the_conda_recipe_needs_the_same_packages() -> None:
    recipe = (ROOT / ".conda" / "meta.yaml").read_text("utf-8")
    run = re.findall(r"^    - (\S+)", recipe.partition("  run:\n")[2].partition("\n\n")[0], re.MULTILINE)
    names = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
    assert {names.get(name, name) for name in run} - {"python"} == named(project()["dependencies"])


def test_every_action_is_pinned_to_a_commit_and_no_workflow_may_write_more_than_it_has_to() -> None:
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = file.read_text("utf-8")
        used = re.findall(r"uses: (\S+)", text)
        assert used, file.name
        assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used), file.name
        assert re.search(r"^permissions:( \{\}|\n  contents: read)$", text, re.MULTILINE), file.name
        assert text.count("persist-credentials: false") == text.count("uses: actions/checkout@"), file.name
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    assert release.count("id-token: write") == release.count("contents: write") == 1
    assert "password" not in release


def test_the_linter_of_a_commit_is_that_of_the_suite() -> None:
    (held,) = re.findall(r"ruff==(\d+\.\d+)\.\*", (ROOT / "setup.cfg").read_text("utf-8"))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    (pinned,) = re.findall(r"ruff-pre-commit\n    rev: v(\d+\.\d+)\.\d+", hooks)
    assert pinned == held


def test_links_between_the_pages_of_the_project_lead_somewhere() -> None:
    pages = ["CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "GOVERNANCE.md", "README.md", "SECURITY.md"]
    for page in pages:
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text("utf-8"))
        assert not [link for link in links if not (ROOT / link).exists()], page
