"""Weights under the names of the repositories that published them, held to what those networks compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from captum_fam.experiments.networks import BNInception, ContrastiveResNet, Conv64F, ResNet12, ResNet18, WideResNet
from captum_fam.experiments.networks import layouts as L
from captum_fam.models import WeightsError, create_model, load_weights


def randomize(module):
    """Where a fresh network has zeros and ones, any two layers could be swapped unseen."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() < 2:
            tensor.copy_(torch.rand_like(tensor) * 0.4 + 0.8)
    return module.eval()


class CloserLookBlock(nn.Module):
    """Parameters under two names: as attributes, and in a sequence of them."""

    def __init__(self, n_in, pool):
        super().__init__()
        self.C = nn.Conv2d(n_in, 64, 3, padding=1)
        self.BN = nn.BatchNorm2d(64)
        self.trunk = nn.Sequential(self.C, self.BN, nn.ReLU(), *([nn.MaxPool2d(2)] if pool else []))

    def forward(self, x):
        return self.trunk(x)


def closer_look():
    feature = nn.Module()
    feature.trunk = nn.Sequential(*(CloserLookBlock(n, pool=True) for n in (3, 64, 64, 64)), nn.Flatten())
    learner = nn.Module()
    learner.feature = feature
    learner.classifier = nn.utils.parametrizations.weight_norm(nn.Linear(1600, 200))
    return learner, nn.Sequential(*list(feature.trunk)[:4])


def proto_net():
    blocks = [
        nn.Sequential(nn.Conv2d(n, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2))
        for n in (3, 64, 64, 64)
    ]
    learner = nn.Module()
    learner.encoder = nn.Sequential(*blocks)
    return learner, learner.encoder


def frn():
    class Block(nn.Module):
        def __init__(self, n_in):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(n_in, 64, 3, padding=1), nn.BatchNorm2d(64))

        def forward(self, x):
            return self.layers(x)

    parts = [part for n in (3, 64, 64, 64) for part in (Block(n), nn.ReLU(), nn.MaxPool2d(2))]
    learner = nn.Module()
    learner.scale = nn.Parameter(torch.ones(1))
    learner.feature_extractor = nn.Module()
    learner.feature_extractor.layers = nn.Sequential(*parts)
    return learner, learner.feature_extractor.layers


def relation_net():
    encoder = nn.Sequential()
    for number, n in enumerate((3, 64, 64, 64), 1):
        padding, pool = (0, [nn.MaxPool2d(2)]) if number < 3 else (1, [])
        block = [nn.Conv2d(n, 64, 3, padding=padding), nn.BatchNorm2d(64, momentum=1), nn.ReLU(), *pool]
        encoder.add_module(f"layer{number}", nn.Sequential(*block))
    return encoder, encoder


@torch.no_grad()
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    ("name", "make", "layout", "container"),
    [
        ("conv4net", closer_look, "CloserLook", "state"),
        ("conv4net", proto_net, "ProtoNet", None),
        ("conv4net", frn, "FRN", None),
        ("conv64f", relation_net, "RelationNet", None),
    ],
)
def test_a_few_shot_network_computes_what_its_authors_network_did(tmp_path, name, make, layout, container, parallel):
    learner, encoder = make()
    randomize(learner)
    state = (nn.DataParallel(learner) if parallel else learner).state_dict()
    torch.save({container: state, "epoch": 3} if container else state, tmp_path / "best.tar")
    net = create_model(name, weights=tmp_path / "best.tar")
    assert net.layout == layout
    x = torch.rand(2, 3, 84, 70)
    expected = encoder(x)  # with ReLU, as they trained it
    torch.testing.assert_close(net.layer_module(x), expected)
    torch.testing.assert_close(net.model(x), expected.mean((2, 3)))


@torch.no_grad()
def test_the_activation_function_of_the_weights_can_be_overruled(tmp_path):
    learner, encoder = proto_net()
    for module in (m for m in randomize(learner).modules() if isinstance(m, nn.BatchNorm2d)):
        module.bias.fill_(-3)  # so that much is negative
    torch.save(learner.state_dict(), tmp_path / "a.pth")
    x = torch.rand(2, 3, 84, 84)
    leaky = nn.Sequential(*(nn.Sequential(b[0], b[1], nn.LeakyReLU(0.2), b[3]) for b in encoder))
    given = create_model("conv4net", weights=tmp_path / "a.pth", negative_slope=0.2)
    torch.testing.assert_close(given.layer_module(x), leaky(x))
    assert not torch.allclose(create_model("conv4net", weights=tmp_path / "a.pth").layer_module(x), leaky(x))


def test_relation_net_brings_its_own_normalization_and_others_do_not(tmp_path):
    torch.save(relation_net()[0].state_dict(), tmp_path / "feature_encoder.pkl")
    torch.save(proto_net()[0].state_dict(), tmp_path / "proto.pth")
    theirs = create_model("conv64f", weights=tmp_path / "feature_encoder.pkl")
    assert (theirs.mean, theirs.std) == ((0.92206,) * 3, (0.08426,) * 3)
    assert create_model("conv4net", weights=tmp_path / "proto.pth").mean == (0.485, 0.456, 0.406)


def meta_opt_net():
    """Names as published, in the order of the parameters; layer1.0.conv1.weight and so on."""
    state = randomize(ResNet12()).state_dict()
    return {name.removeprefix("features."): value for name, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "layout"),
    [
        (lambda state: {"embedding": state, "head": {"scale": torch.ones(1)}}, "MetaOptNet"),
        (lambda state: {"embedding": prefixed("module.", state), "head": {}}, "MetaOptNet"),
        (lambda state: {**prefixed("feature_extractor.", state), "scale": torch.ones(1)}, "FRN"),
        (
            lambda state: {
                "state_dict": {
                    **prefixed("base.", state),
                    "cam.conv1.weight": torch.ones(6, 36),
                    "clasifier.bias": torch.ones(64),
                },
                "acc": 0.6,
                "epoch": 80,
            },
            "CAN",
        ),
    ],
)
def test_resnet12_is_found_in_the_files_of_the_repositories_that_train_it(tmp_path, wrap, layout):
    state = meta_opt_net()
    assert state["layer4.0.downsample.1.running_var"].shape == (640,)
    assert len(state) == 4 * 4 * 6
    torch.save(wrap(state), tmp_path / "best_model.pth")
    net = create_model("resnet12", weights=tmp_path / "best_model.pth")
    assert net.layout == layout
    loaded = net.model.state_dict()
    assert all(torch.equal(loaded[f"features.{name}"], value) for name, value in state.items())
    slopes = {m.negative_slope for m in net.model.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.1}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@torch.no_grad()
def test_a_learner_of_can_around_one_of_our_networks_is_read():
    net = randomize(Conv64F(padding=1))
    other = Conv64F(padding=1)
    state = {**prefixed("base.", net.state_dict()), "clasifier.weight": torch.ones(3)}
    assert load_weights(other, state, L.CONV).name == "CAN"
    torch.testing.assert_close(other.state_dict(), net.state_dict())


@torch.no_grad()
def test_few_shot_resnet18_reads_torchvisions_and_closer_looks_names(tmp_path):
    theirs = randomize(models.resnet18())
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    own = create_model("few_shot_resnet18", weights=tmp_path / "a.pth")
    assert own.layout == "torchvision"
    x = torch.rand(2, 3, 40, 50)
    state = theirs.state_dict()
    theirs.fc = nn.Identity()
    torch.testing.assert_close(own.model(x), theirs(x))
    renamed = {}
    for name, value in state.items():
        path = name.split(".")
        if path[0] == "fc":
            renamed[f"classifier.{path[1]}"] = value
        elif path[0] in ("conv1", "bn1"):
            renamed[f"feature.trunk.{('conv1', 'bn1').index(path[0])}.{path[1]}"] = value
        else:
            block = 4 + 2 * (int(path[0][-1]) - 1) + int(path[1])
            part = {"conv1": "C1", "conv2": "C2", "bn1": "BN1", "bn2": "BN2"}.get(path[2])
            if path[2] == "downsample":
                part = ("shortcut", "BNshortcut")[int(path[3])]
            renamed[f"feature.trunk.{block}.{part}.{path[-1]}"] = value
    assert "feature.trunk.6.BNshortcut.running_mean" in renamed
    assert "feature.trunk.11.C2.weight" in renamed
    other = ResNet18()
    assert load_weights(other, renamed, L.RESNET18).name == "CloserLook"
    torch.testing.assert_close(other.state_dict(), own.model.state_dict())


def test_wide_resnet_reads_the_names_of_s2m2():
    net = randomize(WideResNet(10, 1))
    state = {
        name.removeprefix("features.").replace(".shortcut.", ".convShortcut."): value
        for name, value in net.state_dict().items()
    }
    assert "block2.layer.0.convShortcut.weight" in state
    state = {**prefixed("module.", state), "module.linear.L.weight_g": torch.ones(64, 1)}
    other = WideResNet(10, 1)
    # As read_state_dict() gives it.
    unwrapped = {name.removeprefix("module."): value for name, value in state.items()}
    assert load_weights(other, unwrapped, L.WIDE_RESNET).name == "S2M2"
    torch.testing.assert_close(other.state_dict(), net.state_dict())


@pytest.fixture(scope="module")
def resnet50():
    return randomize(models.resnet50(num_classes=128))


@torch.no_grad()
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_moco_is_read_by_its_query_encoder(tmp_path, resnet50, version):
    state = dict(resnet50.state_dict())
    if version == "v2":
        head = randomize(nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128)))
        state = {k: v for k, v in state.items() if not k.startswith("fc.")} | prefixed("fc.", head.state_dict())
    keys = {name: value.flatten()[:1] for name, value in state.items()}
    checkpoint = {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": {
            **prefixed("module.encoder_q.", state),
            **prefixed("module.encoder_k.", keys),
            "module.queue": torch.zeros(128, 16),
            "module.queue_ptr": torch.zeros(1, dtype=torch.int64),
        },
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.03}]},
    }
    path = tmp_path / "moco_pretrain.pth.tar"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    net = create_model(f"moco_{version}_resnet50", weights=path)
    assert net.layout == "MoCo"
    loaded = net.model.state_dict()
    for name, value in state.items():
        ours = name.replace("fc.", "head.") if name.startswith("fc.") else f"features.{name}"
        assert torch.equal(loaded[ours], value), name
    if version == "v1":
        x = torch.rand(2, 3, 40, 33)
        torch.testing.assert_close(net.model(x), F.normalize(resnet50(x), dim=1), rtol=1e-4, atol=1e-6)
        with pytest.raises(WeightsError, match=r"read as of MoCo: 4 missing: head\.0\.weight"):
            create_model("moco_v2_resnet50", weights=path)


def ms_loss_name(name):
    if name.startswith("head."):
        return name.replace("head.", "head.fc.")
    *path, kind, leaf = name.removeprefix("features.").split(".")
    return "backbone." + "_".join(path) + ("_bn" if kind == "bn" else "") + f".{leaf}"


# A few of the published names and shapes, to the letter.
MS_LOSS_SHAPES = {
    "backbone.conv1_7x7_s2.weight": (64, 3, 7, 7),
    "backbone.conv1_7x7_s2_bn.running_mean": (64,),
    "backbone.conv2_3x3_reduce.bias": (64,),
    "backbone.inception_3a_double_3x3_reduce_bn.weight": (64,),
    "backbone.inception_3c_double_3x3_2.weight": (96, 96, 3, 3),
    "backbone.inception_4a_1x1.weight": (224, 576, 1, 1),
    "backbone.inception_4e_double_3x3_2_bn.running_var": (256,),
    "backbone.inception_5a_pool_proj.weight": (128, 1056, 1, 1),
    "backbone.inception_5b_pool_proj_bn.num_batches_tracked": (),
    "head.fc.weight": (512, 1024),
    "head.fc.bias": (512,),
}


@pytest.mark.parametrize("layout", ["ms-loss", "Explain_Metric_Learning"])
def test_bn_inception_is_read_from_the_repositories_that_train_it(tmp_path, layout):
    net = randomize(BNInception())
    state = {ms_loss_name(name): value for name, value in net.state_dict().items()}
    assert {name: tuple(state[name].shape) for name in MS_LOSS_SHAPES} == MS_LOSS_SHAPES
    checkpoint = {"model": state, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 3000}}
    if layout != "ms-loss":
        flat = {n.removeprefix("backbone.").replace("head.fc.", "classifier.linear."): v for n, v in state.items()}
        checkpoint = {"state_dict": flat, "epoch": 7}
    torch.save(checkpoint, tmp_path / "model.pth")
    found = create_model("multi_similarity_bn_inception", weights=tmp_path / "model.pth")
    assert found.layout == layout
    torch.testing.assert_close(found.model.state_dict(), net.state_dict())


def test_training_starts_from_the_imagenet_weights_without_their_classifier():
    net = randomize(BNInception())
    state = {
        ms_loss_name(name).removeprefix("backbone."): value
        for name, value in net.state_dict().items()
        if name.startswith("features.")
    }
    state["last_linear.weight"] = torch.zeros(1000, 1024)
    other = BNInception()
    head = other.head.weight.clone()
    load_weights(other.features, state, [L.IMAGENET_BN_INCEPTION])
    torch.testing.assert_close(other.features.state_dict(), net.features.state_dict())
    assert torch.equal(other.head.weight, head)


def test_the_message_is_of_the_layout_that_fits_best(tmp_path):
    state = proto_net()[0].state_dict()
    del state["encoder.2.0.weight"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"read as of ProtoNet: 1 missing: features\.2\.0\.weight$"):
        create_model("conv4net", weights=tmp_path / "a.pth")


def test_weights_of_another_architecture_are_refused_and_nothing_is_loaded(tmp_path):
    torch.save(models.resnet18().state_dict(), tmp_path / "a.pth")
    net = ResNet12()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(WeightsError, match=r"do not fit ResNet12.* missing: .* and \d+ more; .* unexpected: "):
        load_weights(net, tmp_path / "a.pth", L.RESNET12)
    torch.testing.assert_close(dict(net.state_dict()), before)
    with pytest.raises(WeightsError, match=r"2 of another shape: fc\.weight"):
        load_weights(ContrastiveResNet(18), tmp_path / "a.pth", L.CONTRASTIVE)
