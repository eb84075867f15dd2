from __future__ import annotations

import copy
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from captum_fam.models import WeightsError
from captum_fam.models.model_settings import ModelSettings
from captum_fam.models.torchvision_models import load_torchvision

SMALL = {
    "densenet121": "features",
    "efficientnet_b0": "features",
    "googlenet": "inception5b",
    "mnasnet0_5": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "regnet_y_400mf": "trunk_output",
    "resnet18": "layer4",
    "shufflenet_v2_x0_5": "conv5",
    "squeezenet1_1": "features",
}
LARGE = {
    "alexnet": "features",
    "convnext_tiny": "features",
    "efficientnet_v2_s": "features",
    "inception_v3": "Mixed_7c",
    "maxvit_t": "blocks.3",
    "resnext50_32x4d": "layer4",
    "swin_t": "permute",
    "swin_v2_t": "permute",
    "vgg11": "features",
    "vgg11_bn": "features",
    "wide_resnet50_2": "layer4",
}


def layer_output(model: nn.Module, layer: str, inputs: Tensor) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, output: kept.append(output))
    with torch.no_grad():
        embedding = model(inputs)
    handle.remove()
    return kept[0], embedding


@pytest.mark.parametrize(("name", "layer"), SMALL.items())
def test_the_embedding_is_the_average_of_the_layer_to_explain(name: str, layer: str) -> None:
    net = load_torchvision(name)
    activation, embedding = layer_output(net.model, net.layer, torch.randn(2, 3, 96, 96))
    assert net.layer == layer
    assert not net.model.training
    assert min(activation.shape[2:]) > 1
    torch.testing.assert_close(embedding, activation.mean((2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "layer"), LARGE.items())
def test_the_embedding_has_a_feature_for_each_channel_of_the_layer(name: str, layer: str) -> None:
    with torch.device("meta"):  # where nothing is computed, and the last layer is taken
        net = load_torchvision(name)
        activation, embedding = layer_output(net.model, net.layer, torch.zeros(2, 3, 224, 224))
    assert net.layer == layer
    assert min(activation.shape[2:]) > 1
    assert embedding.shape == activation.shape[:2]


def test_a_vision_transformer_comes_with_its_token_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(name: str, weights: object = None) -> nn.Module:
        return models.VisionTransformer(64, 16, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=48)

    monkeypatch.setattr(models, "get_model", small)
    net = load_torchvision("vit_b_16")
    tokens, embedding = layer_output(net.model, net.layer, torch.randn(2, 3, 64, 64))
    assert net.layer == "encoder.dropout"  # the input of the first block
    assert net.token_grid is not None
    assert net.token_grid(tokens).shape == (2, 24, 4, 4)
    assert embedding.shape == (2, 24)
    assert (net.size, net.any_size) == (64, False)
    assert load_torchvision("vit_b_16", settings=ModelSettings(layer="conv_proj")).token_grid is None


@pytest.fixture
def small_convnext(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """What stands for a ConvNeXt by name; its norms have shifts."""
    blocks = models.convnext.CNBlockConfig
    made = models.ConvNeXt([blocks(8, 16, 1), blocks(16, None, 1)]).eval()
    nn.init.normal_(made.classifier[0].bias)
    monkeypatch.setattr(models, "get_model", lambda *_, **__: copy.deepcopy(made))
    return made


def test_a_convnext_keeps_the_norm_of_its_average(small_convnext: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64)
    net = load_torchvision("convnext_tiny")
    activation, embedding = layer_output(net.model, net.layer, images)
    norm = net.model.classifier[0]
    with torch.no_grad():
        expected = nn.functional.layer_norm(activation.mean((2, 3)), (16,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-5)


def test_a_maxvit_keeps_all_but_its_classifier() -> None:
    with torch.device("meta"):
        model = load_torchvision("maxvit_t").model
    assert [type(part).__name__ for part in model.classifier][-3:] == ["Linear", "Tanh", "Identity"]


def test_weights_of_a_preset_say_how_images_are_prepared() -> None:
    with torch.device("meta"):
        net = load_torchvision("efficientnet_v2_s")
    assert (net.size, net.mean, net.std) == (384, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_an_unknown_network_gets_the_name_that_was_meant() -> None:
    with pytest.raises(ValueError, match=r"'resnet5o' .* did you mean .*resnet50"):
        load_torchvision("resnet5o")


def test_an_unknown_layer_gets_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"layer 'layer9' .* SqueezeNet; its children are features, classifier"):
        load_torchvision("squeezenet1_1", settings=ModelSettings(layer="layer9"))


def test_another_layer_can_be_named() -> None:
    assert load_torchvision("squeezenet1_1", settings=ModelSettings(layer="features.7")).layer == "features.7"


def test_a_layer_without_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="layer 'classifier' of SqueezeNet gives no tensor with positions"):
        load_torchvision("squeezenet1_1", settings=ModelSettings(layer="classifier"))


def test_files_of_a_convnext_fit_with_and_without_the_classifier(small_convnext: nn.Module, tmp_path: Path) -> None:
    state = small_convnext.state_dict()
    torch.save(state, tmp_path / "with.pth")
    torch.save({key: value for key, value in state.items() if "classifier.2" not in key}, tmp_path / "without.pth")
    for name in ("with.pth", "without.pth"):
        model = load_torchvision("convnext_tiny", tmp_path / name).model
        torch.testing.assert_close(model.classifier[0].bias, small_convnext.classifier[0].bias)


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(3)
    return models.squeezenet1_1().eval()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {key: value for key, value in state.items() if not key.startswith("classifier")},
    ],
    ids=["plain", "DataParallel", "compiled DataParallel", "checkpoint", "without classifier"],
)
def test_a_file_with_a_state_dict_gives_that_networks_features(wrap, classifier: nn.Module, tmp_path: Path) -> None:
    torch.save(wrap(classifier.state_dict()), tmp_path / "weights.pth")
    net = load_torchvision("squeezenet1_1", tmp_path / "weights.pth")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net.model(images), classifier.features(images).mean((2, 3)))


def test_safetensors_are_read(classifier: nn.Module, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    net = load_torchvision("squeezenet1_1", tmp_path / "weights.safetensors")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net.model(images), classifier.features(images).mean((2, 3)))


@pytest.mark.parametrize("metadata", [True, False], ids=["as torch saves it", "as a plain dict"])
def test_a_network_that_asks_for_its_version_loads_from_a_plain_dict_too(metadata: bool, tmp_path: Path) -> None:
    original = models.mnasnet0_5().eval()
    torch.save(original.state_dict() if metadata else dict(original.state_dict()), tmp_path / "weights.pth")
    net = load_torchvision("mnasnet0_5", tmp_path / "weights.pth")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net.model(images), original.layers(images).mean((2, 3)))


def test_torchvisions_old_names_of_densenet_are_understood(tmp_path: Path) -> None:
    original = models.densenet121().eval()
    old = {
        key.replace(".norm1.", ".norm.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv1.", ".conv.1.")
        .replace(".conv2.", ".conv.2.")
        if "denselayer" in key
        else key: value
        for key, value in original.state_dict().items()
        if not key.endswith("num_batches_tracked")  # nor did they have these
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "weights.pth")
    net = load_torchvision("densenet121", tmp_path / "weights.pth")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net.model(images), original.features(images).relu().mean((2, 3)))


def test_the_inception_networks_take_files_with_and_without_their_side_heads(tmp_path: Path) -> None:
    original = models.googlenet(init_weights=False, transform_input=True).eval()
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    assert any(key.startswith("aux1") for key in original.state_dict())
    original.fc = nn.Identity()
    net = load_torchvision("googlenet", tmp_path / "weights.pth")
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(net.model(images), original(images))


def test_all_that_does_not_fit_stands_in_one_message(classifier: nn.Module, tmp_path: Path) -> None:
    state = dict(classifier.state_dict())
    del state["features.0.weight"]
    state["backbone.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsError) as caught:
        load_torchvision("squeezenet1_1", tmp_path / "weights.pth")
    assert str(caught.value).endswith(
        "weights.pth do not fit SqueezeNet, read as of torchvision: 1 missing: features.0.weight; "
        "1 unexpected: backbone.extra"
    )


def test_weights_of_another_shape_are_named(classifier: nn.Module, tmp_path: Path) -> None:
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"of another shape: features\.0\.weight \(64, 3, 3, 3\) instead of \(96, 3"):
        load_torchvision("squeezenet1_0", tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "IMAGENET1K_V1"),
        (b"no weights", "cannot be read"),
        (b"", "cannot be read"),
        ({"epoch": 3}, "hold no state dict"),
        (nn.Linear(2, 2), "cannot be read"),
    ],
    ids=["missing", "garbage", "empty", "no tensors", "pickled model"],
)
def test_a_file_that_holds_no_state_dict_is_named(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=r"weights\.pth.*" + message) as caught:
        load_torchvision("squeezenet1_1", path)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_downloaded_point_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("captum_fam.models.downloads.why_unreachable", lambda url: None)
    with pytest.raises(WeightsError, match=r"cannot download .* of squeezenet1_1 from https.*no route.*--weights FILE"):
        load_torchvision("squeezenet1_1", "DEFAULT")


def test_pretrained_weights_are_those_of_the_network(monkeypatch: pytest.MonkeyPatch, classifier: nn.Module) -> None:
    monkeypatch.setattr("captum_fam.models.downloads.why_unreachable", lambda url: None)
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(classifier.state_dict())
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = classifier.features(images).mean((2, 3))
        for name in ("DEFAULT", "IMAGENET1K_V1"):
            torch.testing.assert_close(load_torchvision("squeezenet1_1", name).model(images), expected)


def test_the_imagenet_weights_beside_the_repository_load(shared_folder: Path) -> None:
    path = shared_folder / "weights" / "squeezenet1_0_imagenet.pth"
    if not path.is_file():
        pytest.skip(f"needs {path.name} in the shared data")
    net = load_torchvision("squeezenet1_0", path)
    activation, embedding = layer_output(net.model, net.layer, torch.rand(2, 3, 224, 224))
    assert embedding.shape == (2, 512)
    torch.testing.assert_close(embedding, activation.mean((2, 3)))
