"""The table of the planted scenes: its maps, its measures, and the whole of it on a small scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import Tensor, nn

from benchmarks import planted
from benchmarks.planted_maps import CASES, Case, exact, grad_cam, gradient_times_activation
from benchmarks.planted_training import NETS, NovelEpisodes, load, novel_accuracy, prepared
from captum_fam import SimilarityToSupport, SupportSet
from captum_fam.demo.scenes import PlantedScenes

OPTIONS = "all --minutes 0.01 --scenes 16 --batch 4 --episodes 1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both networks, trained for a moment, and the page on three queries."""
    folder = tmp_path_factory.mktemp("planted")
    support, queries, labels, masks = NovelEpisodes(1)[0]
    few = [(support, queries[::9], labels[::9], masks[::9])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planted, "drawn", lambda episodes, batch_size: few)
        planted.main([*f"{OPTIONS} --out {folder}".split(), "--page", str(folder / "page.md")])
    return folder


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return NETS[request.param]().eval()


@pytest.fixture(scope="module")
def episode() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return NovelEpisodes(4)[3]


def scores_of(net: nn.Module, episode: tuple[Tensor, ...], foil: bool) -> SimilarityToSupport:
    return SimilarityToSupport(net, SupportSet(episode[0], torch.arange(5)), foil="others" if foil else None)


def test_the_page_has_a_row_per_method_and_per_block(runs: Path) -> None:
    lines = (runs / "page.md").read_text().splitlines()
    tables = [line for line in lines if line.startswith("| ")]
    heads = 4
    blocks = sum(len({case.layer for case in cases if case.method is exact}) for cases in CASES.values())
    assert len(tables) == heads + sum(map(len, CASES.values())) + blocks
    assert f"`python -m benchmarks.planted {OPTIONS} --out {runs}" in lines[2]
    assert sum("16, seed 0, on" in line for line in lines) == len(NETS)


@pytest.mark.parametrize("name", NETS)
def test_a_trained_network_is_loaded_as_it_was_saved(runs: Path, name: str) -> None:
    net, trained = load(name, runs)
    assert not net.training
    assert (trained.scenes, trained.batch, trained.episodes, trained.seed) == (16, 4, 1, 0)
    assert trained.minutes == 0.01 * planted.SHARES[name]
    accuracy, _ = novel_accuracy(net, [NovelEpisodes(1)[0]])
    assert accuracy == pytest.approx(trained.accuracy)


def test_an_episode_is_that_of_the_novel_scenes_with_the_object_s_masks(
    episode: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    support, queries, labels, masks = episode
    truth = PlantedScenes("novel", size=88, seed=1).episode(query=5, seed=3)
    assert torch.equal(support, prepared(truth.support_images))
    assert torch.equal(queries, prepared(truth.query_images))
    assert labels.tolist() == [label for label in range(5) for _ in range(5)]
    assert torch.equal(masks, torch.stack([scene.mask for scene in truth.query]))


def test_the_parts_of_the_exact_map_add_up_to_the_score_at_every_block(
    net: nn.Module, episode: tuple[Tensor, ...]
) -> None:
    _, queries, labels, _ = episode
    queries, labels = queries[::7], labels[::7]
    cases = next(cases for name, cases in CASES.items() if type(NETS[name]()) is type(net))
    for case in (case for case in cases if case.method is exact):
        scores = scores_of(net, episode, bool(case.foil))
        maps, shares = case(scores, queries, labels)
        expected = scores(queries).detach().gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(sum(shares.values()), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(maps.sum((1, 2, 3)), shares["map"], rtol=0, atol=1e-6)
        assert float(shares["rest"].abs().max()) < 1e-5


def test_gradient_maps_of_a_convolution_net_are_captum_s(episode: tuple[Tensor, ...]) -> None:
    torch.manual_seed(0)
    net = NETS["convnet"]().eval()
    _, queries, labels, _ = episode
    queries, labels = queries[::7], labels[::7]
    scores = scores_of(net, episode, foil=True)
    layer = net.get_submodule("features.3")
    product = LayerGradientXActivation(scores, layer).attribute(queries, target=labels).sum(1, keepdim=True)
    cam = LayerGradCam(scores, layer).attribute(queries, target=labels, relu_attributions=True)
    found = gradient_times_activation(scores, layer, queries, labels)
    torch.testing.assert_close(found.maps, product)
    torch.testing.assert_close(found.shares["map"], product.sum((1, 2, 3)))
    torch.testing.assert_close(grad_cam(scores, layer, queries, labels).maps, cam)


def test_grad_cam_of_tokens_is_captum_s_on_the_grid_of_patches(episode: tuple[Tensor, ...]) -> None:
    torch.manual_seed(0)
    net = NETS["vit"]().eval()
    # What follows the patches, with the class token put before them again behind a layer that is channels-first.
    grid = nn.Identity()

    class ByPatches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.cat([net.class_token.expand(len(x), -1, -1), net._process_input(x)], 1)
            tokens = tokens + net.encoder.pos_embedding
            patches = grid(tokens[:, 1:].transpose(1, 2).unflatten(2, (11, 11)))
            tokens = torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], 1)
            return net.encoder.ln(net.encoder.layers(tokens))[:, 0]

    _, queries, labels, _ = episode
    queries, labels = queries[::7], labels[::7]
    model = ByPatches()
    expected = LayerGradCam(scores_of(model, episode, foil=True), grid).attribute(
        queries, target=labels, relu_attributions=True
    )
    found = Case("grad-cam", grad_cam, "encoder.dropout", foil=True)(
        scores_of(net, episode, foil=True), queries, labels
    )
    torch.testing.assert_close(found.maps, expected, rtol=1e-3, atol=1e-6)


def test_the_maximum_is_looked_for_in_the_interpolated_map_and_ties_are_shared() -> None:
    masks = torch.zeros(4, 2, 3, dtype=torch.bool)
    masks[:, 0, :2] = True
    maps = torch.tensor(
        [
            [[1.0, 5.0, 2.0], [0.0, 0.0, 0.0]],
            [[1.0, 2.0, 0.0], [0.0, 0.0, 9.0]],
            [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]],
            [[0.0, -1.0, 0.0], [-2.0, 0.0, -3.0]],
        ]
    )[:, None]
    inside = planted.maximum_inside(maps, masks)
    torch.testing.assert_close(inside, torch.tensor([1.0, 0.0, 1 / 3, torch.nan]), equal_nan=True)


def test_shares_are_sums_over_the_chosen_queries_over_those_of_their_scores() -> None:
    nothing = torch.full((3,), torch.nan)
    found = planted.Found(nothing, nothing, torch.tensor([0.5, 0.25, 9.0]), {"map": torch.tensor([0.3, 0.0, 1.0])})
    chosen = torch.tensor([True, True, False])
    assert planted.share(found, "map", chosen) == "0.400"
    assert planted.share(found, "class token", chosen) == "–"


def test_a_cell_is_the_mean_over_episodes_and_names_what_it_leaves_out() -> None:
    nothing = torch.zeros(5)
    right = torch.tensor([True, True, True, True, False])
    findings = planted.Findings({}, right, torch.tensor([0, 0, 1, 1, 1]), nothing)
    values = torch.tensor([0.2, 0.4, 0.7, torch.nan, 0.9])
    # Episodes 0.3 and 0.7: their mean, and 1.96 x 0.2 / sqrt(2).
    assert planted.cell(values, findings, right) == "0.500 ± 0.277 (1 left out)"
    assert planted.cell(torch.full((5,), torch.nan), findings, right) == "–"


def test_only_what_the_network_gets_right_is_in_the_table(episode: tuple[Tensor, ...]) -> None:
    """Of two queries one is its class's support itself; the other is labeled with another class."""
    support, _, _, masks = episode
    torch.manual_seed(0)
    net = NETS["convnet"]().eval()
    case = Case("similarity-cam", exact, "features.3", foil=True)
    findings = planted.evaluate(net, [case], [(support, support[:2], torch.tensor([0, 4]), masks[:2])])
    assert findings.right.tolist() == [True, False]
    assert findings.episode.tolist() == [0, 0]
    torch.testing.assert_close(findings.area, masks[:2].float().mean((1, 2)))
    torch.testing.assert_close(findings.found[case].score[:1], 1 - (support_cosines(net, support)[0, 1:]).mean()[None])


def support_cosines(net: nn.Module, support: Tensor) -> Tensor:
    with torch.no_grad():
        units = nn.functional.normalize(net(support), dim=1)
    return units @ units.T
