"""The parts of the site that a build writes; ``make docs-check`` builds the site itself."""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import captum_fam
from captum_fam.cli.main import COMMANDS, make_parser

pytest.importorskip("sphinx")
pytest.importorskip("jupytext")

ROOT = Path(__file__).parents[1]
EXTENSIONS = ROOT / "docs" / "_ext"
REPOSITORY = "https://example.org/repository"


@pytest.fixture(scope="module")
def site() -> Iterator[dict[str, ModuleType]]:
    """The extensions of the site, by name."""
    sys.path.insert(0, str(EXTENSIONS))
    names = [file.stem for file in EXTENSIONS.glob("*.py")]
    yield {name: importlib.import_module(name) for name in names if name != "map_figures"}
    sys.path.remove(str(EXTENSIONS))
    for name in names:
        sys.modules.pop(name, None)


def test_every_room_but_the_command_line_has_a_page(site: dict[str, ModuleType]) -> None:
    rooms = {file.parent.name for file in Path(captum_fam.__file__).parent.glob("*/__init__.py")} - {"cli"}
    assert {f"captum_fam.{room}" for room in rooms} <= set(site["api_pages"].MODULES)


@pytest.mark.parametrize("module", ["captum_fam", "captum_fam.attr", "captum_fam.metrics", "captum_fam.experiments"])
def test_every_public_name_has_one_page_or_entry(site: dict[str, ModuleType], module: str) -> None:
    offered = importlib.import_module(module).__all__
    of_module = {public.short: public for public in site["api_pages"].of_module(module)}
    assert sorted(of_module) == sorted(offered)
    for name, public in of_module.items():
        owner, _, short = public.name.rpartition(".")
        assert short == name
        assert getattr(importlib.import_module(owner), name) is getattr(importlib.import_module(module), name)
        # A name of the top is not documented twice.
        assert (owner == "captum_fam") == (name in captum_fam.__all__)


def test_a_class_shows_its_own_members_and_those_of_its_bases_here_only(site: dict[str, ModuleType]) -> None:
    members = site["api_pages"].members_of(captum_fam.LayerFAM)
    assert members[:2] == ["attribute", "details"]
    assert "map_layers" in members
    assert not {"interpolate", "get_name", "forward", "has_convergence_delta_"} & set(members)
    assert "set" not in site["api_pages"].members_of(importlib.import_module("captum_fam.visualization").MapFigure)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("LayerFAM", (True, "captum_fam.LayerFAM")),
        ("captum_fam.attr.layer_fam.LayerFAM", (True, "captum_fam.LayerFAM")),
        ("captum_fam.attr.LayerFAM.attribute", (True, "captum_fam.LayerFAM.attribute")),
        ("energy_proportion", (True, "captum_fam.metrics.energy_proportion")),
        ("captum_fam.metrics", (True, "captum_fam.metrics")),
        ("captum_fam.images.read_image", (True, None)),
        ("captum_fam.LayerFAN", (False, None)),
        ("LayerFAN", (False, None)),
        ("captum_fam.LayerFAM.attribut", (False, None)),
    ],
)
def test_names_of_the_package_are_found_however_they_are_written(
    site: dict[str, ModuleType], name: str, found: tuple[bool, str | None]
) -> None:
    assert site["own_names"].find(name) == found


def test_names_that_share_an_entry_get_one_each(site: dict[str, ModuleType]) -> None:
    lines = ["A thing.", "", "Args:", "    one, two,", "        three: the same", "        of all.", "    four: other."]
    site["api_pages"].one_entry_each(None, "function", "thing", None, None, lines)
    assert lines[3:] == [
        "    one: the same",
        "        of all.",
        "    two: the same",
        "        of all.",
        "    three: the same",
        "        of all.",
        "    four: other.",
    ]


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options_of(below)


def test_the_command_line_page_has_every_option(site: dict[str, ModuleType]) -> None:
    page = site["cli_page"].cli_reference()
    for command in COMMANDS:
        section = page[page.index(f"\n## captum-fam {command}\n") :]
        options = set(options_of(make_parser(command))) - {"-h", "--help"}
        missing = [option for option in options if not re.search(rf"{option}(?![\w-])", section)]
        assert not missing
    assert not [line for line in page.splitlines() if line.startswith("captum-fam") and "[-h]" in line]


@pytest.mark.parametrize(
    ("source", "target", "on_the_site"),
    [
        ("docs/looking.md", "methods.md", "methods.md"),
        ("docs/howto/knn.md", "../which-map.md", "../which-map.md"),
        ("docs/results/README.md", "../../benchmarks/README.md", f"{REPOSITORY}/blob/main/benchmarks/README.md"),
        ("docs/house.md", "../captum_fam", f"{REPOSITORY}/tree/main/captum_fam"),
        ("docs/project.md", "../CONTRIBUTING.md", "contributing.md"),
        ("docs/howto/knn.md", "../../CONTRIBUTING.md", "../contributing.md"),
        ("CONTRIBUTING.md", "docs/house.md", "house.md"),
        ("CONTRIBUTING.md", "LICENSE", f"{REPOSITORY}/blob/main/LICENSE"),
        ("tutorials/01_fam_and_grad_cam.md", "../docs/which-map.md", "../which-map.md"),
        ("docs/which-map.md", "../tutorials/01_fam_and_grad_cam.md", "tutorials/01_fam_and_grad_cam.md"),
        ("docs/which-map.md", "figures/demo.png", "figures/demo.png"),
    ],
)
def test_links_of_the_repository_work_on_the_site(
    site: dict[str, ModuleType], source: str, target: str, on_the_site: str
) -> None:
    assert site["borrowed_pages"].on_the_site(source, target, ROOT, REPOSITORY) == on_the_site


def test_links_in_code_and_to_the_web_are_left_alone(site: dict[str, ModuleType]) -> None:
    text = """\
See [`explain`](docs/house.md#rules), `[x](LICENSE)` and [the web](https://example.org/LICENSE).

```python
names[0](LICENSE)
```

```{note}
[here](LICENSE) and [in this page](#rules)
```
"""
    expected = text.replace("(docs/house.md#rules)", "(house.md#rules)")
    expected = expected.replace("[here](LICENSE)", f"[here]({REPOSITORY}/blob/main/LICENSE)")
    assert site["borrowed_pages"].rewrite_links(text, "CONTRIBUTING.md", ROOT, REPOSITORY) == expected


def test_title_and_summary_of_a_notebook(site: dict[str, ModuleType]) -> None:
    head = "---\nkernelspec:\n  name: python3\n---\n\n<!-- needs: timm -->\n\n"
    text = f"{head}# A title\n\nOne [line](a.md),\nto see `f(...)`. Two. Three.\n"
    assert site["borrowed_pages"].title_and_summary(text) == ("A title", "One line, to see `f(...)`. Two.")


@pytest.mark.parametrize(
    "text",
    [
        "- [a list](a.md)\n\n```{toctree}\n:hidden:\n\none\ntwo\n```\n",
        "Written by `python -m benchmarks.x`, which ran\n\n```\ncaptum-fam x\n```\n\non AMD EPYC; seed 0.\n",
        "## A section\n\nIts text.\n",
    ],
)
def test_lists_and_how_a_table_was_written_are_no_summary(site: dict[str, ModuleType], text: str) -> None:
    assert site["borrowed_pages"].title_and_summary(f"# A title\n\n{text}") == ("A title", "")


def test_roles_of_docstrings_are_no_markdown(site: dict[str, ModuleType]) -> None:
    text = "By :func:`~captum_fam.explain` or :meth:`compare <captum_fam.Support.compare>`, :math:`z_n` of ``(B, N)``."
    assert site["llms_txt"]._plain(text) == "By `explain` or `compare`, $z_n$ of `(B, N)`."


def test_words_before_a_colon_are_no_type(site: dict[str, ModuleType]) -> None:
    from sphinx.ext.napoleon import Config, GoogleDocstring

    config = Config(napoleon_use_rtype=False)
    for what, lines in (
        ("property", ["What the score is: a contrast."]),
        ("function", ["Draw.", "", "Returns:", "    A picture: of a map."]),
    ):
        site["api_pages"].no_type_before_a_colon(None, what, "thing", None, None, lines)
        shown = str(GoogleDocstring(lines, config, what=what, name="thing"))
        assert lines[-1].strip() in shown
        assert "type" not in shown


def test_types_behind_a_literal_have_no_marks(site: dict[str, ModuleType]) -> None:
    types = {"transform": "~torch.Size | ~typing.Literal['auto'] | ~torch.nn.modules.module.Module | ~torch.Tensor"}
    document = SimpleNamespace(autodoc_annotations={"captum_fam.LayerFAM": types})
    site["api_pages"].short_types(SimpleNamespace(env=SimpleNamespace(current_document=document)), "py", "class", None)
    assert types == {"transform": "~torch.Size | ~typing.Literal['auto'] | Module | Tensor"}


def test_a_number_and_its_interval_stay_in_one_line(site: dict[str, ModuleType]) -> None:
    unbroken = site["unbroken"].unbroken
    assert unbroken("0.27 ± 0.01 of 2 x 2, 95 % [0.1, -2.0]").split(" ") == [
        "0.27\xa0±\xa00.01",
        "of",
        "2\xa0x\xa02,",
        "95\xa0%",
        "[0.1,\xa0-2.0]",
    ]


def test_a_download_of_a_tutorial_has_its_code_and_links_that_work_anywhere(site: dict[str, ModuleType]) -> None:
    jupytext = pytest.importorskip("jupytext")
    kernel = "kernelspec:\n  display_name: Python 3\n  name: python3\n"
    head = f"---\njupytext:\n  text_representation:\n    format_name: myst\n{kernel}---\n\n"
    text = f"{head}# A title\n\n[Maps](../docs/which-map.md)\n\n```{{code-cell}} ipython3\nprint(1)\n```\n"
    notebook = jupytext.reads(site["borrowed_pages"]._for_download(text, REPOSITORY), fmt="md:myst")
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code"]
    assert notebook.cells[1].source == "print(1)"
    assert f"{REPOSITORY}/blob/main/docs/which-map.md" in notebook.cells[0].source


def test_an_index_of_a_letter_with_an_accent_stands_beside_it(site: dict[str, ModuleType]) -> None:
    text = site["mathml"].mathml(r"\bar c_n", as_block=False)
    # ⟨msub⟩⟨mover⟩c ˉ⟨/mover⟩ n⟨/msub⟩, not n below c
    assert text.index("<msub>") < text.index("<mover") < text.index("</mover>") < text.index("<mi>n</mi>")


def test_git_ignores_what_a_build_writes(site: dict[str, ModuleType]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no clone")
    written = ["_build/html/index.html", "api/index.rst", "cli.md", "tutorials/index.md", "pictures/index.rst"]
    paths = [f"docs/{page}" for page in [*written, *site["borrowed_pages"].BORROWED.values()]]
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ignored.stdout.split() == paths
