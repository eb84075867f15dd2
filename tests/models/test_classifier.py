"""A classifier that was left on is noticed by its name or size, and a metric head is not."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models

from captum_fam.models import classifier_note, create_model


class Named(nn.Module):
    """Features and a last layer of some name."""

    def __init__(self, name: str, last: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.add_module(name, last)


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (models.resnet18, r"'fc' \(1000 outputs\)"),
        (models.squeezenet1_1, r"'classifier\.1' \(1000 outputs\)"),
        (models.mobilenet_v3_small, r"'classifier\.3' \(1000 outputs\)"),
        (models.vit_b_32, r"'heads\.head' \(1000 outputs\)"),
        (lambda: models.swin_t(num_classes=21841), r"'head' \(21841 outputs\)"),
        (lambda: Named("classifier", nn.Linear(8, 200)), r"'classifier' \(200 outputs\)"),
        (lambda: Named("logits", nn.Sequential(nn.Linear(8, 7), nn.Softmax(1))), r"'logits\.0' \(7 outputs\)"),
        (lambda: nn.DataParallel(models.resnet18()), r"'module\.fc'"),
    ],
    ids=["fc", "1x1 convolution", "classifier", "heads", "head", "few classes", "softmax", "wrapped"],
)
def test_a_classifier_is_named_with_its_size(make: Callable[[], nn.Module], layer: str) -> None:
    with torch.device("meta"):
        note = classifier_note(make())
    assert note is not None

    assert re.search(f"classifier still on, layer {layer}", note)


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.resnet18(num_classes=128),  # the head of MoCo
        lambda: Named("head", nn.Linear(8, 128)),
        lambda: Named("fc", nn.Linear(8, 512)),
        lambda: Named("embedder", nn.Sequential(nn.Linear(8, 2048), nn.ReLU(), nn.Linear(2048, 64))),
        lambda: Named("classifier", nn.Identity()),
        # What stays of a VGG without its last layer is no classifier: a ReLU follows.
        lambda: Named("classifier", nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(), nn.Identity())),
        lambda: nn.Conv2d(3, 4, 3),
    ],
)
def test_a_metric_head_is_no_classifier(make: Callable[[], nn.Module]) -> None:
    assert classifier_note(make()) is None


@pytest.mark.parametrize(
    ("make", "layer", "remedy"),
    [
        (lambda: models.resnet18(num_classes=37), "'fc' (37 outputs)", "model.fc"),
        (lambda: Named("head", nn.Sequential(nn.Dropout(), nn.Linear(8, 5))), "'head.1' (5 outputs)", "model.head[1]"),
        (lambda: nn.Sequential(Named("last_linear", nn.Linear(8, 9))), "'0.last_linear'", "model[0].last_linear"),
        (lambda: Named("heads", nn.ModuleDict({"a-b": nn.Linear(8, 7)})), "'heads.a-b'", "model.heads['a-b']"),
        (lambda: Named("fc", nn.ModuleDict({"class": nn.Linear(8, 7)})), "'fc.class'", "model.fc['class']"),
    ],
)
def test_what_may_be_a_classifier_is_said_to_be_perhaps_one(
    make: Callable[[], nn.Module], layer: str, remedy: str
) -> None:
    """A fine-tuned network has its classifier under a name that metric heads have too."""
    with torch.device("meta"):
        note = classifier_note(make())
    assert note is not None
    assert note.startswith(f"layer {layer}")
    assert "may be a classifier" in note
    assert note.endswith(f"replace it: {remedy} = torch.nn.Identity()")


def test_the_remedy_is_python_that_removes_the_classifier() -> None:
    model = nn.Sequential(models.mobilenet_v3_small())
    note = classifier_note(model)
    assert note is not None
    exec(note.partition("replace it: ")[2], {"model": model, "torch": torch})
    assert classifier_note(model) is None
    assert isinstance(model[0].classifier[3], nn.Identity)


@pytest.mark.parametrize("name", ["resnet18", "maxvit_t", "convnext_tiny", "vgg11", "vit_b_32"])
def test_networks_by_name_have_lost_their_classifier(name: str) -> None:
    with torch.device("meta"):
        assert classifier_note(create_model(name).model) is None


def test_a_layer_that_does_not_give_the_embedding_is_none() -> None:
    network = Named("logits", nn.Linear(8, 8631))  # facenet has it, and does not use it
    assert classifier_note(network, n_features=512) is None
    assert classifier_note(network, n_features=8631) is not None


def test_a_network_of_transformers_is_known_by_its_class() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, num_labels=5
    )
    note = classifier_note(nn.Sequential(transformers.ViTForImageClassification(config)))
    assert note is not None
    assert r"ViTForImageClassification (0)" in note
    assert classifier_note(transformers.ViTModel(config, add_pooling_layer=False)) is None


def test_a_network_of_timm_is_known_by_its_number_of_classes() -> None:
    timm = pytest.importorskip("timm")
    assert classifier_note(timm.create_model("test_vit", num_classes=1000)) is not None
    assert classifier_note(timm.create_model("test_vit", num_classes=64)) is None
    assert classifier_note(timm.create_model("test_vit", num_classes=0)) is None
