"""Vision models of transformers: from a folder, by type, with the embedding that was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_fam import LayerSimilarityCAM, TokenGrid
from captum_fam.models import EmbeddingModel, WeightsError, create_model, default_weights, list_models

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:the map explains:UserWarning")  # small networks with random weights

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 50,
}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}

FAMILIES: dict[str, Callable[[], Any]] = {
    "dinov2": lambda: transformers.Dinov2Config(**{**SMALL, "image_size": 56, "patch_size": 14}),
    "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=4),
    "vit": lambda: transformers.ViTConfig(**SMALL),
    "clip": lambda: transformers.CLIPConfig(
        vision_config={**SMALL, "projection_dim": 24}, text_config=TEXT, projection_dim=24
    ),
    "clip_vision_model": lambda: transformers.CLIPVisionConfig(**SMALL, projection_dim=24),
    "siglip": lambda: transformers.SiglipConfig(vision_config=SMALL, text_config=TEXT),
    "siglip_vision_model": lambda: transformers.SiglipVisionConfig(**SMALL),
    "swin": lambda: transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4
    ),
    "convnext": lambda: transformers.ConvNextConfig(**STAGES, image_size=64),
    "resnet": lambda: transformers.ResNetConfig(**STAGES, embedding_size=8, layer_type="basic"),
}
PREFIX = {"dinov2": 1, "dinov2_with_registers": 5, "vit": 1, "clip": 1, "clip_vision_model": 1}
LENGTH = {"clip": 24, "clip_vision_model": 24}


def folder_of(family: str, path: Path) -> Path:
    torch.manual_seed(0)
    FAMILIES[family]().save_pretrained(path)
    return path


def random_images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_of_the_score_of_a_family_is_accounted_for(family: str, tmp_path: Path) -> None:
    net = create_model(f"hf/{folder_of(family, tmp_path)}", size=(96, 64))
    images = random_images(5, 96, 64)
    with torch.no_grad():
        embeddings = net.model(images)
    assert embeddings.shape == (5, LENGTH.get(family, 32))
    if net.token_grid is not None:
        assert (net.token_grid.size, net.token_grid.prefix_tokens) == (
            (3, 2) if family == "swin" and net.layer.endswith("stages.2") else (6, 4),
            PREFIX.get(family, 0),
        )
    cam = LayerSimilarityCAM(net.model, net.layer, token_grid=net.token_grid, similarity=net.similarity)
    details = cam.details(images[:2], support=embeddings[2:])
    assert isinstance(details.attributions, Tensor)
    assert isinstance(details.shares, dict)
    assert isinstance(details.coverage, Tensor)
    # Independent: the mean cosine of the query to three supports.
    score = torch.nn.functional.cosine_similarity(embeddings[:2, None], embeddings[None, 2:], dim=2).mean(1)
    torch.testing.assert_close(sum(details.shares.values(), torch.zeros(2)), score, rtol=1e-4, atol=1e-5)
    if family not in PREFIX:  # without a class token, the map is the whole score
        torch.testing.assert_close(details.coverage, torch.ones(2), rtol=1e-3, atol=1e-3)
    assert min(details.attributions.shape[2:]) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embedding_is_that_of_transformers(family: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = FAMILIES[family]()
    image_classes = {
        "clip": transformers.CLIPModel,
        "clip_vision_model": transformers.CLIPVisionModelWithProjection,
        "siglip": transformers.SiglipModel,
        "vit": transformers.ViTForImageClassification,
        "swin": transformers.SwinForImageClassification,
    }
    theirs = image_classes.get(family, transformers.AutoModel)
    made = theirs.from_config(config) if theirs is transformers.AutoModel else theirs(config)
    made.eval().save_pretrained(tmp_path)
    net = create_model(f"hf/{tmp_path}", "DEFAULT")
    images = random_images(2, 64, 64)
    with torch.no_grad():
        if family == "clip":
            vision = made.vision_model(images).pooler_output
            expected = made.visual_projection(vision)
        elif family == "siglip":
            expected = made.vision_model(images).pooler_output
        elif family == "vit":
            expected = made.vit(images).last_hidden_state[:, 0]
        elif family == "swin":
            expected = made.swin(images).last_hidden_state.mean(1)
        else:
            output = made(images)
            expected = output.image_embeds if "clip" in family else output.pooler_output.flatten(1)
        torch.testing.assert_close(net.model(images), expected, rtol=1e-4, atol=1e-5)
    assert not net.model.training


def test_a_convnext_is_pooled_and_then_normalized(tmp_path: Path) -> None:
    net = create_model(f"hf/{folder_of('convnext', tmp_path)}")
    kept: list[Tensor] = []
    net.layer_module.register_forward_hook(lambda _, __, output: kept.append(output))
    with torch.no_grad():
        embedding = net.model(random_images(2, 64, 96))
        assert net.pooling is not None
        assert net.head is not None
        torch.testing.assert_close(net.head(net.pooling(kept[0])), embedding, rtol=1e-4, atol=1e-5)


def test_the_preprocessing_stands_in_the_folder(tmp_path: Path) -> None:
    folder = folder_of("dinov2", tmp_path)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "size": {"shortest_edge": 80},
                "crop_size": {"height": 70, "width": 70},
                "do_center_crop": True,
                "image_mean": [0.1, 0.2, 0.3],
                "image_std": [0.5, 0.6, 0.7],
                "resample": 3,
            }
        )
    )
    net = create_model(f"hf/{folder}")
    assert (net.size, net.mean, net.std, net.interpolation) == (70, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "bicubic")
    assert net.evaluation_crop == (80, 70)
    assert create_model(f"hf/{folder}", resize="crop").preprocessing.crop_from == 80


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"size": 64, "do_normalize": False, "resample": 2}, (64, (0.0,) * 3, (1.0,) * 3, "bilinear", None)),
        (
            {"size": {"height": 64, "width": 96}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 1},
            ((64, 96), (0.5,) * 3, (0.5,) * 3, "lanczos", None),
        ),
        (  # ConvNeXt: the shorter side is 64 / 0.875 = 73, and 64 are cut out
            {"size": {"shortest_edge": 64}, "crop_pct": 0.875, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            (64, (0.5,) * 3, (0.5,) * 3, "bilinear", (73, 64)),
        ),
    ],
)
def test_the_forms_of_that_file(content: dict[str, Any], expected: tuple[object, ...], tmp_path: Path) -> None:
    folder = folder_of("convnext", tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    net = create_model(f"hf/{folder}")
    assert (net.size, net.mean, net.std, net.interpolation, net.evaluation_crop) == expected


def test_an_image_processor_inside_a_processor_is_read(tmp_path: Path) -> None:
    folder = folder_of("clip", tmp_path)
    (folder / "processor_config.json").write_text(
        json.dumps({"image_processor": {"size": 64, "image_mean": [0.3] * 3}})
    )
    assert create_model(f"hf/{folder}").mean == (0.3,) * 3


def test_a_broken_preprocessing_is_named(tmp_path: Path) -> None:
    folder = folder_of("dinov2", tmp_path)
    (folder / "preprocessor_config.json").write_text('{"size": {"width": 3}}')
    with pytest.raises(
        ValueError, match=r"preprocessor_config.json is no preprocessing of images \(KeyError: 'height'"
    ):
        create_model(f"hf/{folder}")


@pytest.mark.parametrize(
    ("family", "mean", "interpolation"),
    [
        ("clip", 0.48145466, "bicubic"),
        ("siglip", 0.5, "bicubic"),
        ("vit", 0.5, "bilinear"),
        ("dinov2", 0.485, "bicubic"),
    ],
)
def test_without_that_file_the_type_says_the_preprocessing(
    family: str, mean: float, interpolation: str, tmp_path: Path
) -> None:
    net = create_model(f"hf/{folder_of(family, tmp_path)}")
    assert (net.mean[0], net.interpolation) == (mean, interpolation)
    assert net.size == (56 if family == "dinov2" else 64)


def test_a_model_without_weights_for_its_embedding_is_refused(tmp_path: Path) -> None:
    model = transformers.Dinov2Model(FAMILIES["dinov2"]())
    state = {key: value for key, value in model.state_dict().items() if key != "layernorm.weight"}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(WeightsError, match=r"has no weights for layernorm\.weight, which Dinov2Model needs"):
        create_model(f"hf/{tmp_path}", "DEFAULT")


def test_an_untrained_pooling_is_refused_unless_another_output_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BeitConfig(**SMALL)
    transformers.BeitModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"no weights for pooler\..*take another output with output="):
        create_model(f"hf/{tmp_path}", "DEFAULT")
    net = create_model(f"hf/{tmp_path}", "DEFAULT", output=mean_token)
    assert net.model(random_images(2, 64, 64)).shape == (2, 32)


def mean_token(output: Any) -> Tensor:
    tokens: Tensor = output.last_hidden_state[:, 1:].mean(1)
    return tokens


def test_another_output_can_be_the_embedding(tmp_path: Path) -> None:
    folder = folder_of("dinov2", tmp_path)
    torch.manual_seed(0)
    net = create_model(f"hf/{folder}", output=mean_token)
    images = random_images(2, 56, 56)
    with torch.no_grad():
        expected = net.model.get_submodule("model")(images).last_hidden_state[:, 1:].mean(1)
        torch.testing.assert_close(net.model(images), expected)
    with pytest.raises(ValueError, match=r"shape \(B, J\), got \(1, 17, 32\); for a sequence of tokens"):
        create_model(f"hf/{folder}", output="last_hidden_state")
    with pytest.raises(
        ValueError, match="output='logits': the model gives the fields last_hidden_state, pooler_output"
    ):
        create_model(f"hf/{folder}", output="logits")


def test_a_layer_may_be_named_as_transformers_names_it(tmp_path: Path) -> None:
    net = create_model(f"hf/{folder_of('dinov2', tmp_path)}", layer="encoder.layer.1")
    assert (net.layer, net.token_grid) == ("model.encoder.layer.1", TokenGrid())


def test_weights_of_a_file_are_loaded(tmp_path: Path) -> None:
    folder = folder_of("dinov2", tmp_path)
    torch.manual_seed(5)
    theirs = transformers.Dinov2Model(FAMILIES["dinov2"]()).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    net = create_model(f"hf/{folder}", tmp_path / "weights.pth")
    images = random_images(2, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(net.model(images), theirs(images).pooler_output)


def test_a_type_is_its_default_architecture_and_has_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transformers.CONFIG_MAPPING._extra_content, "tiny_dinov2", FAMILIES["dinov2"])
    net = create_model("hf/tiny_dinov2")
    assert isinstance(net, EmbeddingModel)
    assert net.name == "hf/tiny_dinov2"
    assert default_weights("hf/tiny_dinov2") is None
    with pytest.raises(WeightsError, match=r"hf/tiny_dinov2 is a type of models, without weights"):
        create_model("hf/tiny_dinov2", "DEFAULT")


def test_a_folder_without_weights_is_random_when_asked_for(tmp_path: Path) -> None:
    folder = folder_of("dinov2", tmp_path)
    assert default_weights(f"hf/{folder}") is None
    assert create_model(f"hf/{folder}", "none").size == 56
    with pytest.raises(WeightsError, match=r"has none that can be read .*--weights none"):
        create_model(f"hf/{folder}", "DEFAULT")


def test_what_is_no_image_model_is_refused(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="bert is no model that embeds images on its own"):
        create_model(f"hf/{tmp_path}/bert")
    with pytest.raises(ValueError, match=r"folder has no config\.json"):
        create_model(f"hf/{tmp_path}/empty")
    with pytest.raises(ValueError, match=r"'hf/dinov' is unknown; did you mean hf/dinov2"):
        create_model("hf/dinov")


def test_types_are_listed() -> None:
    assert {"hf/dinov2", "hf/siglip", "hf/vit", "hf/convnext"} <= set(list_models("hf"))


def test_what_a_naflex_model_needs_beside_images_is_named(tmp_path: Path) -> None:
    if not hasattr(transformers, "Siglip2VisionConfig"):
        pytest.skip("transformers without Siglip2")
    transformers.Siglip2VisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_patches=16, patch_size=8
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs pixel_attention_mask, spatial_shapes beside images"):
        create_model(f"hf/{tmp_path}")


def test_a_whole_model_of_texts_and_images_is_refused() -> None:
    config = FAMILIES["clip"]()
    with pytest.raises(TypeError, match=r"CLIPModel takes input_ids first.*CLIPVisionModelWithProjection"):
        create_model(transformers.CLIPModel(config))
    assert create_model(transformers.CLIPVisionModelWithProjection(config.vision_config)).size == 64
