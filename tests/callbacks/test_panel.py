"""The k-NN accuracy and the maps of a fixed panel of images."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import to_tensor

from captum_fam import LayerSimilarityCAM, MemoryBank
from captum_fam.callbacks import ExplanationPanel
from tests.callbacks.trained_nets import SmallNet, check_same_state, labeled, small_panel, training_state


class MeanColor(nn.Module):
    """The embedding of an image is its mean color."""

    def __init__(self) -> None:
        super().__init__()
        self.colors = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        means: Tensor = self.colors(x).mean((2, 3))
        return means


def at_angles(degrees: list[float]) -> Tensor:
    """Images ``(n, 3, 4, 2)`` of one color each, whose embeddings lie at these angles in a plane."""
    colors = [[math.cos(math.radians(one)), math.sin(math.radians(one)), 0.0] for one in degrees]
    return torch.tensor(colors)[:, :, None, None].expand(-1, -1, 4, 2).clone()


# The bank: a at 0 and 10 degrees, b at 25 and 80 degrees. The query at 20 degrees is nearest to the b at 25, but of its
# three neighbors at 25, 10 and 0 degrees the two a have more votes: exp(cos(10 deg) / 0.07) + exp(cos(20 deg) / 0.07) =
# 1.96e6 against exp(cos(5 deg) / 0.07) = 1.51e6. The query at 12 degrees is a, and that at 60 degrees is b. The last
# query is a although its label is b.
BANK = (at_angles([0, 10, 25, 80]), ["a", "a", "b", "b"])
QUERIES = (at_angles([20, 12, 60, 2]), ["b", "a", "b", "b"])


@pytest.mark.parametrize(("k", "temperature", "expected"), [(1, 0.07, 0.75), (3, 0.07, 0.5), (3, 0.001, 0.75)])
def test_the_accuracy_is_that_of_votes_counted_by_hand(k: int, temperature: float, expected: float) -> None:
    panel = ExplanationPanel(QUERIES, BANK, k=k, temperature=temperature, layer="colors")
    assert panel(MeanColor()).accuracy == expected


def test_maps_and_scores_are_those_of_the_classes_themselves() -> None:
    model = SmallNet()
    model(labeled(20, seed=8)[0])  # batch norms that have seen something
    panel = small_panel(shown=[3, 1], batch_size=2)
    reading = panel(model)
    model.eval()
    (images, labels), (bank_images, bank_labels) = labeled(5, seed=3), labeled(9, seed=4)
    with torch.no_grad():
        bank = MemoryBank(model(bank_images), bank_labels, k=3)
    shown = labels[[3, 1]]
    details = LayerSimilarityCAM(model, model.features).details(images[[3, 1]], support=bank, target=shown)
    torch.testing.assert_close(reading.explanation.attributions, details.attributions, rtol=1e-4, atol=1e-6)
    assert torch.equal(reading.explanation.target, shown)
    assert reading.explanation.names == ("query-3", "query-1")
    numbers = reading.numbers
    assert numbers["panel_score"] == pytest.approx(float(reading.explanation.target_scores.mean()))
    assert numbers["panel_coverage"] == pytest.approx(float(details.coverage.mean()), rel=1e-4)


def test_by_default_the_exact_map_has_fam_beside_it() -> None:
    why = small_panel()(SmallNet()).explanation
    assert [why.method, *(one.method for one in why.beside)] == ["similarity-cam", "fam"]


def test_a_reading_is_one_line() -> None:
    reading = small_panel(name="birds")(SmallNet())
    numbers = ", ".join(f"{name} {number:.4g}" for name, number in reading.numbers.items())
    assert repr(reading) == f"PanelReading('birds', {numbers}, {reading.explanation!r})"
    assert "\n" not in repr(reading)


def test_a_method_without_an_account_has_no_coverage() -> None:
    reading = small_panel(method="fam")(SmallNet())
    assert list(reading.numbers) == ["knn_accuracy", "panel_score"]


def test_predicted_classes_are_explained_on_request() -> None:
    panel = ExplanationPanel(QUERIES, BANK, k=3, layer="colors", target="predicted")
    why = panel(MeanColor()).explanation
    assert torch.equal(why.target, why.predicted)
    assert [why.class_names[one] for one in why.target.tolist()] == ["a", "a", "b", "a"]


def test_figures_have_the_images_of_the_bank_that_a_query_was_compared_with() -> None:
    reading = ExplanationPanel(QUERIES, BANK, k=1, layer="colors", shown=[2])(MeanColor())
    # The nearest b of the query at 60 degrees is the one at 80 degrees.
    (supports,) = reading.supports
    color = at_angles([80])[0]
    expected = (color - color.min()) / (color.max() - color.min())
    assert len(supports) == 1
    torch.testing.assert_close(supports[0], expected)
    (figure,) = reading.figures().values()
    assert figure.as_image().width > 200


@pytest.mark.parametrize(
    ("shown", "expected"), [(1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (9, [0, 1, 2, 3, 4]), ([4, 1], [4, 1])]
)
def test_shown_queries_are_spread_over_all_or_named(shown: Any, expected: list[int]) -> None:
    why = small_panel(shown=shown)(SmallNet()).explanation
    assert why.names == tuple(f"query-{position}" for position in expected)


def test_sources_of_all_kinds_give_the_same_reading(tmp_path: Path) -> None:
    (images, labels), (bank, bank_labels) = labeled(6, seed=3), labeled(9, seed=4)
    pixels = (images * 180).byte()
    for image, label, number in zip(pixels, labels.tolist(), range(6), strict=True):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / str(label) / f"{number}.png")
    by_class = labels.argsort(stable=True)
    images, labels = pixels[by_class] / 255, labels[by_class]
    model = SmallNet()
    readings = [
        ExplanationPanel(queries, (bank, bank_labels), k=3, layer="features", preprocess=to_tensor)(model)
        for queries in (
            (images, labels),
            (images.numpy(), labels.tolist()),
            TensorDataset(images, labels),
            DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=True),
            [{"image": image, "label": str(label)} for image, label in zip(images, labels.tolist(), strict=True)],
            tmp_path,
        )
    ]
    for reading in readings[1:]:
        assert reading.accuracy == readings[0].accuracy
        torch.testing.assert_close(reading.explanation.attributions, readings[0].explanation.attributions)


def test_the_layer_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    panel, model = small_panel(layer=None), SmallNet()
    first = panel(model).explanation.about["layer"]
    assert panel.layer == first
    monkeypatch.setattr("captum_fam.explanation.reading.layers.find_layer", None)
    assert panel(model).explanation.about["layer"] == first


def test_what_the_user_has_to_know_is_said_once_and_stands_in_every_reading() -> None:
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model.add_module("fc", nn.Linear(6, 10))
    panel = small_panel(layer="features.1")
    with pytest.warns(UserWarning, match="may be a classifier"):
        first = panel(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = panel(model)
    assert "may be a classifier" in "".join(first.explanation.notes)
    assert "may be a classifier" in "".join(second.explanation.notes)


def test_options_go_to_explain() -> None:
    panel = small_panel(foil="others", images=torch.rand(2, 3, 30, 20), names=["first", "second"], smooth=3)
    why = panel(SmallNet()).explanation
    assert why.about["foil"] == "others"
    assert why.smooth == 3
    assert why.names == ("first", "second")
    assert why.images[0].shape == (3, 30, 20)


def with_autocast(model: nn.Module) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return small_panel()(model)


@pytest.mark.parametrize(
    "look",
    [
        lambda model: small_panel()(nn.DataParallel(model)),
        lambda model: small_panel()(torch.compile(model, backend="eager")),
        lambda model: small_panel(layer="module.features")(torch.optim.swa_utils.AveragedModel(model)),
        lambda model: small_panel(layer=model.features)(lambda images: model(images)),
    ],
    ids=["DataParallel", "compiled", "averaged", "function"],
)
def test_wrapped_models_give_the_same_reading(look: Any) -> None:
    model = SmallNet().eval()
    expected, reading = small_panel()(model), look(model)
    assert reading.accuracy == expected.accuracy
    torch.testing.assert_close(reading.explanation.attributions, expected.explanation.attributions)


@pytest.mark.parametrize("look", [with_autocast, lambda model: small_panel()(model.bfloat16())])
def test_half_precision_gives_nearly_the_same_maps(look: Any) -> None:
    model = SmallNet()
    expected = small_panel()(model).explanation
    before = training_state(model)
    why = look(model).explanation
    torch.testing.assert_close(why.target_scores.float(), expected.target_scores, rtol=0.05, atol=0.05)
    assert why.attributions.isfinite().all()
    if look is with_autocast:
        check_same_state(before, training_state(model))


def test_a_look_under_inference_mode() -> None:
    with torch.inference_mode():
        assert small_panel()(SmallNet()).explanation.attributions.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small_panel(target="truth"), "target must be"),
        (lambda: small_panel(shown=0), "shown must be at least one"),
        (lambda: small_panel(shown=[5]), "shown must be positions from 0 to 4"),
        (lambda: small_panel(shown=[]), "shown must be positions"),
        (lambda: ExplanationPanel((torch.rand(2, 3, 8, 8), [0]), BANK), "queries must have one label per image"),
        (lambda: small_panel(k=0), "k must be"),
        (lambda: small_panel(temperature=0.0), "temperature must be"),
        (lambda: small_panel(sides="both"), 'sides must be "query"'),
        (lambda: small_panel(smooth=4), "smooth must be an odd whole number of at least 1, got 4"),
        (lambda: ExplanationPanel(QUERIES, labeled(9, 1)), "class 'a' has no image in the bank"),
        (lambda: ExplanationPanel(QUERIES, (BANK[0], ["a"] * 4)), "class 'b' has no image in the bank, .* are a;"),
        (lambda: ExplanationPanel(QUERIES, TensorDataset(torch.rand(0, 3, 8, 8), torch.zeros(0))), "bank is empty"),
        (lambda: ExplanationPanel(QUERIES, labeled(9, 1), layer="colors")(MeanColor()), "class 'a' has no image"),
        (lambda: small_panel(method="no-method")(SmallNet()), "no-method"),
    ],
)
def test_bad_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small_panel(foli="others"), "neither ExplanationPanel.. nor the methods .* argument 'foli'"),
        (lambda: ExplanationPanel(QUERIES[0], BANK), r"queries must be a pair .* got images without labels"),
        (lambda: ExplanationPanel(QUERIES, BANK[0]), r"bank must be a pair .* got images without labels"),
        (lambda: ExplanationPanel(((QUERIES[0], QUERIES[0]), QUERIES[1]), BANK), "queries .* got several tensors"),
    ],
)
def test_what_is_no_labeled_data_or_no_argument_is_refused_before_the_first_look(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_two_items_in_a_tuple_are_a_data_set() -> None:
    items = tuple(zip(QUERIES[0][:2], torch.tensor([1, 0]), strict=True))
    assert ExplanationPanel(items, BANK, k=1, layer="colors")(MeanColor()).accuracy == 1.0
    # Class indices of queries count in the classes of the bank.
    assert ExplanationPanel((QUERIES[0][:2], [1, 0]), BANK, k=1, layer="colors")(MeanColor()).accuracy == 1.0


def test_an_image_that_is_in_the_bank_too_does_not_find_itself() -> None:
    # Of the other images of the bank, the nearest to a at 0 degrees is a at 10, to a at 10 it is a at 0, to b at 25 it
    # is a at 10, and to b at 80 it is b at 25.
    panel = ExplanationPanel(BANK, BANK, k=1, layer="colors", shown=[3, 1])
    with pytest.warns(UserWarning, match="4 of 4 queries are in the bank, as the same image; there they are left out"):
        reading = panel(MeanColor())
    assert reading.accuracy == 0.75
    expected = [math.cos(math.radians(55)), math.cos(math.radians(10))]
    torch.testing.assert_close(reading.explanation.target_scores, torch.tensor(expected))
    assert [[one.row for one in why.supports_of()] for why in reading.explanation] == [[2], [0]]
    assert "as the same image" in reading.explanation.notes[0]
    assert not any("leave it out" in note for note in reading.explanation.notes)
    # One query of the bank among others: only that one is left out, and twice, if the bank has it twice.
    twice = (torch.cat([BANK[0], BANK[0][:1]]), [*BANK[1], "a"])
    mixed = (torch.cat([BANK[0][:1], QUERIES[0][:1]]), ["a", "b"])
    with pytest.warns(UserWarning, match="1 of 2 queries are in the bank"):
        reading = ExplanationPanel(mixed, twice, k=1, layer="colors")(MeanColor())
    expected = [math.cos(math.radians(10)), math.cos(math.radians(5))]
    torch.testing.assert_close(reading.explanation.target_scores, torch.tensor(expected))


def test_the_gallery_of_a_foil_leaves_the_query_out_too() -> None:
    panel = ExplanationPanel(BANK, BANK, k=1, layer="colors", shown=[0], foil="gallery")
    with pytest.warns(UserWarning, match="in the bank"):
        why = panel(MeanColor()).explanation
    others = [math.cos(math.radians(one)) for one in (10, 25, 80)]
    assert float(why.target_scores) == pytest.approx(others[0] - sum(others) / 3, abs=1e-5)


def test_a_query_that_is_its_whole_class_is_refused() -> None:
    bank = (at_angles([0, 10, 25]), ["a", "a", "b"])
    with pytest.raises(ValueError, match="query 2 is itself the only image of class 'b' in the bank"):
        ExplanationPanel(bank, bank, k=1, layer="colors")(MeanColor())


def test_a_class_of_the_queries_needs_an_image_in_the_bank() -> None:
    bank = TensorDataset(at_angles([0, 10]), torch.tensor([0, 0]))
    bank.classes = ["a", "b"]  # type: ignore[attr-defined]
    panel = ExplanationPanel((at_angles([20]), torch.tensor([1])), bank, layer="colors")
    with pytest.raises(ValueError, match="class 'b' has no image in the bank, whose classes are a;"):
        panel(MeanColor())


def test_a_sharded_model_is_refused() -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    for model in (FullyShardedDataParallel(), nn.Sequential(SmallNet())):
        if isinstance(model, nn.Sequential):
            next(model.parameters()).ds_id = 3
        with pytest.raises(ValueError, match="sharded"):
            small_panel()(model)
