"""The pages of the open questions end to end in small, on planted scenes and random networks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("torchmetrics")

from benchmarks import novel_classes, planted_vit, pooling, similarities, transformer_layers, transformers
from benchmarks.networks import Network
from benchmarks.planted_training import SIZE, vit
from captum_fam import LayerSimilarityCAM, TokenGrid
from captum_fam.demo import PlantedScenes
from captum_fam.experiments import FewShot, Mosaic
from captum_fam.experiments.data.labels import labels_of
from captum_fam.experiments.protocols.features_protocol import FeaturesProtocol
from captum_fam.models import EmbeddingModel

DEMO = {"demo": Network("demo", "Demo", "demo", "", "")}


def run(page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocols: dict[str, dict[str, int]]) -> str:
    monkeypatch.setattr(page, "QUICK", protocols)
    arguments = ["--quick", "--data", "scenes:144", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    page.main(arguments, DEMO)
    written = (tmp_path / f"{page.__name__.rpartition('.')[2]}.md").read_text()
    # Everything is done: the page is written again from what is kept.
    monkeypatch.setattr(FeaturesProtocol, "prepare", None)
    for protocol in (FewShot, Mosaic):
        monkeypatch.setattr(protocol, "prepared", None)
    page.main(arguments, DEMO)
    assert (tmp_path / f"{page.__name__.rpartition('.')[2]}.md").read_text() == written
    return written


def row(page: str, start: str, table: int = 0) -> list[str]:
    return [line for line in page.splitlines() if line.startswith(f"| {start} |")][table].split(" | ")


def test_the_page_of_similarities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarities, "train_relation_head", partial(similarities.train_relation_head, steps=5))
    monkeypatch.setattr(similarities, "Learned", partial(similarities.Learned, n_steps=8))
    page = run(similarities, tmp_path, monkeypatch, {"few-shot": {"episodes": 1, "query": 2}})
    # In the columns of the naive rules the exact map is refused, with the reason below.
    cells = row(page, "similarity-cam")
    assert [cell for cell in cells if cell.startswith("refused")] == ["refused (1)", "refused (1)", "refused (2)"]
    assert "(1) similarity EuclideanDifference has contributions but no linear weights" in page
    assert row(page, "grad-cam")[4] == "as euclidean"
    # Cosine and squared distance: what the map explains, all of it.
    assert row(page, "cosine")[-1].startswith("1.000")
    assert row(page, "squared")[-1].startswith("1.000")
    zero, gain, total = (float(row(page, "squared")[at]) for at in (2, 3, 1))
    assert total == pytest.approx(zero + gain, rel=1e-2)


def test_the_page_of_poolings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "train_pooling", partial(pooling.train_pooling, steps=5))
    page = run(pooling, tmp_path, monkeypatch, {"mosaic": {"mosaics": 1}})
    for name in ("GAP", "GMP", "GeM(3)", "attention"):
        assert row(page, name)[2:4] == ["1.000", row(page, name)[3]], name
    assert float(row(page, "LSE(10)")[2]) > 1.01
    assert row(page, "GMP")[1] == "1.0 of 25"
    assert row(page, "GAP")[1] == "25.0 of 25"


def test_the_first_images_of_every_class_are_chosen_in_order() -> None:
    scenes = PlantedScenes("novel", length=60, size=32)
    chosen = novel_classes.FirstOfEach(scenes, 2)
    expected = [item for item in range(60) if item < 48]  # 24 classes in turn
    assert chosen.rows == expected
    assert torch.equal(chosen.labels, labels_of(scenes)[:48])
    assert chosen[3][1] == scenes[3][1]


def test_the_page_of_a_transformer_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = tmp_path / "factory.py"
    factory.write_text(
        "import torch\n"
        "from timm.models.vision_transformer import VisionTransformer\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return VisionTransformer(32, 8, num_classes=0, embed_dim=16, depth=2, num_heads=2, mlp_ratio=1,\n"
        "                             reg_tokens=3, global_pool='token', class_token=True).eval()\n"
    )
    pytest.importorskip("timm")
    monkeypatch.setattr(transformers, "BY_LAYER", ("similarity-cam", "grad-cam"))
    runs = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    transformers.main(["--model", f"{factory}:make", "--size", "32", "--data", "scenes:160", *runs])
    (file,) = tmp_path.glob("transformers-*.md")
    page = file.read_text()
    shares = row(page, "behind block 1, `blocks.1`")
    # Behind the last block only the class token counts; before, patches and registers too.
    titles = row(page, "layer")
    assert titles[1:4] == ["patches", "class token", "registers"]
    assert [float(cell) for cell in shares[1:4]] == [0.0, 1.0, 0.0]
    before = [float(cell) for cell in row(page, "behind block 0, `blocks.0`")[1:4]]
    assert sum(before) == pytest.approx(1, abs=2e-3)
    assert before[2] != 0
    for method in ("attention", "attention-rollout", "uniform"):
        assert len(row(page, method)) == 5


def planted() -> EmbeddingModel:
    torch.manual_seed(0)
    network = planted_vit.AnySize(vit()).eval()
    return EmbeddingModel("vit", network, "vit.encoder.dropout", SIZE, token_grid=TokenGrid())


def test_the_blocks_of_a_network_are_found() -> None:
    layers = transformer_layers.layers_of(planted())
    assert layers.first == "vit.encoder.dropout"
    assert layers.blocks == tuple(f"vit.encoder.layers.encoder_layer_{index}" for index in range(5))


def test_a_network_without_blocks_of_tokens_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(ValueError, match="no blocks that give tokens"):
        transformer_layers.layers_of(EmbeddingModel("tiny", net, "1", size=32))


def test_a_vit_of_any_size_is_torchvision_s_at_its_own_size_and_keeps_its_places_at_others() -> None:
    torch.manual_seed(0)
    net = vit().eval()
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(planted_vit.AnySize(net)(images), net(images))
        assert planted_vit.AnySize(net)(torch.rand(1, 3, 2 * SIZE, SIZE)).shape == (1, 128)
    # A position embedding that is a plane stays one: cell centers of twice the rows lie a quarter off those before.
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")
    embedding = torch.cat([torch.tensor([[7.0, 7.0]]), torch.stack([rows, columns], 2).flatten(0, 1)])[None]
    larger = planted_vit.places_for(embedding, (10, 5))
    assert larger[0, 0].tolist() == [7, 7]
    inside = larger[0, 1:].view(10, 5, 2)[3:7, :, 0]
    torch.testing.assert_close(inside, torch.tensor([1.25, 1.75, 2.25, 2.75])[:, None].expand(4, 5), rtol=0, atol=0.05)


def test_the_shares_of_a_page_are_those_of_the_method() -> None:
    net = planted()
    layers = transformer_layers.layers_of(net)
    model = transformers.split_model(net, layers.first)
    dataset = transformers.load_dataset("scenes:160", "novel", model)
    lines = transformers.accounts(model, layers, dataset, episodes=1)
    sampler = transformers.EpisodeSampler(labels_of(dataset), 5, 1, 5, 1, 0)
    episode = sampler.episode(0)
    support, queries = (
        torch.stack([dataset[int(item)][0] for item in rows.flatten()]) for rows in (episode.support, episode.query)
    )
    cam = LayerSimilarityCAM(net.model, net.model.get_submodule(layers.blocks[1]), token_grid=TokenGrid())
    cam.has_warned = True
    patches = total = 0.0
    for label in range(5):
        details = cam.details(queries[5 * label : 5 * label + 5], support=support[label : label + 1])
        patches += float(details.shares["map"].sum())
        total += float(details.comparison.score.sum())
    assert float(row("\n".join(lines), f"behind block 1, `{layers.blocks[1]}`")[1]) == pytest.approx(
        patches / total, abs=2e-3
    )
