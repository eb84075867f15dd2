import math

import torch

from captum_fam.attr.matching import best_match, descriptors, soft_best_match


def test_descriptors_of_window_one_are_the_unit_activations_of_each_position():
    activation = torch.tensor([[[[3.0, 0.0]], [[4.0, 2.0]]]])  # one sample, two channels, 1 x 2 positions
    assert torch.allclose(descriptors(activation, window=1), torch.tensor([[[0.6, 0.8], [0.0, 1.0]]]))


def test_descriptors_average_a_window_whose_border_is_repeated():
    activation = torch.tensor([[[1.0, 4.0, 10.0]], [[1.0, 1.0, 1.0]]]).reshape(1, 2, 3)
    means = torch.tensor([(1 + 1 + 4) / 3, (1 + 4 + 10) / 3, (4 + 10 + 10) / 3])
    expected = torch.stack([means, torch.ones(3)], 1)
    assert torch.allclose(descriptors(activation, window=3)[0], expected / expected.norm(dim=1, keepdim=True))


def test_descriptors_of_images_agree_with_a_loop_over_windows():
    activation = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    found = descriptors(activation, window=3).reshape(2, 4, 5, 3)
    for y in range(4):
        for x in range(5):
            rows = [min(max(y + d, 0), 3) for d in (-1, 0, 1)]
            columns = [min(max(x + d, 0), 4) for d in (-1, 0, 1)]
            mean = torch.stack([activation[:, :, r, c] for r in rows for c in columns]).mean(0)
            assert torch.allclose(found[:, y, x], mean / mean.norm(dim=1, keepdim=True))


def test_soft_best_match_is_the_log_mean_exponential_of_the_cosines():
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    support = torch.tensor([[[1.0, 0.0], [0.6, 0.8]], [[0.0, -1.0], [0.0, 1.0]]])
    found = soft_best_match(query, support, sharpness=2.0)
    expected = [
        [(math.exp(2.0) + math.exp(1.2)) / 2, 1.0],
        [(math.exp(0.0) + math.exp(1.6)) / 2, (math.exp(-2.0) + math.exp(2.0)) / 2],
    ]
    assert torch.allclose(found[0], torch.tensor(expected).log() / 2)


def test_soft_best_match_does_not_depend_on_the_blocks_it_is_made_in(monkeypatch):
    query, support = (descriptors(torch.randn(n, 4, 3, 5)) for n in (5, 2))
    whole = soft_best_match(query, support)
    monkeypatch.setattr("captum_fam.attr.matching._BLOCK", 1)
    assert torch.allclose(soft_best_match(query, support), whole)


def test_a_sharp_match_nears_the_best_cosine():
    query, support = (descriptors(torch.randn(n, 4, 3, 5, dtype=torch.float64)) for n in (2, 3))
    cosine, index = best_match(query, support)
    assert torch.allclose(soft_best_match(query, support, sharpness=1e5), cosine, atol=1e-4)
    partner = support[torch.arange(3)[None, None], index]
    assert torch.allclose((query.unsqueeze(2) * partner).sum(-1), cosine)


def test_a_match_is_never_above_one() -> None:
    activation = torch.randn(20, 64, 3, 5, generator=torch.Generator().manual_seed(3))
    unit = descriptors(activation, window=1)
    assert (unit * unit).sum(2).max() > 1  # as rounding has it
    cosine, _ = best_match(unit, unit)
    assert cosine.max() == 1
    assert soft_best_match(unit[:, :1], unit[:, :1]).max() <= 1


def test_descriptors_do_not_depend_on_the_scale_of_the_activation() -> None:
    activation = torch.rand(2, 7, 3, 5)
    for scale in (1e-30, 1e-13, 1e20):
        torch.testing.assert_close(descriptors(scale * activation), descriptors(activation), rtol=1e-5, atol=1e-6)
