"""A third party adds a similarity, method, support, model, measure and protocol: one file each, public names only.

Each stands in a file of its own beside this one, and is used in the classes, in ``explain``, on the command line and in
``evaluate``. The package is not touched.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torch import Tensor, nn

from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet, create_model, explain
from captum_fam.cli.main import main
from captum_fam.experiments import Conventions, MapBatch
from captum_fam.experiments.measures import MEASURES

HERE = Path(__file__).parent
FILES = sorted(path for path in HERE.glob("*.py") if path.stem != "test_extensions")


@pytest.fixture(autouse=True, scope="module")
def extensions() -> Iterator[None]:
    """Imports all extensions under their own names, as a user's program does."""
    sys.path.insert(0, str(HERE))
    for path in FILES:
        import_module(path.stem)
    yield
    sys.path.remove(str(HERE))
    # What they registered is taken back too, so that a later import must register it anew.
    for path in FILES:
        del sys.modules[path.stem]


@pytest.fixture
def net() -> nn.Module:
    return create_model("edges").model.double()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 48, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes of two images each."""
    generator = np.random.default_rng(0)
    for name in ("jay/a", "jay/b", "wren/a", "wren/b"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (60, 50, 3), dtype=np.uint8)).save(path)
    return tmp_path


def plugins(*names: str) -> list[str]:
    return [word for name in names for word in ("--plugin", str(HERE / f"{name}.py"))]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_extension_uses_public_names_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("captum_fam"):
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            assert not [part for part in parts if part.startswith("_")]


def test_a_similarity_is_found_by_name(net: nn.Module, images: Tensor) -> None:
    x, support = images[:2], images[2:]
    embeddings, of_support = net(x), net(support)
    expected = (embeddings[:, None] * of_support[None]).sqrt().sum(2).mean(1)
    details = LayerSimilarityCAM(net, net.act, similarity="overlap").details(x, support=support)
    torch.testing.assert_close(details.comparison.score, expected.detach())
    torch.testing.assert_close(details.attributions.sum((1, 2, 3)), expected.detach())
    scores = SimilarityToSupport(net, support, "overlap")
    torch.testing.assert_close(scores(x)[:, 0], expected)
    why = explain(net, x, support, layer="act", method="similarity-cam", similarity="overlap")
    assert why.account_text(0) == "explains 100 % of the score"


def test_a_method_is_found_by_name_and_class(net: nn.Module, images: Tensor) -> None:
    method: Any = sys.modules["absolute_method"].LayerAbsolute
    support = SupportSet(images[2:], [0, 1, 0, 1])
    by_class = method(net, net.act).attribute(images[:2], support=support)
    score = SimilarityToSupport(net, support)(images[:2]).amax(1)
    torch.testing.assert_close(by_class.sum((1, 2, 3)), score.detach())
    for named in ("absolute_1", method):
        why = explain(net, images[:2], support, layer="act", method=named)
        torch.testing.assert_close(why.attributions, by_class)
        assert why.method == "absolute_1"


def test_a_support_is_explained_by_every_method_with_any_foil(net: nn.Module, images: Tensor) -> None:
    embeddings = net(images[2:]).detach()
    support: Any = sys.modules["decaying_support"].DecayingSupport(embeddings)
    x = images[:2]
    cosines = nn.functional.cosine_similarity(net(x)[:, None], embeddings[None], dim=2)
    even = (cosines[:, 0] * 0.125 + cosines[:, 2] * 0.5) / 0.625
    odd = (cosines[:, 1] * 0.25 + cosines[:, 3] * 1.0) / 1.25
    scores = SimilarityToSupport(net, support, foil="others")
    torch.testing.assert_close(scores(x), torch.stack([even - odd, odd - even], 1))
    assert LayerGradCam(scores, net.act).attribute(x, target=1).shape == (2, 1, 24, 20)
    exact = LayerSimilarityCAM(net, net.act).attribute(x, support=support, target=1)
    torch.testing.assert_close(exact.sum((1, 2, 3)), odd.detach())
    assert LayerFAM(net, net.act).attribute(x, support=support).shape == (2, 1, 24, 20)
    why = explain(net, x, support, layer="act", method="similarity-cam", foil="runner-up", target="odd")
    torch.testing.assert_close(why.target_scores, (odd - even).detach())


def test_a_model_is_found_by_name() -> None:
    net = create_model("edges")
    assert (net.size, net.layer) == (48, "act")


def test_the_command_line_takes_all_of_them_by_name(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folders / "out"
    support = [str(folders / name) for name in ("jay", "wren")]
    code = main(
        [
            *plugins("overlap_similarity", "absolute_method", "edges_model"),
            "explain",
            *(str(folders / "jay" / "a.png"), "--support", *support, "--model", "edges"),
            *("--methods", "absolute_1,similarity-cam", "--similarity", "overlap", "--out", str(out)),
        ]
    )
    assert code == 0, capsys.readouterr().err
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert re.search("overlap", str(manifest["similarity"]), re.IGNORECASE)
    assert set(manifest["queries"][0]["methods"]) == {"absolute_1", "similarity-cam"}


def test_evaluate_takes_a_method_a_measure_a_model_and_a_similarity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        [
            *plugins("overlap_similarity", "absolute_method", "edges_model", "peak_measure"),
            *("evaluate", "few-shot", "--model", "edges", "--data", "scenes:96", "--episodes", "2", "--query", "2"),
            *("--similarity", "overlap", "--methods", "absolute_1,fam-foil,uniform", "--measures", "peak+box,swap"),
            *("--out", str(tmp_path / "run"), "--examples", "1"),
        ]
    )
    assert code == 0, capsys.readouterr().err
    rows = table(tmp_path / "run")
    assert {row["method"] for row in rows} >= {"absolute_1", "fam-foil", "uniform"}
    assert {row.get("measure", row.get("column")) for row in rows} >= {"peak+box"} or "peak+box" in rows[0]
    maps = torch.zeros(2, 1, 3, 4)
    maps[:, 0, 1, 2] = 1  # the pixels around row 3, column 5 of 6 x 8
    boxes = [torch.tensor([[4.0, 2.0, 6.0, 4.0]]), torch.tensor([[0.0, 0.0, 4.0, 6.0]])]
    found = MEASURES["peak+box"].compute(MapBatch(maps, (6, 8), boxes=boxes), Conventions())
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [1, 0]


def test_evaluate_takes_a_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        [
            *plugins("twins_protocol", "peak_measure"),
            *("evaluate", "twins", "--model", "demo", "--data", "scenes:96", "--stride", "8"),
            *("--measures", "localization,peak+box", "--out", str(tmp_path / "run"), "--examples", "1"),
        ]
    )
    assert code == 0, capsys.readouterr().err
    settings = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (settings["protocol"], settings["stride"]) == ("twins", 8)
    assert len(table(tmp_path / "run")) > 0
