"""An explanation is saved completely or not at all, and drawn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from captum_fam import SimilarityToSupport, SupportSet
from captum_fam.explanation import compare_figure, explain, write_query
from tests.explanation.by_hand import picture, small_model
from tests.explanation.names import NAMES


def test_an_explanation_cannot_be_changed(model: nn.Module, queries: Tensor, supports: Tensor) -> None:
    explanation = explain(model, queries, supports, layer="features")
    with pytest.raises(dataclasses.FrozenInstanceError):
        explanation.method = "other"  # type: ignore[misc]


def test_saving_writes_what_the_manifest_lists(
    model: nn.Module, support: SupportSet, many_queries: Tensor, tmp_path: Path
) -> None:
    photos = [torch.rand(3, 30, 40 + i) for i in range(5)]
    names = [f"bird {i}" for i in range(5)]
    explanation = explain(
        model,
        many_queries,
        support,
        layer="features",
        method="similarity-cam",
        foil="others",
        images=photos,
        names=names,
    )
    explanation.save(tmp_path / "new" / "result")
    manifest = json.loads((tmp_path / "new" / "result" / "manifest.json").read_text())
    listed = {"manifest.json"}
    for i, query in enumerate(manifest["queries"]):
        entry = query["methods"]["similarity-cam"]
        listed |= {query["arrays"], entry["overlay"]}
        pictures = [*query["pictures"], *query["foil_pictures"]]
        assert sorted(row for row, _ in pictures) == [0, 1, 2, 3, 4, 5]
        listed |= {one["file"] for _, images in pictures for one in images}
        assert entry["coverage"] == float(explanation.coverage[i])
        assert entry["shares"] == {name: float(share[i]) for name, share in explanation.shares.items()}
        assert entry["account"] == "explains 100 % of the score"
        assert entry["flat"] is False
        arrays = np.load(tmp_path / "new" / "result" / query["arrays"])
        np.testing.assert_array_equal(arrays["similarity-cam"], explanation.maps[i, 0])
        np.testing.assert_array_equal(arrays["similarity-cam.layer"], explanation.attributions[i, 0])
        assert arrays["similarity-cam.delta"] == explanation.convergence_delta[i]
        assert arrays["similarity-cam.coverage"] == explanation.coverage[i]
        assert {name: arrays[f"similarity-cam.shares.{name}"] for name in entry["shares"]} == entry["shares"]
        assert query["name"] == names[i]
        assert query["scores"] == dict(zip(NAMES, explanation.scores[i].tolist(), strict=True))
        assert query["target"] == NAMES[explanation.target[i]]
        assert query["plain_score"] == float(explanation.plain_scores[i])
        overlay = Image.open(tmp_path / "new" / "result" / query["methods"]["similarity-cam"]["overlay"])
        assert overlay.size == (40 + i, 30)
    assert {path.name for path in (tmp_path / "new" / "result").iterdir()} == listed
    assert manifest["model"] == "EmbeddingNet"
    assert manifest["layer"] == "features"
    assert manifest["foil"] == "others"
    assert manifest["supports"] == {"wren": 2, "jay": 3, "crow": 1}
    assert manifest["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_channel_contributions_are_saved(model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path) -> None:
    explanation = explain(model, queries, supports, layer="features", method="fam")
    explanation.save(tmp_path)
    assert explanation.contributions is not None
    arrays = np.load(tmp_path / "query-1.npz")
    np.testing.assert_array_equal(arrays["fam.contributions"], explanation.contributions[1])


def test_a_result_that_cannot_be_finished_leaves_the_last_one_as_it_was(
    model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explanation = explain(model, queries, supports, layer="features")
    explanation.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("json.dumps", fail)
    with pytest.raises(OSError, match="no space left"):
        explain(model, queries * 2, supports, layer="features").save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_of_others_in_the_folder_stay(
    model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        explain(model, queries, supports, layer="features").save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_figure_shows_prediction_class_and_score(model: nn.Module, support: SupportSet, many_queries: Tensor) -> None:
    explanations = [
        explain(model, many_queries, support, layer="features", method=method, target="jay", foil="others")
        for method in ("similarity-cam", "grad-cam", "random")
    ]
    axes = compare_figure(explanations, 3, torch.rand(2, 3, 4, 4)).axes
    titles = [ax.get_title().replace("(plain score\n", "(plain score ") for ax in axes if ax.get_title()]
    first = explanations[0]
    wren, jay, crow = SimilarityToSupport(model, support)(many_queries)[3].tolist()
    others = (wren + crow) / 2
    torch.testing.assert_close(float(first.target_scores[3]), jay - others)
    score = f"score {jay - others:#.3g} (plain score {jay:#.3g})"
    predicted = NAMES[explanations[0].predicted[3]]
    assert titles == [
        f"query-3\npredicted: {predicted}",
        "support\njay\n2 of 3",
        f"similarity-cam\nfoil: others\n{score}\nexplains 100 % of the score",
        f"grad-cam\nfoil: others\n{score}\nno account of the score",
        "random\nno account of the score",
    ]


def _inputs(channels: int, size: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """A network with a layer ``"1"``, and five inputs that are not in [0, 1]."""
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(size)]
    pooling = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[len(size)]
    torch.manual_seed(0)
    net = nn.Sequential(convolution(channels, 6, 3), nn.ReLU(), pooling(1), nn.Flatten()).eval()
    return net, 4 * torch.randn(5, channels, *size)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("size", [(37,), (9, 14), (11, 6, 9)], ids=["signal", "image", "volume"])
def test_inputs_of_any_dimensions_and_channels_are_saved_and_drawn(
    channels: int, size: tuple[int, ...], tmp_path: Path
) -> None:
    net, inputs = _inputs(channels, size)
    why = explain(net, inputs[:2], inputs[2:], layer="1", method="similarity-cam")
    why.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for index, query in enumerate(manifest["queries"]):
        entry = query["methods"]["similarity-cam"]
        assert entry["map_size"] == list(size)
        assert entry["layer_size"] == [side - 2 for side in size]
        arrays = np.load(tmp_path / query["arrays"])
        np.testing.assert_array_equal(arrays["similarity-cam"], why.maps[index, 0])
        np.testing.assert_array_equal(arrays["similarity-cam.layer"], why.attributions[index, 0])
        overlay = Image.open(tmp_path / entry["overlay"])
        assert overlay.size == (14, 9) if len(size) == 2 else min(overlay.size) > 100
    compare_figure([why, why], 1, why.images, list(why.images)).save(tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").size[1] > 300


def test_other_images_for_display_win(tmp_path: Path) -> None:
    net, inputs = _inputs(13, (9, 14))
    photos = [Image.new("RGB", (40 + index, 30), "white") for index in range(2)]
    why = explain(net, inputs[:2], inputs[2:], layer="1", images=photos)
    assert [why.overlay(index).size for index in range(2)] == [(40, 30), (41, 30)]
    assert why.figure(1).axes[0].get_title() == "query-1"
    assert explain(net, inputs[:2], inputs[2:], layer="1").figure(1).axes[0].get_title() == (
        "query-1\nmean of 13 channels"
    )


def test_overlays_can_be_left_out(model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path) -> None:
    # Without overlays, images that cannot be drawn do no harm.
    why = explain(model, queries, supports, layer="features", images=queries)
    with pytest.raises(ValueError, match="unnormalize"):
        why.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    why.save(tmp_path, overlays=False)
    assert sorted(path.name for path in tmp_path.glob("[!p]*")) == ["manifest.json", "query-0.npz", "query-1.npz"]
    assert {path.suffix for path in tmp_path.glob("p*")} == {".jpg"}  # of the supports
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [list(query["methods"]["fam"]) for query in manifest["queries"]] == [
        ["map_size", "layer_size", "flat", "account"]
    ] * 2
    (tmp_path / "one").mkdir()
    written = write_query([why, *why.beside], 1, tmp_path / "one", overlays=False)["methods"]
    assert all("overlay" not in written[method] for method in ("similarity-cam", "fam"))


def test_what_the_run_noticed_is_in_the_manifest(
    model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path
) -> None:
    why = explain(model, queries, supports, layer="features")
    dataclasses.replace(why, notes=("two supports were left out",)).save(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["notes"] == ["two supports were left out"]


@pytest.mark.parametrize(("given", "expected"), [(0, []), (3, ["3 of 10"]), (9, ["9 of 10"]), (10, ["9 of 10"])])
def test_a_figure_says_how_many_of_the_supports_are_drawn(
    model: nn.Module, queries: Tensor, make_images: Callable[..., Tensor], given: int, expected: list[str]
) -> None:
    supports = make_images(10)
    figure = explain(model, queries, supports, layer="features").figure(1, torch.rand(10, 3, 4, 4)[:given])
    titles = [ax.get_title().split("\n") for ax in figure.axes if ax.get_title().startswith("support")]
    assert titles == [["support", *expected]] * bool(given)


def test_the_preprocessing_of_pictures_is_in_the_manifest(tmp_path: Path) -> None:
    explain(small_model(), [picture(0)], [picture(1)]).save(tmp_path / "pictures")
    manifest = json.loads((tmp_path / "pictures" / "manifest.json").read_text())
    assert manifest["preprocessing"] == json.loads(json.dumps(small_model().preprocessing.describe()))
    assert manifest["preprocessing"]["size"] == [20, 12]
    explain(small_model(), torch.rand(2, 3, 20, 12), torch.rand(2, 5)).save(tmp_path / "inputs")
    assert json.loads((tmp_path / "inputs" / "manifest.json").read_text())["preprocessing"] is None

    def transform(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255

    why = explain(small_model().model, [picture(0)], torch.rand(2, 5), layer="features", preprocess=transform)
    assert "transform" in why.about["preprocessing"]["transform"]
