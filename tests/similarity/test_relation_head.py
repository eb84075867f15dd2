"""The relation head against a loop, and its contributions."""

from __future__ import annotations

import torch

from captum_fam.similarity import Learned, RelationHead, similarity_name


def test_the_head_is_a_two_layer_network_on_query_support_and_product() -> None:
    torch.manual_seed(3)
    head = RelationHead(4, width=3, scale=2.0).double().requires_grad_(False)
    query, support = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    expected = []
    for z, t in zip((query / 2).tolist(), (support / 2).tolist(), strict=True):
        inputs = [*z, *t, *(a * b for a, b in zip(z, t, strict=True))]
        similarity = float(head.out.bias)
        for row, bias, weight in zip(head.hidden.weight, head.hidden.bias, head.out.weight[0], strict=True):
            before = sum(float(w) * x for w, x in zip(row, inputs, strict=True)) + float(bias)
            similarity += float(weight) * max(0.0, before)
        expected.append(similarity)
    torch.testing.assert_close(head(query, support), torch.tensor(expected, dtype=torch.float64))


def test_its_contributions_sum_to_the_gain_over_the_zero_vector_for_supports_of_each_query() -> None:
    torch.manual_seed(4)
    similarity = Learned(RelationHead(6, width=8).double(), n_steps=400)
    query, support = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 2, 6, dtype=torch.float64)
    weights = torch.tensor([[1.0, -0.5], [0.3, 0.0], [2.0, 1.0]], dtype=torch.float64)
    gain = similarity(query, support) - similarity(torch.zeros_like(query), support)
    found = similarity.contributions(query, support, weights)
    # The path crosses kinks of the ReLU, where a quadrature of 400 points is off by a hundredth of a slope.
    torch.testing.assert_close(found.sum(1), (weights * gain).sum(1), rtol=2e-2, atol=2e-3)


def test_two_heads_of_other_weights_have_other_names() -> None:
    first, second = (similarity_name(Learned(RelationHead(4))) for _ in range(2))
    assert first != second
