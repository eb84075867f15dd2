"""Image towers of open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_fam import LayerSimilarityCAM
from captum_fam.models import WeightsError, create_model, default_weights, list_models

open_clip = pytest.importorskip("open_clip")
pytestmark = pytest.mark.filterwarnings("ignore:the map explains:UserWarning")  # small networks with random weights

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TOWERS: dict[str, dict[str, Any]] = {
    "tiny-vit": VIT,
    "tiny-vit-average": {**VIT, "pool_type": "avg"},
    "tiny-resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
}


@pytest.fixture(scope="module", autouse=True)
def _small_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("open_clip")
    for name, tower in TOWERS.items():
        content = {"embed_dim": 24, "vision_cfg": tower, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(content))
    open_clip.add_model_config(folder)


def random_images(count: int, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "size"), [("tiny-vit", (96, 64)), ("tiny-vit-average", (96, 64)), ("tiny-resnet", (64, 64))]
)
def test_every_part_of_the_score_is_accounted_for(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = create_model(f"open_clip/{name}", size=size)
    images = random_images(5, *size)
    with torch.no_grad():
        embeddings = net.model(images)
    assert embeddings.shape == (5, 24)
    cam = LayerSimilarityCAM(net.model, net.layer, token_grid=net.token_grid)
    details = cam.details(images[:2], support=embeddings[2:])
    score = torch.nn.functional.cosine_similarity(embeddings[:2, None], embeddings[None, 2:], dim=2).mean(1)
    assert isinstance(details.shares, dict)
    assert isinstance(details.coverage, Tensor)
    torch.testing.assert_close(sum(details.shares.values(), torch.zeros(2)), score, rtol=1e-4, atol=1e-5)
    if name == "tiny-vit-average":
        torch.testing.assert_close(details.coverage, torch.ones(2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", TOWERS)
def test_a_file_of_the_whole_model_or_of_its_tower_is_read(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = open_clip.create_model(name).eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pt")
    torch.save(whole.visual.state_dict(), tmp_path / "tower.pt")
    images = random_images(2)
    with torch.no_grad():
        expected = whole.encode_image(images)
        for file in ("whole.pt", "tower.pt"):
            torch.testing.assert_close(create_model(f"open_clip/{name}", tmp_path / file).model(images), expected)


def test_the_preprocessing_is_that_of_the_tower() -> None:
    net = create_model("open_clip/tiny-vit")
    assert (net.size, net.interpolation, net.mean[0], net.std[0]) == (64, "bicubic", 0.48145466, 0.26862954)
    assert net.name == "open_clip/tiny-vit"


def test_names_tags_and_sizes_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'ViT-B-33' is no model of open_clip; did you mean ViT-B-32"):
        create_model("open_clip/ViT-B-33")
    with pytest.raises(
        WeightsError, match="weights opnai: neither a file nor a tag of ViT-B-32, whose tags are openai"
    ):
        create_model("open_clip/ViT-B-32", "opnai")
    with pytest.raises(WeightsError, match="neither a file nor a tag"):  # a name that no file can have
        create_model("open_clip/ViT-B-32", "x" * 5000)
    with pytest.raises(WeightsError, match="open_clip has none for tiny-vit"):
        create_model("open_clip/tiny-vit", "DEFAULT")
    with pytest.raises(ValueError, match=r"size=\(96, 64\): open_clip/tiny-resnet cannot be made for this size"):
        create_model("open_clip/tiny-resnet", size=(96, 64))
    with pytest.raises(ValueError, match="output=0: the output of open_clip/tiny-vit is the embedding"):
        create_model("open_clip/tiny-vit", output=0)


def test_models_are_listed_and_say_whether_they_are_trained() -> None:
    assert "open_clip/ViT-B-32" in list_models("open_clip")
    assert (default_weights("open_clip/ViT-B-32"), default_weights("open_clip/tiny-vit")) == ("DEFAULT", None)
