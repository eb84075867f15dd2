"""Models that anyone registers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from captum_fam import LayerFAM
from captum_fam.geometry import ResizeCrop, Squash
from captum_fam.models import (
    EmbeddingModel,
    EmbeddingNet,
    Layout,
    WeightsError,
    create_model,
    default_weights,
    list_models,
    register_model,
)
from captum_fam.pooling import GAP, GMP


def plain(width=6):
    """Convolution, ReLU, global average: no names that anything could know."""
    return nn.Sequential(
        nn.Conv2d(3, width, 5, stride=4), nn.Sequential(nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class Pooled(EmbeddingNet):
    """With a head, and LeakyReLUs."""

    def __init__(self, width=6):
        features = nn.Sequential(nn.Conv2d(3, width, 5, stride=4), nn.LeakyReLU(0.3))
        super().__init__(features, GMP(), nn.Linear(width, 4), unit_norm=True)


def test_a_decorated_class_stays_what_it_is_and_is_made_by_name():
    decorated = register_model("decorated", size=32, interpolation="bicubic", evaluation_crop=(40, 32))(Pooled)
    assert decorated is Pooled
    assert "decorated" in list_models()
    net = create_model("decorated", width=5)
    assert isinstance(net.model, Pooled)
    assert not net.model.training
    assert (net.name, net.layer, net.layout) == ("decorated", "features", None)
    assert (net.geometry, net.evaluation_geometry) == (Squash(32, "bicubic"), ResizeCrop(40, 32, "bicubic"))
    assert net.pooling is net.model.pooling
    assert net.head is net.model.head
    assert net.head.in_features == 5


def test_of_a_plain_module_layer_and_pooling_are_measured():
    assert register_model("plain", plain, size=48) is plain
    net = create_model("plain")
    assert net.layer.startswith("1")
    x = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(net.pooling(net.layer_module(net.model[0](x))), net.model(x))
    assert LayerFAM(net.model, net.layer).attribute(x, support=torch.rand(2, 3, 48, 48)).shape == (2, 1, 11, 11)


def test_what_is_said_of_a_plain_module_is_not_measured():
    pooling = GAP()
    register_model("said", plain, size=48, layer="0", pooling=pooling, similarity="euclidean")
    net = create_model("said")
    assert (net.layer, net.pooling, net.similarity) == ("0", pooling, "euclidean")
    # Of another layer, the pooling is measured: behind the ReLU, the average is the embedding.
    assert create_model("said", layer="1").pooling is not pooling
    register_model("silent", plain, size=48, layer="0")
    assert create_model("silent").pooling is None


def test_a_factory_may_say_all_itself_and_the_registration_has_the_last_word():
    register_model("own-card", lambda: EmbeddingModel("?", plain(), "1", size=64, std=(1, 1, 1)), size=32)
    net = create_model("own-card")
    assert (net.name, net.layer, net.size, net.std, net.pooling) == ("own-card", "1", 32, (1, 1, 1), None)


def test_another_layer_of_any_model_can_be_named_and_then_no_pooling_is_claimed():
    register_model("other-layer", Pooled, size=48)
    net = create_model("other-layer", layer="features.0")
    assert (net.layer, net.pooling) == ("features.0", None)
    with pytest.raises(ValueError, match="layer 'nowhere'"):
        create_model("other-layer", layer="nowhere")


def test_weights_are_read_by_the_layouts_of_the_registration(tmp_path):
    theirs = Layout("theirs", rules=((r"^trunk\.", "features."),), negative_slope=0.0, normalization=(0.25, 0.5))
    register_model("laid-out", Pooled, layouts=[theirs], size=48)
    state = {name.replace("features.", "trunk."): value for name, value in Pooled().state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    net = create_model("laid-out", tmp_path / "a.pth")
    assert torch.equal(net.model.head.weight, state["head.weight"])
    assert (net.layout, net.mean, net.std) == ("theirs", (0.25,) * 3, (0.5,) * 3)
    assert net.model.features[1].negative_slope == 0
    assert create_model("laid-out", tmp_path / "a.pth", negative_slope=0.2).model.features[1].negative_slope == 0.2
    torch.save({"trunk.0.weight": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match=r"b\.pth do not fit Pooled, read as of theirs: .* missing"):
        create_model("laid-out", tmp_path / "b.pth")


def test_a_registered_model_says_whether_it_is_trained_without_a_file():
    register_model("untrained", plain, size=48)
    register_model("trained", plain, size=48, pretrained=True)
    assert (default_weights("untrained"), default_weights("trained")) == (None, "DEFAULT")
    assert create_model("trained", "DEFAULT").name == "trained"
    with pytest.raises(WeightsError, match="untrained has none that can be downloaded"):
        create_model("untrained", "DEFAULT")
    with pytest.raises(WeightsError, match="trained is made with trained weights, and cannot have random ones"):
        create_model("trained", "none")
    assert create_model("untrained", "none").name == "untrained"
    assert default_weights("resnet50") == default_weights("timm/resnet50") == "DEFAULT"


@pytest.mark.parametrize("name", ["taken", "resnet50", "squeezenet", "conv4", "conv4net", "resnet12"])
def test_a_taken_name_is_refused(name):
    if "taken" not in list_models():
        register_model("taken", plain)
    create_model("conv4net")
    with pytest.raises(ValueError, match=f"name '{name}' is taken"):
        register_model(name, partial(plain, 3))


@pytest.mark.parametrize("name", ["", "timm/mine", "package:mine", None])
def test_a_name_that_could_mean_something_else_is_refused(name):
    with pytest.raises(ValueError, match="name must be a text without / and :"):
        register_model(name, plain)


def test_what_cannot_be_registered_is_refused_at_once():
    with pytest.raises(TypeError, match="factory must be a class or a function"):
        register_model("instance", 3)
    with pytest.raises(TypeError, match=r"model 'typo': sise is none of .*size"):
        register_model("typo", plain, sise=3)
    assert not {"instance", "typo"} & set(list_models())


def test_a_factory_of_something_else_is_named():
    register_model("no-network", lambda: "text")
    with pytest.raises(TypeError, match="no-network: its factory gave a str, expected"):
        create_model("no-network")


def test_options_that_a_factory_does_not_take_are_refused():
    register_model("few-options", plain)
    with pytest.raises(TypeError, match=r"few-options: .*'height'"):
        create_model("few-options", height=3)
    with pytest.raises(TypeError, match="negative_slope: few-options has no LeakyReLU"):
        create_model("few-options", negative_slope=0.1)
    with pytest.raises(TypeError, match=r"width, negative_slope: .* 'resnet18'"):
        create_model("resnet18", width=3, negative_slope=0.1)
