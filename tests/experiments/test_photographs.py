"""Birds and an ImageNet network: the figures of an independent pilot (same split, squash 224, last Fire module)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from captum_fam.experiments.data.boxed_images import BoxedImage
from captum_fam.experiments.data.load import load_dataset
from captum_fam.experiments.evaluation import evaluate
from captum_fam.experiments.measures import Panel
from captum_fam.experiments.model_loading import load_model
from captum_fam.experiments.protocols.few_shot import FewShot
from captum_fam.experiments.protocols.mosaic import Mosaic
from captum_fam.experiments.table_methods import get_methods
from captum_fam.experiments.two_part_model import TwoPartModel


class FirstOfEach(Dataset[BoxedImage]):
    """The first few items of each class, so that the network has less to do."""

    def __init__(self, dataset: Dataset[BoxedImage], count: int) -> None:
        seen: Counter[int] = Counter()
        self.dataset = dataset
        self.items = []
        for item, label in enumerate(dataset.labels.tolist()):  # type: ignore[attr-defined]
            seen[label] += 1
            if seen[label] <= count:
                self.items.append(item)
        self.labels = dataset.labels[self.items]  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> BoxedImage:
        return self.dataset[self.items[index]]


@pytest.fixture(scope="module")
def birds(shared_folder: Path) -> tuple[TwoPartModel, FirstOfEach]:
    model = load_model("squeezenet", shared_folder / "weights/squeezenet1_0_imagenet.pth")
    return model, FirstOfEach(load_dataset(shared_folder / "data/cub50", "novel", model), 20)


@pytest.mark.slow
def test_few_shot_figures_are_those_of_the_pilot(birds: tuple[TwoPartModel, FirstOfEach], tmp_path: Path) -> None:
    panel = Panel(get_methods("fam,mean-activation,center[sigma=0.2],uniform"))
    evaluation = evaluate(FewShot(*birds, panel, episodes=30), tmp_path, examples=0)
    assert evaluation is not None
    assert evaluation.model["accuracy"].value == pytest.approx(0.54, abs=0.06)
    for method, energy, iou in (
        ("fam", 0.49, 0.43),
        ("mean-activation", 0.59, 0.54),
        ("center[sigma=0.2]", 0.60, 0.49),
        ("uniform", 0.34, 0.34),
    ):
        assert evaluation.methods[method]["energy"].value == pytest.approx(energy, abs=0.04)
        assert evaluation.methods[method]["iou"].value == pytest.approx(iou, abs=0.04)


@pytest.mark.slow
def test_mosaic_figures_are_those_of_the_pilot(birds: tuple[TwoPartModel, FirstOfEach], tmp_path: Path) -> None:
    panel = Panel(get_methods("fam,grad-cam,similarity-cam-foil"), ())
    evaluation = evaluate(Mosaic(*birds, panel, mosaics=30), tmp_path, examples=0)
    assert evaluation is not None
    for method, energy, auroc in (
        ("fam", 0.27, 0.54),
        ("grad-cam", 0.45, 0.66),
        ("similarity-cam-foil", 0.52, 0.71),
    ):
        assert evaluation.methods[method]["cell-energy"].value == pytest.approx(energy, abs=0.06)
        assert evaluation.methods[method]["cell-auroc"].value == pytest.approx(auroc, abs=0.05)
