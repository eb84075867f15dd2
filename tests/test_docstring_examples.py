"""The examples in the docstrings run, and print what they say."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from captum.attr import LayerGradCam
from torch import nn

import captum_fam
from captum_fam.visualization import visualize_match

# These examples read data or weights that the reader of the example has, or ask the network.
NEED_FILES = {
    "captum_fam.models.torchvision_models.load_torchvision",
    "captum_fam.embedding.batch_loader.BatchLoader",
    "captum_fam.experiments.data.cub.CUB200",
    "captum_fam.experiments.data.episodes.EpisodeSampler",
    "captum_fam.experiments.data.imagenet.ImageNetBoxes",
    "captum_fam.support.memory_bank.MemoryBank.from_dataset",
    "captum_fam.models.checkpoints.load_weights",
    "captum_fam.models.lemniscate.read_memory_bank",
    "captum_fam.models.creation.create_model",
    "captum_fam.models.downloads.check_reachable",
    "captum_fam.models.downloads.hub",
    "captum_fam.models.downloads.why_unreachable",
    "captum_fam.models.hf_models.load_hf",
    "captum_fam.models.hf_preprocessing.read_preprocessing",
    "captum_fam.models.open_clip_models.load_open_clip",
    "captum_fam.experiments.protocols.few_shot.FewShot",
    "captum_fam.experiments.training.contrastive.training.train_contrastive",
    "captum_fam.experiments.training.few_shot.train_few_shot",
    "captum_fam.experiments.training.metric.train_metric",
}
# These modules import packages of an extra.
EXTRAS = (
    "captum_fam.experiments.protocols",
    "captum_fam.experiments.training",
)


class Model(nn.Module):
    """An embedding model with ``layer4``, ``(B, 6, 7, 7)`` for images of 224 x 224."""

    def __init__(self) -> None:
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(3, 6, 32, stride=32), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer4(x).mean((2, 3))


def what_readers_have() -> dict[str, Any]:
    """The names that examples take for granted."""
    model, images, labels = Model().eval(), torch.rand(8, 3, 224, 224), torch.arange(8) % 4
    return {
        **{name: getattr(captum_fam, name) for name in captum_fam.__all__},
        "torch": torch,
        "torchvision": torchvision,
        "LayerGradCam": LayerGradCam,
        "visualize_match": visualize_match,
        "model": model,
        "images": images,
        "labels": labels,
        "support": captum_fam.SupportSet(images, labels),
        "images_of_one_class": images[:3],
        "queries": torch.rand(8, 3, 224, 224),
        "attributions": torch.rand(8, 1, 7, 7),
        "photo": torch.rand(3, 60, 90),
        "photos": torch.rand(2, 3, 60, 90),
        "fam": captum_fam.LayerFAM(model, model.layer4),
        "bank": captum_fam.MemoryBank(model(images), labels),
        "rows_of_the_images": torch.arange(8),
    }


def modules() -> list[str]:
    infos = pkgutil.walk_packages(captum_fam.__path__, "captum_fam.")
    return [info.name for info in infos if not info.name.endswith("__main__")]


def examples(name: str, names: dict[str, Any] | None = None) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    tests = doctest.DocTestFinder().find(module, globs={**(names or {}), **vars(module)})
    return [test for test in tests if test.examples]


def _without_download(build: Any) -> Any:
    return lambda weights=None: build(weights=None)


@pytest.mark.parametrize("name", modules())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_examples_print_what_they_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith(EXTRAS) or name.endswith("_metric"):
        pytest.importorskip("torchmetrics")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "resnet18", _without_download(torchvision.models.resnet18))
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in examples(name, what_readers_have()):
        if test.name not in NEED_FILES:
            report: list[str] = []
            assert runner.run(test, out=report.append).failed == 0, "".join(report)


def test_what_is_left_out_is_there() -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("safetensors")
    assert {test.name for name in modules() for test in examples(name)} >= NEED_FILES


def _is_returned(thing: Any) -> bool:
    """Whether a class is only returned by functions, whose examples show it."""
    return dataclasses.is_dataclass(thing) or hasattr(thing, "_fields")


def _is_of(thing: Any, package: str) -> bool:
    """Whether a class or function is defined in a package."""
    return (getattr(thing, "__module__", None) or "").startswith(package)


@pytest.mark.parametrize(
    "room",
    [
        "captum_fam",
        "attr",
        "embedding",
        "callbacks",
        "explanation",
        "metrics",
        "models",
        "pooling",
        "report",
        "similarity",
        "support",
        "visualization",
    ],
)
def test_every_public_class_and_function_has_an_example(room: str) -> None:
    pytest.importorskip("torchmetrics")
    package = captum_fam if room == "captum_fam" else importlib.import_module(f"captum_fam.{room}")
    public = getattr(package, "__all__", [name for name in vars(package) if not name.startswith("_")])
    things = [getattr(package, name) for name in public]
    here = [thing for thing in things if callable(thing) and _is_of(thing, package.__name__)]
    assert len(here) >= 4
    assert not [thing.__name__ for thing in here if not _is_returned(thing) and ">>>" not in (thing.__doc__ or "")]


def test_every_public_method_says_what_it_does_or_inherits_that() -> None:
    pytest.importorskip("torchmetrics")
    silent = []
    for name in modules():
        for thing in vars(importlib.import_module(name)).values():
            if not isinstance(thing, type) or thing.__module__ != name or thing.__name__.startswith("_"):
                continue
            public = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
            methods = [key for key, value in public.items() if callable(value) or isinstance(value, property)]
            silent += [f"{name}.{thing.__name__}.{key}" for key in methods if not inspect.getdoc(getattr(thing, key))]
    assert not silent
