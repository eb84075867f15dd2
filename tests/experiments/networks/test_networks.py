"""The networks against the paper's table, and against float64 references that are written as plain functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from captum_fam import LayerFAM
from captum_fam.experiments.networks import (
    BNInception,
    ContrastiveResNet,
    Conv64F,
    DecayingDropBlock,
    ResNet12,
    ResNet18,
    WideResNet,
)


def randomize(network):
    """Batch statistics as after a training: without them a swapped pair of layers would go unseen."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return network.double().eval()


def n_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("make", "size", "feature_map", "embedding", "parameters", "trunk"),
    [
        (Conv64F, 84, (64, 19, 19), 64, 113_088, 113_088),
        (lambda: Conv64F(padding=1), 84, (64, 21, 21), 64, 113_088, 113_088),
        (ResNet12, 84, (640, 5, 5), 640, 12_424_320, 12_424_320),
        (ResNet18, 84, (512, 3, 3), 512, 11_176_512, 11_176_512),
        (lambda: ResNet18(stem="3x3"), 84, (512, 11, 11), 512, 11_168_832, 11_168_832),
        (WideResNet, 84, (640, 21, 21), 640, 36_472_784, 36_472_784),
        (lambda: ContrastiveResNet(18), 224, (512, 7, 7), 128, 11_242_176, 11_176_512),
        (lambda: ContrastiveResNet(50), 224, (2048, 7, 7), 128, 23_770_304, 23_508_032),
        (lambda: ContrastiveResNet(50, head="mlp"), 224, (2048, 7, 7), 128, 27_966_656, 23_508_032),
        (BNInception, 227, (1024, 7, 7), 512, 10_795_040, 10_270_240),
        (BNInception, 224, (1024, 7, 7), 512, 10_795_040, 10_270_240),
        (BNInception, 256, (1024, 8, 8), 512, 10_795_040, 10_270_240),
    ],
)
def test_parameters_and_feature_maps_are_those_of_the_published_networks(
    make, size, feature_map, embedding, parameters, trunk
):
    with torch.device("meta"):  # shapes without arithmetic
        network = make().eval()
        x = torch.empty(2, 3, size, size)
        assert network.features(x).shape == (2, *feature_map)
        assert network(x).shape == (2, embedding)
    assert n_parameters(network) == parameters
    assert n_parameters(network.features) == trunk


def conv_bn(state, x, conv, bn, stride=1, padding=1):
    x = F.conv2d(x, state[f"{conv}.weight"], state.get(f"{conv}.bias"), stride, padding)
    return batch_norm(state, x, bn)


def batch_norm(state, x, name):
    mean, variance, weight, bias = (
        state[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def leaky(x, slope=0.1):
    return torch.maximum(x, slope * x)


@torch.no_grad()
def test_resnet12_computes_three_convolutions_a_shortcut_and_a_max_pool_four_times():
    network = randomize(ResNet12())
    state, x = network.state_dict(), torch.randn(2, 3, 35, 50, dtype=torch.float64)
    expected = x
    for i in range(1, 5):
        block = f"features.layer{i}.0"
        out = leaky(conv_bn(state, expected, f"{block}.conv1", f"{block}.bn1"))
        out = leaky(conv_bn(state, out, f"{block}.conv2", f"{block}.bn2"))
        out = conv_bn(state, out, f"{block}.conv3", f"{block}.bn3")
        shortcut = conv_bn(state, expected, f"{block}.downsample.0", f"{block}.downsample.1", padding=0)
        expected = F.max_pool2d(leaky(out + shortcut), 2)
    assert expected.shape == (2, 640, 2, 3)
    torch.testing.assert_close(network.features(x), expected)
    torch.testing.assert_close(network(x), expected.mean((2, 3)))


@torch.no_grad()
def test_wide_resnet_activates_before_each_convolution_and_after_the_last():
    network = randomize(WideResNet(depth=16, width=2))
    state, x = network.state_dict(), torch.randn(2, 3, 13, 18, dtype=torch.float64)
    out = F.conv2d(x, state["features.conv1.weight"], padding=1)
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        for number in range(2):
            block = f"features.block{stage}.layer.{number}"
            step = stride if number == 0 else 1
            activated = leaky(batch_norm(state, out, f"{block}.bn1"))
            inner = leaky(conv_bn(state, activated, f"{block}.conv1", f"{block}.bn2", step))
            inner = F.conv2d(inner, state[f"{block}.conv2.weight"], padding=1)
            if number == 0:
                out = F.conv2d(activated, state[f"{block}.shortcut.weight"], stride=step)
            out = out + inner
    expected = leaky(batch_norm(state, out, "features.bn1"))
    assert expected.shape == (2, 128, 4, 5)
    torch.testing.assert_close(network.features(x), expected)
    torch.testing.assert_close(network(x), expected.mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("stem", ["7x7", "3x3"])
def test_few_shot_resnet18_is_he_et_al_with_leaky_activations(stem):
    network = randomize(ResNet18(stem=stem))
    state, x = network.state_dict(), torch.randn(2, 3, 33, 20, dtype=torch.float64)
    step, padding = (2, 3) if stem == "7x7" else (1, 1)
    out = leaky(conv_bn(state, x, "features.conv1", "features.bn1", step, padding))
    if stem == "7x7":
        out = F.max_pool2d(out, 3, 2, padding=1)
    for i in range(1, 5):
        for j in range(2):
            block = f"features.layer{i}.{j}"
            step = 2 if i > 1 and j == 0 else 1
            inner = leaky(conv_bn(state, out, f"{block}.conv1", f"{block}.bn1", step))
            inner = conv_bn(state, inner, f"{block}.conv2", f"{block}.bn2")
            if f"{block}.downsample.0.weight" in state:
                out = conv_bn(state, out, f"{block}.downsample.0", f"{block}.downsample.1", step, 0)
            out = leaky(out + inner)
    torch.testing.assert_close(network.features(x), out)
    torch.testing.assert_close(network(x), out.mean((2, 3)))


@torch.no_grad()
def test_a_contrastive_resnet_is_torchvisions_with_a_head_of_128_and_unit_length():
    theirs = randomize(models.resnet18(num_classes=128))
    ours = ContrastiveResNet(18).double().eval()
    parts = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.features.load_state_dict(parts)
    ours.head.load_state_dict(theirs.fc.state_dict())
    x = torch.randn(2, 3, 40, 33, dtype=torch.float64)
    expected = theirs(x)
    torch.testing.assert_close(ours(x), expected / expected.norm(dim=1, keepdim=True))


def published_name(name):
    """``features.inception_3a.1x1.bn.weight`` -> ``inception_3a_1x1_bn.weight``, as Caffe's converters wrote it."""
    *path, kind, leaf = name.removeprefix("features.").split(".")
    return "_".join(path) + ("_bn" if kind == "bn" else "") + f".{leaf}"


@torch.no_grad()
def test_bn_inception_computes_the_published_graph_on_bgr_images():
    network = randomize(BNInception())
    state = {published_name(k): v for k, v in network.state_dict().items() if k.startswith("features.")}
    assert sum(name.endswith("_bn.weight") for name in state) == 69

    def unit(x, name, stride=1):
        size = state[f"{name}.weight"].shape[-1]
        return conv_bn(state, x, name, f"{name}_bn", stride, size // 2).clamp_min(0)

    x = torch.randn(2, 3, 66, 98, dtype=torch.float64)
    out = F.max_pool2d(unit(x[:, [2, 1, 0]], "conv1_7x7_s2", 2), 3, 2, ceil_mode=True)
    out = F.max_pool2d(unit(unit(out, "conv2_3x3_reduce"), "conv2_3x3"), 3, 2, ceil_mode=True)
    for block in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        name = f"inception_{block}"
        stride = 2 if block in ("3c", "4e") else 1
        three = unit(unit(out, f"{name}_3x3_reduce"), f"{name}_3x3", stride)
        double = unit(unit(out, f"{name}_double_3x3_reduce"), f"{name}_double_3x3_1")
        double = unit(double, f"{name}_double_3x3_2", stride)
        if stride == 2:
            out = torch.cat([three, double, F.max_pool2d(out, 3, 2, ceil_mode=True)], 1)
            continue
        pooled = F.max_pool2d(out, 3, 1, 1) if block == "5b" else F.avg_pool2d(out, 3, 1, 1)
        out = torch.cat([unit(out, f"{name}_1x1"), three, double, unit(pooled, f"{name}_pool_proj")], 1)
    torch.testing.assert_close(network.features(x), out)
    embedding = out.amax((2, 3)) @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(x), embedding / embedding.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("side", [31, 38, 63, 70, 223, 230])
def test_bn_inception_takes_sides_whose_stages_meet_and_refuses_the_others_beside_them(side):
    with torch.device("meta"):
        network = BNInception().eval()
        assert network(torch.empty(2, 3, side, 224)).shape == (2, 512)
        wrong = side - 1 if side % 2 else side + 1
        with pytest.raises(ValueError, match=f"images of {wrong} x 224 pixels: BN-Inception takes sides"):
            network(torch.empty(2, 3, wrong, 224))
        blocks = network.features[1:]
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            blocks(torch.empty(2, 3, wrong, 224))


@pytest.mark.parametrize(
    "make", [ResNet12, ResNet18, lambda: ContrastiveResNet(18), lambda: WideResNet(10, 1), BNInception]
)
def test_a_network_can_be_cut_at_its_features_by_torch_fx(make):
    network = make().eval()
    x = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        cut = create_feature_extractor(network, {"features": "activation"})(x)["activation"]
        torch.testing.assert_close(cut, network.features(x))


def test_a_head_of_another_width_can_be_had():
    with torch.device("meta"):
        assert BNInception(embedding_size=64)(torch.empty(2, 3, 224, 224)).shape == (2, 64)


@pytest.mark.parametrize("make", [ResNet12, ResNet18, lambda: ContrastiveResNet(18), lambda: WideResNet(10, 1)])
def test_no_activation_function_changes_what_a_hook_has_seen(make):
    network = make().eval()
    activations = [m for m in network.modules() if isinstance(m, nn.ReLU | nn.LeakyReLU)]
    assert activations
    for module in activations:
        x = torch.tensor([-1.0])
        module(x)
        assert x == -1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet18(stem="5x5"), 'stem must be "7x7" or "3x3"'),
        (lambda: ContrastiveResNet(34), "depth must be 18 or 50"),
        (lambda: ContrastiveResNet(18, head="bn"), 'head must be "linear" or "mlp"'),
        (lambda: WideResNet(depth=27), r"depth must be 6 n \+ 4"),
        (lambda: WideResNet(depth=4), r"depth must be 6 n \+ 4"),
        (lambda: Conv64F(padding=2), "padding must be 0"),
    ],
)
def test_an_unknown_variant_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_drop_block_drops_whole_squares_and_keeps_the_mean():
    drop = DecayingDropBlock(0.5, block_size=5, n_passes=10).train()
    drop.num_batches_tracked.fill_(9)
    dropped = drop(torch.ones(40, 50, 5, 5))
    # On a 5x5 map a square of 5 is the whole channel, and the drawing probability is the rate itself.
    channels = dropped.flatten(2)
    assert (channels.amin(2) == channels.amax(2)).all()
    assert 0.45 < float((channels[..., 0] == 0).float().mean()) < 0.55
    assert float(dropped.mean()) == pytest.approx(1, abs=1e-5)


def test_the_rate_of_drop_block_grows_with_the_passes_in_training_and_then_stays():
    drop = DecayingDropBlock(0.1, n_passes=4)
    x = torch.rand(1, 2, 8, 9)
    drop.eval()
    torch.testing.assert_close(drop(x), x)
    drop.train()
    rates = []
    for _ in range(6):
        drop(x)
        rates.append(drop.p)
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_dropout_of_resnet12_acts_in_training_only():
    network = ResNet12(drop_rate=0.1)
    x = torch.rand(2, 3, 16, 32)
    network.train()
    assert not torch.equal(network.features.layer1(x), network.features.layer1(x))
    network.eval()
    torch.testing.assert_close(network(x), network(x))
    kinds = [type(stage[0].drop) for stage in network.features]
    assert kinds == [nn.Dropout, nn.Dropout, DecayingDropBlock, DecayingDropBlock]
    assert all(stage[0].drop is None for stage in ResNet12().features)


@pytest.mark.parametrize(("make", "size"), [(lambda: ContrastiveResNet(18), 40), (BNInception, 64)])
def test_fam_finds_the_head_of_a_normalized_model_by_itself(make, size):
    network = make().double().eval()
    x, support = torch.rand(2, 3, size, size).double(), torch.rand(3, 3, size, size).double()
    found = LayerFAM(network, "features", normalization="none").attribute(x, support=support)
    fam = LayerFAM(network, network.features, transform=network.head, normalization="none")
    given = fam.attribute(x, support=support)
    assert found.shape[:2] == (2, 1)
    torch.testing.assert_close(found, given)


@pytest.mark.parametrize(("padding", "size", "map_size"), [(0, (45, 84), (9, 19)), (1, (45, 84), (11, 21))])
def test_conv64f_pools_twice_and_its_embedding_is_the_mean_of_the_map(padding, size, map_size):
    network = Conv64F(padding).eval()
    x = torch.rand(2, 3, *size)
    features = network.features(x)
    assert features.shape == (2, 64, *map_size)
    torch.testing.assert_close(network(x), features.mean((2, 3)))


def test_the_networks_can_be_trained():
    net = BNInception(embedding_size=4).train()
    net(torch.rand(2, 3, 64, 36)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
