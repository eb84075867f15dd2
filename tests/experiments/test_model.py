"""Models in two parts: cut, copied for speed, found by name, with a trained head."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from captum_fam._files import sha256_of_weights
from captum_fam.experiments.cut import split_model, trunk_of
from captum_fam.experiments.linear_head import load_head, save_head, train_head
from captum_fam.experiments.model_loading import load_model
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.geometry import ResizeCrop, Squash
from captum_fam.images import IMAGENET_MEAN
from captum_fam.models import EmbeddingModel, EmbeddingNet, create_model
from captum_fam.pooling import GAP, GMP
from tests.experiments.runs import make_model


def small_factory() -> TwoPartModel:
    return make_model()


def embedding_factory() -> object:
    return create_model("conv4net")


def headed_factory() -> TwoPartModel:
    return make_model(head=True)


def cut_factory() -> TwoPartModel:
    return load_model(f"{__name__}:small_factory", layer="1")


def squeezenet_factory() -> EmbeddingModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model("squeezenet")


def wrong_factory() -> nn.Module:
    return nn.Identity()


def number_factory() -> int:
    return 3


def test_a_fast_copy_gives_the_same_embeddings_without_batch_norm() -> None:
    model = make_model(head=True)
    fast = model.fast_copy()
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), model(images), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.backbone.modules())
    assert fast.size == 32
    assert fast.tail.head.out_features == 6


@pytest.mark.parametrize("name", ["conv4net", "conv64f"])
def test_a_model_of_the_registry_loses_its_batch_norm_too(name: str) -> None:
    net = create_model(name)
    for module in net.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    model = split_model(net)
    assert model.backbone is net.model.features
    fast = model.fast_copy()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.backbone.modules())
    assert not any(module.training for module in fast.modules())
    filters = [parameter for parameter in fast.parameters() if parameter.dim() == 4]
    assert len(filters) == 4
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in filters)
    images = torch.rand(9, 3, 84, 84)  # more than go through at once
    with torch.no_grad():
        torch.testing.assert_close(fast.activation(images), model.backbone(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fast(images), net.model(images), rtol=1e-4, atol=1e-5)


def test_features_need_no_tracing() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() if x.mean() > -100 else x

    net = replace(
        create_model("conv4net"), model=EmbeddingNet(nn.Sequential(nn.Conv2d(3, 5, 3), Branching()), GAP()).eval()
    )
    images = torch.rand(2, 3, 84, 84)
    with torch.no_grad():
        torch.testing.assert_close(split_model(net)(images), net.model(images))


def test_a_fast_copy_leaves_the_model_as_it_was() -> None:
    model = make_model().train()
    model.fast_copy()
    assert model.training
    assert model.backbone[3].training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert isinstance(model.backbone[3], nn.BatchNorm2d)


def test_a_backbone_that_cannot_be_traced_is_copied_as_it_is() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.convolution(x) if x.mean() > -100 else x

    fast = TwoPartModel(Branching(), GAP(), size=16).fast_copy()
    assert isinstance(fast.backbone, Branching)


def test_equal_weights_have_an_equal_hash_and_others_another() -> None:
    assert sha256_of_weights(make_model()) == sha256_of_weights(make_model())
    assert sha256_of_weights(make_model()) != sha256_of_weights(make_model(seed=1))
    assert sha256_of_weights(make_model()) != sha256_of_weights(make_model(head=True))


@pytest.mark.parametrize("name", ["conv4net", "npid_resnet18", "multi_similarity_bn_inception"])
def test_the_papers_models_are_cut_so_that_the_parts_make_the_whole(name: str) -> None:
    net = create_model(name)
    model = split_model(net)
    images = torch.rand(2, 3, net.size, net.size)
    with torch.no_grad():
        activation = model.backbone(images)
        whole = nn.functional.normalize(net.model(images), dim=1)
        parts = nn.functional.normalize(model.tail(activation), dim=1)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)
    assert activation.dim() == 4
    assert (model.size, model.mean, model.interpolation) == (net.size, net.mean, net.interpolation)


def test_a_pooling_that_is_not_the_models_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model .*: .* layer "):
        split_model(replace(create_model("conv4net"), pooling=GMP()))


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("squeezenet", "features.5", (256, 14, 20)),
        ("squeezenet", "features.8.squeeze", (48, 7, 10)),
        ("squeezenet", "features.12", (512, 3, 5)),
        ("resnet18", "layer2", (128, 8, 11)),
        ("resnet18", "layer4.0", (512, 2, 3)),
        ("conv4net", "features.1", (64, 16, 22)),
        ("npid_resnet18", "features.layer3", (256, 4, 6)),
    ],
)
def test_a_model_that_is_cut_at_an_earlier_layer_still_makes_its_embedding(
    name: str, layer: str, shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    net = create_model(name)
    model = split_model(net, layer)
    images = torch.rand(3, 3, 64, 88)
    fast = model.fast_copy()
    pooled: list[Tensor] = []
    net.layer_module.register_forward_hook(lambda _, __, output: pooled.append(output))
    with torch.no_grad():
        activation = model.backbone(images)
        assert activation.shape == (3, *shape)
        expected = nn.functional.normalize(net.model(images), dim=1)
        for made in (model(images), fast(images), fast.tail(fast.activation(images))):
            torch.testing.assert_close(nn.functional.normalize(made, dim=1), expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(model.tail.rest(activation), pooled[0])
    assert (model.size, model.mean, model.interpolation) == (net.size, net.mean, net.interpolation)


def test_the_modules_of_both_parts_are_the_models_own_under_their_names() -> None:
    net = create_model("resnet18")
    model = split_model(net, "layer2")
    assert model.backbone.layer1 is net.model.layer1
    assert model.tail.rest.layer4 is net.model.layer4
    assert not hasattr(model.tail.rest, "layer2")
    assert not any(name.startswith("layer3") for name, _ in model.backbone.named_modules())


def test_a_model_of_timm_whose_convolutions_cannot_be_traced_is_cut() -> None:
    pytest.importorskip("timm")
    net = create_model("timm/tf_efficientnet_lite0")
    images = torch.rand(2, 3, 96, 64)
    for layer, shape in ((None, (1280, 3, 2)), ("blocks.4", (112, 6, 4))):
        model = split_model(net, layer)
        fast = model.fast_copy()
        with torch.no_grad():
            assert model.backbone(images).shape == (2, *shape)
            torch.testing.assert_close(model(images), net.model(images))
            torch.testing.assert_close(fast(images), net.model(images), rtol=1e-3, atol=1e-5)


def test_a_module_that_works_in_place_behind_the_cut_leaves_the_activation_as_it_is() -> None:
    model = split_model(create_model("squeezenet"), "features.0")
    with torch.no_grad():
        activation = model.activation(torch.rand(2, 3, 40, 56))
        before = activation.clone()
        model.tail(activation)
    assert before.min() < 0
    assert torch.equal(activation, before)


class _Normed(nn.Module):
    """An embedding that is no pooling of a layer; a block that runs twice, channels that come last, and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2)
        self.twice = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        self.last = nn.Linear(6, 6)
        self.tokens = nn.Flatten(1, 2)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.last((x + self.twice(self.twice(x))).movedim(1, 3))
        pooled: Tensor = self.norm(self.tokens(x).mean(1))
        return pooled


def _normed() -> EmbeddingModel:
    net = create_model("conv4net")
    return replace(net, name="normed", model=_Normed().eval(), layer="stem", pooling=None, head=None)


def test_a_model_whose_embedding_is_no_pooling_can_be_cut_at_a_layer_that_is_named() -> None:
    net = _normed()
    images = torch.rand(2, 3, 31, 20)
    model = split_model(net, "stem")
    with torch.no_grad():
        assert model.backbone(images).shape == (2, 6, 15, 9)
        torch.testing.assert_close(model(images), net.model(images))
    with pytest.raises(ValueError, match="pooling: the embedding of normed is no pooling of layer 'stem'"):
        trunk_of(net, GMP())
    features, pooling = trunk_of(net)
    with torch.no_grad():
        torch.testing.assert_close(pooling(features(images)), net.model(images))


class _Forking(nn.Module):
    """Whose way depends on its values, around a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.mean() > -100 else x


def _forking() -> EmbeddingModel:
    trunk = nn.Sequential(nn.Conv2d(3, 3, 3), _Forking(), nn.ReLU())
    return replace(create_model("conv4net"), name="forking", model=EmbeddingNet(trunk, GAP()).eval())


@pytest.mark.parametrize(
    ("make", "layer", "message"),
    [
        (lambda: create_model("squeezenet"), "features.13", r"it is no module of the model; there are features\.\d"),
        (lambda: create_model("squeezenet"), "classifier", r"it gives \(2, 512\), which has no positions"),
        (lambda: create_model("squeezenet"), "features.9.expand1x1", "other tensors.*choose the whole block"),
        (lambda: create_model("resnet18"), "layer3.0.conv1", "other tensors.*choose the whole block"),
        (_normed, "norm", r"it gives \(2, 6\), which has no positions"),
        (_normed, "twice", "it runs 2 times"),
    ],
)
def test_a_layer_that_a_model_cannot_be_cut_at_is_refused(
    make: Callable[[], EmbeddingModel], layer: str, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"cannot be cut at layer '{re.escape(layer)}': .*{message}"):
        split_model(make(), layer)


def test_modules_beside_the_cut_need_no_tracing() -> None:
    net = _forking()
    images = torch.rand(2, 3, 30, 22)
    for layer in ("features.0", "features.1", "features.1.inner"):
        with torch.no_grad():
            torch.testing.assert_close(split_model(net, layer)(images), net.model(images))


def test_a_model_in_two_parts_is_cut_within_its_backbone() -> None:
    whole, model = small_factory(), load_model(f"{__name__}:small_factory", layer="1")
    images = torch.rand(3, 3, 32, 40)
    with torch.no_grad():
        assert model.backbone(images).shape == (3, 8, 16, 20)
        torch.testing.assert_close(model.tail.rest(model.backbone(images)), whole.backbone(images))
        torch.testing.assert_close(model.fast_copy()(images), whole(images), rtol=1e-4, atol=1e-5)
        again = load_model(f"{__name__}:cut_factory", layer="0")
        assert again.backbone(images).min() < 0
        torch.testing.assert_close(again(images), whole(images))


def test_head_and_pooling_are_exchanged_behind_a_cut_too() -> None:
    head = nn.Linear(512, 3)
    model = load_model(f"{__name__}:squeezenet_factory", head=head, pooling="gmp", layer="features.7")
    images = torch.rand(2, 3, 64, 80)
    with torch.no_grad():
        expected = head(squeezenet_factory().model.features(images).amax((2, 3)))
        torch.testing.assert_close(model(images), expected)


def test_models_come_by_name_or_from_a_factory() -> None:
    assert load_model("conv4").size == 84
    assert load_model(f"{__name__}:small_factory").size == 32
    assert load_model(f"{__name__}:embedding_factory").mean == IMAGENET_MEAN


@pytest.mark.parametrize(
    ("name", "given", "loaded"),
    [
        ("timm/resnet18", None, "DEFAULT"),
        ("timm/resnet18", "own.pth", "own.pth"),
        ("torchvision/resnet18", None, "DEFAULT"),
        ("squeezenet", None, "DEFAULT"),
        ("squeezenet", "own.pth", "own.pth"),
        ("conv4", None, None),
        ("npid_resnet18", None, None),
    ],
)
def test_without_weights_a_network_has_its_pretrained_ones_where_there_are_any(
    name: str, given: str | None, loaded: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def create(name: str, weights: str | None) -> EmbeddingModel:
        asked.append(weights)
        return create_model("conv4net")

    monkeypatch.setattr("captum_fam.experiments.model_loading.create_model", create)
    load_model(name, given)
    assert asked == [loaded]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conv5", "unknown"),
        (f"{__name__}:wrong_factory", r"wrong_factory: the model must give embeddings .*\(1, 3, 224, 224\)"),
        (f"{__name__}:number_factory", "number_factory: its factory must give .*int"),
    ],
)
def test_what_is_no_model_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(name)


def test_weights_and_settings_go_into_the_model_of_a_factory(tmp_path: Path) -> None:
    other, images = make_model(seed=1), torch.rand(2, 3, 32, 24)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    model = load_model(f"{__name__}:small_factory", tmp_path / "other.pth", size=(32, 24), resize="pad")
    with torch.no_grad():
        torch.testing.assert_close(model(images), other(images), rtol=0, atol=0)
    assert (model.size, model.resize) == ((32, 24), "pad")


def test_a_factory_in_a_file_may_give_a_plain_module(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch import nn\n\n\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(5, 7))\n"
    )
    model = load_model(f"{file}:build", size=(24, 16), mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.rand(3, 3, 24, 16)
    with torch.no_grad():
        assert model.activation(images).shape == (3, 5, 6, 4)
        assert model(images).shape == (3, 7)
        # The average is followed by a linear layer: the embedding is no pooling of the map.
        features = model.activation(images).mean((2, 3))
        weight, bias = model.state_dict()["tail.rest.4.weight"], model.state_dict()["tail.rest.4.bias"]
        torch.testing.assert_close(model.tail(model.activation(images)), features @ weight.T + bias)
    with pytest.raises(ValueError, match=r"pooling: the embedding of .* is no pooling of the layer"):
        load_model(f"{file}:build", size=24, mean=(0, 0, 0), std=(1, 1, 1), pooling="gem")


def test_a_trained_head_tells_apart_what_raw_features_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(40)
    signal = nn.functional.one_hot(labels, 4).float()
    noise = torch.randn(160, 12, generator=generator)
    features = torch.cat([0.5 * signal, noise], 1)
    head = train_head(features[:120], labels[:120], width=8, seed=1)

    def accuracy(embeddings: Tensor) -> float:
        unit = nn.functional.normalize(embeddings, dim=1)
        means = torch.stack([unit[:120][labels[:120] == label].mean(0) for label in range(4)])
        return float(((unit[120:] @ means.T).argmax(1) == labels[120:]).float().mean())

    with torch.no_grad():
        assert accuracy(head(features)) > accuracy(features) + 0.1
    assert head.bias is not None
    assert not head.weight.requires_grad


def test_training_a_head_is_repeatable_and_leaves_the_random_state() -> None:
    features, labels = torch.rand(20, 6), torch.arange(20) % 2
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = train_head(features, labels, 3, steps=5)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.weight, train_head(features, labels, 3, steps=5).weight)


def test_one_class_cannot_train_a_head() -> None:
    with pytest.raises(ValueError, match=r"labels .*two classes"):
        train_head(torch.rand(4, 6), torch.zeros(4, dtype=torch.int64))


def test_a_saved_head_comes_back_and_stands_in_the_tail(tmp_path: Path) -> None:
    head = train_head(torch.rand(20, 64), torch.arange(20) % 2, 3, steps=5)
    save_head(head, tmp_path / "head.pt")
    assert torch.equal(load_head(tmp_path / "head.pt").weight, head.weight)
    model = load_model("conv4", head=tmp_path / "head.pt")
    assert model(torch.rand(1, 3, 84, 84)).shape == (1, 3)


def test_a_head_in_safetensors_is_read_as_well(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    head = nn.Linear(6, 3)
    safetensors.save_file(head.state_dict(), tmp_path / "head.safetensors")
    read = load_head(tmp_path / "head.safetensors")
    assert torch.equal(read.weight, head.weight)
    assert torch.equal(read.bias, head.bias)


def test_a_file_of_something_else_is_no_head(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.rand(3, 3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"expected the state dict of a torch\.nn\.Linear"):
        load_head(tmp_path / "other.pt")


def test_another_pooling_stands_before_the_head(tmp_path: Path) -> None:
    head = nn.Linear(12, 3)
    save_head(head, tmp_path / "head.pt")
    model = load_model(f"{__name__}:small_factory", head=tmp_path / "head.pt", pooling="gmp")
    images = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        expected = head(model.backbone(images).amax((2, 3)))
        torch.testing.assert_close(model(images), expected)
    assert repr(model.tail) != repr(load_model(f"{__name__}:small_factory", head=tmp_path / "head.pt").tail)


def test_a_pooling_that_the_head_was_not_trained_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pooling: .*has a head"):
        load_model(f"{__name__}:headed_factory", pooling="gmp")
    load_model(f"{__name__}:headed_factory", head=nn.Identity(), pooling="gmp")
    with pytest.raises(ValueError, match="one of gap, gmp, lse, gem, got 'max'"):
        load_model(f"{__name__}:small_factory", pooling="max")


def test_a_crop_is_that_of_the_published_accuracy_at_any_size() -> None:
    model = split_model(create_model("multi_similarity_bn_inception"))
    assert model.geometry == Squash(227, "bilinear")
    model.resize = "crop"
    assert model.geometry == ResizeCrop(256, 227, "bilinear")
    model.size = 454
    assert model.geometry == ResizeCrop(512, 454, "bilinear")
    other = make_model()
    other.resize = "crop"
    assert other.geometry == ResizeCrop(None, 32)
    other.resize, other.size = "pad", (32, 20)
    assert other.height_and_width == (32, 20)
    padded, boxes = other.geometry(Image.new("RGB", (60, 40)), torch.tensor([[0.0, 0.0, 60.0, 40.0]]))
    assert padded.size == (20, 32)
    assert boxes[0, 2:].sub(boxes[0, :2]).tolist() == pytest.approx([20, 20 * 40 / 60], abs=0.7)
    for resize, message in (("stretch", r"squash.*crop.*stretch"), ("keep", "resize: keep gives images of different")):
        other.resize = resize  # type: ignore[assignment]
        with pytest.raises(ValueError, match=message):
            _ = other.geometry


def test_a_folder_of_transformers_is_cut_at_its_tokens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dinov2")
    model = load_model(f"hf/{tmp_path / 'dinov2'}", size=(56, 42))
    whole = create_model(f"hf/{tmp_path / 'dinov2'}", "DEFAULT", size=(56, 42)).model
    images = torch.rand(2, 3, 56, 42)
    with torch.no_grad():
        assert model.activation(images).shape == (2, 1 + 4 * 3, 32)
        torch.testing.assert_close(model.fast_copy()(images), whole(images), rtol=1e-4, atol=1e-5)
    assert model.takes_larger_images is False  # its grid has been measured for 4 x 3 tokens
    assert "TokenGrid(size=(4, 3)" in model.settings()["token_grid"]
