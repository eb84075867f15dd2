import pytest
import torch
from torch import nn

from captum_fam import SimilarityToSupport, SupportSet
from captum_fam.attr import LayerCorrespondence
from captum_fam.attr.matching import descriptors, soft_best_match
from captum_fam.support import Gallery

LABELS = (0, 0, 1, 1, 2)


@pytest.fixture
def net(make_net):
    return make_net()


@pytest.fixture
def support():
    return torch.rand(5, 3, 9, 8, dtype=torch.float64)


def by_class(net, x, support, window=3, sharpness=20.0):
    """(B, P, 3) maps of the three classes, from the functions that have tests of their own."""
    with torch.no_grad():
        query, partners = (descriptors(net.features(images), window) for images in (x, support))
    matches = soft_best_match(query, partners, sharpness)
    return torch.stack([matches[..., [k for k in range(5) if LABELS[k] == c]].mean(-1) for c in range(3)], -1)


def test_the_map_is_the_mean_match_with_the_supports_of_the_target(net, support):
    x = torch.rand(4, 3, 7, 5, dtype=torch.float64)
    found = LayerCorrespondence(net, net.features).attribute(x, SupportSet(support, LABELS), target=[0, 1, 2, 1])
    expected = by_class(net, x, support)
    assert found.shape == (4, 1, 7, 5)
    for i, c in enumerate((0, 1, 2, 1)):
        assert torch.allclose(found[i].flatten(), expected[i, :, c])


@pytest.mark.parametrize("foil", ["others", "runner-up"])
def test_a_foil_is_subtracted_at_every_position(net, support, foil):
    x = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    scores = SimilarityToSupport(net, SupportSet(support, LABELS), foil=foil)
    found = LayerCorrespondence(scores, "features").attribute(x, target=1)
    classes = by_class(net, x, support)
    others = classes[..., [0, 2]]
    expected = classes[..., 1] - (others.mean(-1) if foil == "others" else others.amax(-1))
    assert torch.allclose(found.flatten(1), expected)


def test_a_foil_of_its_own_images_is_subtracted_by_the_mean_of_its_classes(net, support):
    x = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    scores = SimilarityToSupport(net, support[:2], foil=SupportSet(support[2:], [0, 0, 1]))
    classes = by_class(net, x, support)
    found = LayerCorrespondence(scores, net.features).attribute(x)
    assert torch.allclose(found.flatten(1), classes[..., 0] - classes[..., 1:].mean(-1))


@pytest.mark.parametrize("is_own", [True, False])
def test_a_gallery_is_subtracted_by_the_mean_of_its_images(net, support, is_own):
    x = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    # Two images of one class and one of another: each image counts the same.
    given = {} if is_own else {"gallery": SupportSet(support[1:4], [0, 0, 1])}
    scores = SimilarityToSupport(net, SupportSet(support, LABELS), foil="gallery", **given)
    found = LayerCorrespondence(scores, net.features).attribute(x, target=1)
    with torch.no_grad():
        query, partners = (descriptors(net.features(images), 3) for images in (x, support))
    each = soft_best_match(query, partners, 20.0)
    expected = each[..., 2:4].mean(-1) - (each if is_own else each[..., 1:4]).mean(-1)
    assert torch.allclose(found.flatten(1), expected)


def test_a_gallery_without_positions_is_refused(net, support):
    x = torch.rand(2, 3, 7, 5, dtype=torch.float64)
    for gallery in (net(support).detach(), Gallery(support).without([[0], [1]])):
        scores = SimilarityToSupport(net, SupportSet(support, LABELS), foil="gallery", gallery=gallery)
        with pytest.raises(ValueError, match=r"gallery must be images|gallery holds embeddings"):
            LayerCorrespondence(scores, net.features).attribute(x, target=1)


def test_a_pasted_object_is_found_where_it_was_pasted(net):
    generator = torch.Generator().manual_seed(3)
    patch = torch.rand(3, 6, 6, generator=generator, dtype=torch.float64)
    x = torch.rand(1, 3, 12, 20, generator=generator, dtype=torch.float64) * 0.2
    x[0, :, 4:10, 12:18] = patch
    support = torch.zeros(2, 3, 10, 10, dtype=torch.float64)
    support[0, :, 2:8, 1:7] = patch
    support[1] = 0.2 * torch.rand(3, 10, 10, generator=generator, dtype=torch.float64)
    scores = SimilarityToSupport(net, SupportSet(support, [0, 1]), foil="others")
    map_ = LayerCorrespondence(scores, net.features, sharpness=100.0).attribute(x, target=0)[0, 0]
    inside = torch.zeros(12, 20, dtype=torch.bool)
    inside[5:9, 13:17] = True
    assert map_[inside].mean() > map_[~inside].mean() + map_[~inside].std()


def test_points_match_themselves_in_a_shifted_copy(make_net):
    net = make_net(channels=32)  # enough that no two places look alike
    x = torch.rand(1, 3, 10, 12, dtype=torch.float64)
    shifted = x.roll((2, 3), (2, 3))
    matches = LayerCorrespondence(net, net.features, window=1).match(x, shifted)
    assert matches.cosine.shape == (1, 10, 12, 1)
    # Away from the seam, where both see the same neighborhood.
    for y in range(1, 7):
        for column in range(1, 8):
            assert matches.position[0, y, column, 0].tolist() == [y + 2, column + 3]


def test_embeddings_as_support_are_refused(net):
    with pytest.raises(ValueError, match="support holds embeddings"):
        LayerCorrespondence(net, net.features).attribute(torch.rand(1, 3, 7, 5).double(), torch.rand(2, 6).double())


@pytest.mark.parametrize(("option", "value"), [("window", 2), ("window", 0), ("sharpness", 0.0)])
def test_a_window_without_a_center_or_a_sharpness_of_zero_is_refused(net, option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        LayerCorrespondence(net, net.features, **{option: value})


def test_a_list_of_layers_is_refused(net):
    with pytest.raises(TypeError, match="one module"):
        LayerCorrespondence(net, [net.features, net.features[0]])


def test_the_forward_function_may_be_any_embedding_of_any_rank(make_net):
    net = make_net(rank=1)
    found = LayerCorrespondence(lambda x: nn.functional.normalize(net(x)), net.features).attribute(
        torch.rand(2, 3, 9).double(), support=torch.rand(3, 3, 9).double()
    )
    assert found.shape == (2, 1, 9)
