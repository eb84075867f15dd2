"""A bank is made by whatever model and of whatever data set people have."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from captum_fam.models import EmbeddingModel
from captum_fam.support import MemoryBank
from tests.support.pictures import Pictures, build, embedder


class _Net(nn.Module):
    def __init__(self, pooled: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv2d(3, 5, 3)
        self.pooled = pooled

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.features(images)
        return features.mean((2, 3), keepdim=not self.pooled)


@pytest.fixture
def net() -> EmbeddingModel:
    return EmbeddingModel("net", _Net().eval(), "features", size=8, mean=(0.0,) * 3, std=(0.5,) * 3, similarity="dot")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photographs of two classes."""
    for index, name in enumerate(("wren", "jay", "wren", "jay", "jay")):
        path = tmp_path / "birds" / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (12, 9, 3), generator=torch.Generator().manual_seed(index)).byte()
        Image.fromarray(pixels.numpy()).save(path)
    return tmp_path / "birds"


FILES = ("jay/1.png", "jay/3.png", "jay/4.png", "wren/0.png", "wren/2.png")


def test_class_folders_with_an_embedding_model(net: EmbeddingModel, folder: Path) -> None:
    bank = MemoryBank.from_dataset(net, folder, folder.parent / "bank.safetensors", progress=False)
    images = torch.stack([net.preprocess(Image.open(folder / file)) for file in FILES])
    with torch.no_grad():
        torch.testing.assert_close(bank.embeddings, net.model(images))
    assert bank.class_names == ("jay", "wren")
    assert bank.labels.tolist() == [0, 0, 0, 1, 1]
    assert bank.similarity_name == "dot"
    again = MemoryBank.from_dataset(net, str(folder), folder.parent / "bank.safetensors", progress=False)
    assert torch.equal(again.embeddings, bank.embeddings)
    assert MemoryBank.from_dataset(net, folder, similarity="cosine", progress=False).similarity_name == "cosine"


def test_class_folders_with_a_network_say_what_is_assumed(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"preprocessing of the model is not known.*224 x 224"):
        bank = MemoryBank.from_dataset(_Net().eval(), folder, progress=False)
    assert len(bank) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half = MemoryBank.from_dataset(
            _Net().eval(), folder, preprocess=lambda image: torch.full((3, 5, 5), image.width / 2), progress=False
        )
    with torch.no_grad():
        torch.testing.assert_close(half.embeddings, _Net()(torch.full((5, 3, 5, 5), 4.5)))


@pytest.mark.parametrize("kind", ["pair", "pml", "unpooled", "output object", "function"])
def test_models_of_any_kind(kind: str) -> None:
    trunk, head = _Net().eval(), nn.Linear(5, 2).eval()
    models: dict[str, Any] = {
        "pair": (trunk, head),
        "unpooled": _Net(pooled=False).eval(),
        "output object": lambda images: SimpleNamespace(image_embeds=trunk(images), last_hidden_state=images),
        "function": trunk.forward,
    }
    if kind == "pml":
        inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
        models["pml"] = inference.InferenceModel(trunk, head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bank = build(model=models[kind])
    with torch.no_grad():
        expected = trunk(Pictures().images)
        if kind in ("pair", "pml"):
            expected = head(expected)
        if kind == "pml":  # an InferenceModel gives embeddings of length one
            expected = nn.functional.normalize(expected)
        torch.testing.assert_close(bank.embeddings, expected)


def test_a_loader_is_read_in_the_order_of_its_data_set() -> None:
    images, labels = Pictures().images, torch.arange(53) % 4
    loader = DataLoader(TensorDataset(images, labels), batch_size=9, shuffle=True, drop_last=True)
    model, batches = embedder(), []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    bank = MemoryBank.from_dataset(model, loader, progress=False)
    with torch.no_grad():
        torch.testing.assert_close(bank.embeddings, embedder()(images))
    assert bank.labels.tolist() == labels.tolist()
    assert batches == [9, 9, 9, 9, 9, 8]
    batches.clear()
    MemoryBank.from_dataset(model, loader, batch_size=53, progress=False)
    assert batches == [53]


def test_a_subset_keeps_names_and_labels() -> None:
    bank = build(Subset(Pictures(), [50, 3, 7, 8]))
    assert bank.class_names == Pictures.class_names
    assert bank.labels.tolist() == [2, 3, 3, 0]


def test_dictionaries_with_names_and_identity_numbers(tmp_path: Path) -> None:
    images = Pictures().images[:6]
    birds = ["wren", "jay", "wren", "tit", "jay", "jay"]
    named = build([{"image": image, "label": bird} for image, bird in zip(images, birds, strict=True)])
    assert named.class_names == ("jay", "tit", "wren")
    assert named.labels.tolist() == [2, 0, 2, 1, 0, 0]
    numbers = [2**40, -3, 2**40, 17, -3, -3]
    numbered = [{"img": image, "target": np.int64(number)} for image, number in zip(images, numbers, strict=True)]
    for _ in range(2):  # the second time from the file
        bank = build(numbered, path=tmp_path / "bank.safetensors")
        assert bank.class_names == ("-3", "17", str(2**40))
        assert bank.labels.tolist() == [2, 0, 2, 1, 0, 0]
    with pytest.raises(ValueError, match="another model or dataset"):
        build([{**item, "target": 17} for item in numbered], path=tmp_path / "bank.safetensors")


def test_the_first_items_may_be_unreadable() -> None:
    with pytest.warns(UserWarning, match="could not be used: 2"):
        bank = build(Pictures(broken={0, 1}), on_error="skip")
    assert bank.items.tolist() == list(range(2, 53))


@pytest.mark.parametrize(
    ("model", "message"), [(5, "int"), (EmbeddingModel, "type|class"), ((nn.Flatten(), 3), "trunk|embedder|int")]
)
def test_what_is_no_model_is_refused(model: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        build(model=model)
