from __future__ import annotations

import csv
import math
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import interpolate

from captum_fam.demo import PlantedScenes
from captum_fam.experiments.training import (
    ContrastiveRecipe,
    LabeledImages,
    MoCoRecipe,
    NPIDRecipe,
    Trained,
    contrastive_images,
    train_contrastive,
)
from captum_fam.experiments.training.contrastive.data import StoredImages, evenly_spaced
from captum_fam.experiments.training.contrastive.grouped_encoder import GroupedEncoder
from captum_fam.experiments.training.contrastive.neighbor_accuracy import knn_accuracies
from captum_fam.models import EmbeddingModel, EmbeddingNet, create_model, read_state_dict
from captum_fam.pooling import GAP

pytest.importorskip("safetensors", reason="checkpoints are safetensors")

_JOB = Path(__file__).with_name("job.py")
_PARTS = runpy.run_path(str(_JOB))
_ALGORITHMS = ("npid", "moco")


def _train(out: Path, algorithm: str, net: EmbeddingModel | None = None, **options: Any) -> Trained:
    changes = options.pop("changes", {})
    images, val = _PARTS["Images"](43), _PARTS["Images"](9, 2)
    recipe = _PARTS["recipes"](**changes)[algorithm]
    return train_contrastive(net or _PARTS["network"](), images, out, recipe, bank=images, val=val, **options)


def _rows(trained: Trained) -> list[dict[str, Any]]:
    return [{**row, "seconds": 0} for row in trained.log]


@pytest.fixture(scope="module")
def objects() -> tuple[StoredImages, StoredImages]:
    """The objects of planted scenes, cut out: 24 images of each of 12 classes, of which 8 are held out."""
    scenes = PlantedScenes("novel", length=24 * 24, size=64)

    def cut_out(item: int) -> Tensor:
        scene = scenes.scene(item)
        left, top, right, bottom = map(int, scene.box)
        pixels = interpolate(scene.image[None, :, top:bottom, left:right], (24, 24), mode="bilinear", antialias=True)
        return (pixels[0] * 255).round().byte()

    items = [item for item in range(len(scenes)) if item % 24 < 12]
    images, labels = torch.stack([cut_out(item) for item in items]), torch.tensor([scenes.targets[i] for i in items])
    return StoredImages(LabeledImages(images[:192], labels[:192])), StoredImages(
        LabeledImages(images[192:], labels[192:])
    )


@pytest.mark.parametrize(
    "recipe",
    [
        NPIDRecipe(epochs=8, batch_size=32, learning_rate=0.1, temperature=0.2, k=10, embedding_size=32),
        MoCoRecipe(
            epochs=6, batch_size=32, learning_rate=0.1, k=10, embedding_size=32, norm_groups=2, key_momentum=0.99
        ),
    ],
    ids=_ALGORITHMS,
)
def test_a_small_network_learns_to_tell_planted_objects_apart(
    recipe: ContrastiveRecipe, objects: tuple[StoredImages, StoredImages], tmp_path: Path
) -> None:
    train, val = objects
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in ((3, 16), (16, 32))
        ]
        model = EmbeddingNet(nn.Sequential(*layers), GAP()).eval()
    net = EmbeddingModel("tiny", model, "features", 24, pooling=model.pooling)
    untrained = knn_accuracies(GroupedEncoder(model, nn.Identity(), 1), net, train, val, 10, "cpu")
    trained = train_contrastive(net, train, tmp_path, recipe, bank=train, val=val)
    # Of n classes that are equally probable the loss is log(n).
    n_classes = 192 if isinstance(recipe, NPIDRecipe) else 97
    assert trained.log[-1]["loss"] < min(math.log(n_classes), trained.log[1]["loss"]) - 0.1
    assert trained.log[-1]["instance_accuracy"] > 2 / n_classes
    # Chance is 1 / 12.
    assert trained.best["val_knn"] > max(untrained["val_knn"] + 0.03, 0.5)


@pytest.mark.parametrize("algorithm", _ALGORITHMS)
def test_a_killed_run_goes_on_to_the_same_end_and_leaves_the_random_numbers(algorithm: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    whole = _train(tmp_path / "whole", algorithm)
    assert torch.equal(state, torch.get_rng_state())
    assert not whole.model.training
    assert all(parameter.requires_grad for parameter in whole.model.parameters())
    with pytest.MonkeyPatch.context() as patch:
        steps = []
        step = torch.optim.SGD.step

        def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
            steps.append(1)
            if len(steps) == 8:
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        patch.setattr(torch.optim.SGD, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path / "killed", algorithm)
    torch.manual_seed(99)
    resumed = _train(tmp_path / "killed", algorithm)
    assert _rows(resumed) == _rows(whole)
    for name in ("best", "last", "best-head", "last-head"):
        one, two = (read_state_dict(tmp_path / folder / f"{name}.safetensors") for folder in ("whole", "killed"))
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    one, two = (torch.load(tmp_path / folder / "state.pt", weights_only=True) for folder in ("whole", "killed"))
    torch.testing.assert_close(one["learner"], two["learner"], rtol=0, atol=0)
    assert [row["epoch"] for row in whole.log] == [0, 1]
    assert whole.best["val_knn"] == max(row["val_knn"] for row in whole.log)


def test_worker_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # From Python 3.14 on, the processes import the class of the images.
    monkeypatch.syspath_prepend(_JOB.parent)
    monkeypatch.setitem(_PARTS, "Images", import_module("job").Images)
    changes = {"epochs": 1}
    alone, helped = (_train(tmp_path / str(n), "moco", changes=changes, num_workers=n) for n in (0, 2))
    assert _rows(alone) == _rows(helped)


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_train_as_one_does_also_with_batch_normalization(tmp_path: Path) -> None:
    _PARTS["run"](tmp_path / "one")
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(_JOB), str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, "-m", *launch],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for algorithm in _ALGORITHMS:
        one, two = (torch.load(tmp_path / folder / algorithm / "state.pt") for folder in ("one", "two"))
        # The running statistics are those of the first process.
        learners = [
            {key: value for key, value in state["learner"].items() if "running" not in key and "tracked" not in key}
            for state in (one, two)
        ]
        assert {"bank.rows"} <= learners[0].keys() or {"queue.keys", "queue.position"} <= learners[0].keys()
        torch.testing.assert_close(*learners, rtol=1e-3, atol=1e-5)
        losses = []
        for folder in ("one", "two"):
            with (tmp_path / folder / algorithm / "log.csv").open(encoding="utf-8") as file:
                losses.append([float(row["loss"]) for row in csv.DictReader(file)])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert len(losses[0]) == 2


@pytest.mark.parametrize("algorithm", _ALGORITHMS)
def test_bfloat16_trains_about_the_same(algorithm: str, tmp_path: Path) -> None:
    full, half = (
        _train(tmp_path / name, algorithm, precision=name, changes={"epochs": 1}) for name in ("float32", "bfloat16")
    )
    assert [row["loss"] for row in half.log] == pytest.approx([row["loss"] for row in full.log], rel=0.05)
    assert [row["loss"] for row in half.log] != [row["loss"] for row in full.log]
    assert {value.dtype for value in read_state_dict(tmp_path / "bfloat16" / "best.safetensors").values()} <= {
        torch.float32,
        torch.int64,
    }


@pytest.mark.parametrize(
    ("name", "algorithm", "has_file"),
    [("npid_resnet18", "npid", False), ("conv4net", "npid", True), ("conv4net", "moco", True)],
)
def test_what_is_trained_loads_back_under_its_name(name: str, algorithm: str, has_file: bool, tmp_path: Path) -> None:
    net = replace(create_model(name), size=32)
    trained = _train(tmp_path, algorithm, net, changes={"epochs": 1})
    again = create_model(name, tmp_path / "best.safetensors")
    torch.testing.assert_close(again.model.state_dict(), trained.model.state_dict(), rtol=0, atol=0)
    measured = knn_accuracies(
        GroupedEncoder(again.model, nn.Identity(), 1), net, _PARTS["Images"](43), _PARTS["Images"](9, 2), 3, "cpu"
    )
    assert measured["val_knn"] == trained.best["val_knn"]
    assert (tmp_path / "best-head.safetensors").is_file() == has_file == ("val_knn_head" in trained.best)
    if has_file:
        shapes = {tuple(value.shape) for value in read_state_dict(tmp_path / "best-head.safetensors").values()}
        assert shapes == {(5, 64), (5,)} if algorithm == "npid" else {(64, 64), (64,), (5, 64), (5,)}


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    net = _PARTS["network"]()
    net.model.features[0].requires_grad_(False)
    before = net.model.features[0].weight.clone()
    trained = _train(tmp_path, "moco", net, changes={"epochs": 1})
    assert torch.equal(before, trained.model.features[0].weight)
    assert not trained.model.features[0].weight.requires_grad
    assert trained.model.features[1].weight.requires_grad


def test_without_held_out_images_the_last_epoch_is_kept_and_with_them_it_is_the_same(tmp_path: Path) -> None:
    images, recipe = _PARTS["Images"](20), _PARTS["recipes"]()["npid"]
    trained = train_contrastive(_PARTS["network"](), images, tmp_path, recipe)
    assert trained.best["epoch"] == 1
    last = (tmp_path / "last.safetensors").read_bytes()
    assert (tmp_path / "best.safetensors").read_bytes() == last
    # The accuracy is measured in eval mode: the statistics of batch normalization are those of the training alone.
    train_contrastive(_PARTS["network"](), images, tmp_path / "val", recipe, bank=images, val=images)
    assert (tmp_path / "val" / "last.safetensors").read_bytes() == last
    with pytest.raises(ValueError, match="needs both, pass both or none"):
        train_contrastive(_PARTS["network"](), images, tmp_path, recipe, val=images)


def test_the_accuracy_is_that_of_the_nearest_neighbors() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = EmbeddingModel("mean", model, "0", 4, mean=(0.0,) * 3, std=(1.0,) * 3)
    bank, val = _PARTS["Images"](24), _PARTS["Images"](10, 1)
    head = nn.Linear(3, 2)
    found = knn_accuracies(GroupedEncoder(model, head, 1), net, bank, val, 1, "cpu")
    for name, layer in (("val_knn", nn.Identity()), ("val_knn_head", head)):
        rows, queries = (
            [nn.functional.normalize(layer(image.mean((1, 2))), dim=0).detach() for image in data.images]
            for data in (bank, val)
        )
        hits = 0
        for query, label in zip(queries, val.labels, strict=True):
            similarities = [float(row @ query) for row in rows]
            hits += int(bank.labels[similarities.index(max(similarities))] == label)
        assert found[name] == hits / 10


def test_every_nth_image_of_each_class_is_held_out(tmp_path: Path) -> None:
    net = replace(create_model("conv4net"), size=16)
    images = contrastive_images("scenes:240", net, 5, split="novel", cache=tmp_path)
    assert images.bank is not None
    assert images.val is not None
    assert images.val.labels.unique(return_counts=True)[1].tolist() == [2] * 24
    assert images.bank.labels.unique(return_counts=True)[1].tolist() == [8] * 24
    scenes = PlantedScenes("novel", length=240, size=16)
    # The fifth scene of the first class.
    torch.testing.assert_close(images.val[0][0], scenes[4 * 24][0], rtol=0, atol=1 / 255)
    everything = contrastive_images("scenes:240", net, 0, split="novel", cache=tmp_path)
    assert (len(everything.train), everything.bank, everything.val) == (240, None, None)
    with pytest.raises(ValueError, match="no class has 30 images"):
        contrastive_images("scenes:240", net, 30, split="novel", cache=tmp_path)
    few = evenly_spaced(images.bank, 100)
    assert len(few) == 100
    assert len(few.labels.unique()) == 24


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the loss of epoch 0 is nan; lower the learning rate"):
        _train(tmp_path, "npid", changes={"learning_rate": 1e30})
    one_step, recipe = _PARTS["Images"](8), _PARTS["recipes"](learning_rate=1e38)["npid"]
    with pytest.raises(RuntimeError, match=r"accuracy of epoch 0: .* NaN or inf; if the training diverges, lower the"):
        train_contrastive(_PARTS["network"](), one_step, tmp_path / "one", recipe, bank=one_step, val=one_step)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NPIDRecipe(temperature=0), "temperature must be above 0"),
        (lambda: NPIDRecipe(augmentation="v3"), "augmentation must be one of v1, v2, got 'v3'"),  # type: ignore[arg-type]
        (lambda: NPIDRecipe(milestones=(160, 120)), "milestones must be in ascending order"),
        (lambda: MoCoRecipe(batch_size=20), "batch_size=20 must be a multiple of norm_groups=8"),
        (lambda: NPIDRecipe().check(255), "batch_size=256 is more than the 255 training images"),
        (lambda: NPIDRecipe().check(999, 3), "batch_size=256 must be a multiple of the 3 processes"),
        (lambda: NPIDRecipe().check_neighbors(199), "k=200 is more than the 199 training images that can vote"),
        (lambda: NPIDRecipe(knn_images=150).check_neighbors(999), "k=200 is more than the 150 training images"),
        (lambda: MoCoRecipe().check(999, 16), "norm_groups=8 must be a multiple of the 16 processes"),
        (lambda: MoCoRecipe(queue=255), "queue=255 must hold a batch"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_rates_and_sizes_are_the_published_ones() -> None:
    npid, moco = NPIDRecipe(), MoCoRecipe()
    assert [npid.rate(epoch) for epoch in (0, 119, 120, 160)] == pytest.approx([0.03, 0.03, 0.003, 0.0003])
    assert [moco.rate(epoch) for epoch in (0, 100, 200)] == pytest.approx([0.03, 0.015, 0])
    assert replace(npid, epochs=10).rate(6) == pytest.approx(0.003)
    assert (npid.temperature, npid.bank_momentum, npid.head, npid.augmentation) == (0.07, 0.5, "linear", "v1")
    assert (moco.temperature, moco.key_momentum, moco.head, moco.augmentation) == (0.2, 0.999, "mlp", "v2")
    assert (npid.n_negatives(65_537), npid.n_negatives(65_538), replace(npid, negatives=7).n_negatives(99)) == (
        0,
        65_536,
        7,
    )
    assert (moco.queue_length(1_281_167), moco.queue_length(1500), moco.queue_length(300)) == (65_536, 512, 256)
    with pytest.raises(TypeError, match="recipe must be NPIDRecipe or MoCoRecipe, got ContrastiveRecipe"):
        train_contrastive(_PARTS["network"](), _PARTS["Images"](300), ".", ContrastiveRecipe())
