"""The rules of the house, each held over the source tree: who may know whom, and what a file may be."""

from __future__ import annotations

import ast
import pickle
import pydoc
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import captum_fam

ROOT = Path(captum_fam.__file__).parent
TESTS = Path(__file__).parent
LONGEST = 350

LONG_FILES: dict[str, str] = {
    "captum_fam/attr/base.py": "the one attribute of all methods; its arguments stand in it three times",
    "captum_fam/functional.py": "the paper's equations on tensors stand in one place",
    "captum_fam/support/memory_bank.py": "one class, of which half is the meaning of its arguments",
}
"""Files above the limit, with the reason why they are one concept that does not come apart."""

SHARED_NAMES: dict[str, str] = {
    "add_options": "what every subcommand has for the lazy table of the command line",
    "main": "what starts a program",
    "run": "what every subcommand has for the lazy table of the command line",
}
"""Public names that several files have, with the reason."""

PUBLIC_NAMES = """
    BatchExplainer Comparison EmbeddingModel Explainer Explanation FoundLayer LayerCorrespondence LayerFAM LayerPairs
    LayerSimilarityCAM LayerSimilarityShapley MemoryBank Neighbors SimilarityToSupport Support SupportPerQuery
    SupportSet TokenGrid Views create_model explain explain_pairs find_layer register_method register_model
    register_similarity
""".split()


@cache
def sources(folder: Path = ROOT) -> dict[str, ast.Module]:
    """The syntax tree of every file, by its path from the folder that holds ``folder``."""
    files = sorted(folder.rglob("*.py"))
    return {file.relative_to(folder.parent).as_posix(): ast.parse(file.read_text("utf-8")) for file in files}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(path): path for path in sources()}


def imported(tree: ast.AST) -> Iterator[tuple[str, str | None, int]]:
    """Module, name and line of each import: ``import m`` gives (m, None), ``from m import n`` gives (m, n)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module or "", alias.name, node.lineno) for alias in node.names)


def at_import(tree: ast.Module) -> ast.Module:
    """The statements that run when a module is imported, without those for type checkers."""

    def kept(statements: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for node in statements:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.If):
                is_typing = "TYPE_CHECKING" in ast.dump(node.test)
                found += kept([*([] if is_typing else node.body), *node.orelse])
            elif isinstance(node, ast.ClassDef | ast.With):
                found += kept(node.body)
            elif isinstance(node, ast.Try):
                found += kept([*node.body, *(line for handler in node.handlers for line in handler.body), *node.orelse])
            else:
                found.append(node)
        return found

    return ast.Module(kept(tree.body), [])


def target(module: str, name: str | None) -> str:
    """The file that an import runs: the module itself, or the one of its modules that is named."""
    inner = f"{module}.{name}"
    return inner if inner in MODULES else module


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_nothing_outside_the_experiments_imports_them() -> None:
    found = [
        f"{path}:{line}"
        for path, tree in sources().items()
        if not path.startswith("captum_fam/experiments/")
        for module, name, line in imported(tree)
        if f"{module}.{name}.".startswith("captum_fam.experiments.")
    ]
    assert not found


def test_the_equations_import_torch_only() -> None:
    roots = {module.partition(".")[0] for module, _, _ in imported(sources()["captum_fam/functional.py"])}
    assert roots - sys.stdlib_module_names == {"torch"}


def test_no_file_takes_a_private_name_of_another() -> None:
    found = []
    for path, tree in sources().items():
        modules = {}
        for module, name, line in imported(tree):
            if module.partition(".")[0] != "captum_fam" or name is None:
                continue
            if f"{module}.{name}" in MODULES:
                modules[name] = module
            elif is_private(name):
                found.append(f"{path}:{line} {name}")
        found += [
            f"{path}:{node.lineno} {node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if node.value.id in modules and is_private(node.attr)
        ]
    assert not found


def test_the_private_part_of_captum_is_imported_in_one_file() -> None:
    found = {
        path
        for path, tree in sources().items()
        for module, name, _ in imported(tree)
        if f"{module}.{name}.".startswith("captum._utils.")
    }
    assert found <= {"captum_fam/_captum.py"}


def test_no_circle_of_imports() -> None:
    arrows = {
        name: {target(module, what) for module, what, _ in imported(at_import(sources()[path]))} & MODULES.keys()
        for name, path in MODULES.items()
    }
    # A file that imports nothing more is taken away until none is left; what remains stands in circles or above one.
    while free := {name for name, others in arrows.items() if not others & arrows.keys()}:
        arrows = {name: others for name, others in arrows.items() if name not in free}
    used = {other for others in arrows.values() for other in others}
    assert not sorted(arrows.keys() & used)


def test_no_file_is_long_without_a_reason() -> None:
    lengths = {path: len((ROOT.parent / path).read_text("utf-8").splitlines()) for path in sources()}
    long = {path: length for path, length in lengths.items() if length > LONGEST}
    assert not [f"{path}: {length} lines" for path, length in long.items() if path not in LONG_FILES]
    assert not LONG_FILES.keys() - long.keys(), "these are short again: take them from the list"


def test_no_two_things_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path, tree in sources().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path)
    shared = {name: sorted(set(paths)) for name, paths in places.items() if len(set(paths)) > 1}
    assert not [f"{name}: {', '.join(paths)}" for name, paths in shared.items() if name not in SHARED_NAMES]
    assert not SHARED_NAMES.keys() - shared.keys(), "these are no longer shared: take them from the list"


def test_no_test_module_imports_another() -> None:
    found = [
        f"{path}:{line}"
        for path, tree in sources(TESTS).items()
        for module, name, line in imported(tree)
        if module.partition(".")[0] == "tests"
        and any(part.startswith("test_") for part in f"{module}.{name}".split("."))
    ]
    assert not found


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh Python has loaded after some code."""
    code = f"{code}\nimport sys; print('MODULES', *sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.partition("MODULES")[2].split())


@pytest.mark.parametrize("words", ["--version", "--help"])
def test_the_command_says_what_it_is_without_torch(words: str) -> None:
    code = f"from captum_fam.cli.main import main\ntry: main(['{words}'])\nexcept SystemExit: pass"
    roots = {name.partition(".")[0] for name in loaded_by(code)}
    assert not {"torch", "captum", "numpy", "PIL", "matplotlib"} & roots


def test_importing_the_package_imports_nothing_else() -> None:
    assert {name for name in loaded_by("import captum_fam") if name.startswith("captum_fam.")} == set()


@pytest.mark.parametrize("room", ["cli", "demo", "experiments", "metrics", "models", "visualization"])
def test_an_attribution_loads_no_room_that_it_does_not_need(room: str) -> None:
    loaded = loaded_by("from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet")
    assert not {name for name in loaded if name.split(".")[:2] == ["captum_fam", room]}


def test_explain_loads_no_torchvision() -> None:
    # Importing torchvision takes longer than importing the rest of what explain() needs besides torch.
    assert "torchvision" not in {name.partition(".")[0] for name in loaded_by("from captum_fam import explain")}


def test_the_core_loads_no_optional_library() -> None:
    names = ", ".join(captum_fam.__all__)
    roots = {name.partition(".")[0] for name in loaded_by(f"from captum_fam import {names}")}
    extras = {
        "torchmetrics",
        "scipy",
        "faiss",
        "timm",
        "safetensors",
        "tensorboard",
        "transformers",
        "open_clip",
        "ray",
        "lightning",
        "pandas",
        "pytorch_lightning",
    }
    assert not {*extras, "pyarrow"} & roots


def test_the_public_names_are_these() -> None:
    assert sorted(captum_fam.__all__) == sorted(PUBLIC_NAMES)
    assert set(captum_fam.__all__) <= set(dir(captum_fam))
    for name in captum_fam.__all__:
        assert getattr(captum_fam, name).__name__ == name


def test_type_checkers_see_the_same_names_in_the_same_homes() -> None:
    (typing_only,) = (node for node in sources()["captum_fam/__init__.py"].body if isinstance(node, ast.If))
    seen = {name: module for module, name, _ in imported(typing_only)}
    assert seen == captum_fam._HOMES


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="LayerFAN"):
        captum_fam.LayerFAN  # noqa: B018
    with pytest.raises(ImportError, match="LayerFAN"):
        exec("from captum_fam import LayerFAN")


def test_public_names_are_found_completed_pickled_and_documented() -> None:
    code = (
        "import captum_fam\n"
        "assert 'LayerFAM' in dir(captum_fam) and 'metrics' in dir(captum_fam)\n"
        "assert captum_fam.metrics.energy_proportion\n"
        "import captum_fam.attr\n"
        "assert captum_fam.LayerFAM is captum_fam.attr.LayerFAM\n"
        "from captum_fam import *\n"
        "assert SupportSet is captum_fam.SupportSet\n"
    )
    loaded_by(code)
    assert pickle.loads(pickle.dumps(captum_fam.LayerFAM)) is captum_fam.LayerFAM
    text = pydoc.plain(pydoc.render_doc(captum_fam))
    assert all(name in text for name in PUBLIC_NAMES)
