from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from captum_fam.metrics import map_correlation


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
@pytest.mark.parametrize("levels", [4, 10**6])
def test_correlation_agrees_with_scipy(kind: str, levels: int) -> None:
    maps, others = torch.randint(0, levels, (2, 8, 1, 5, 7)).double()
    reference = stats.pearsonr if kind == "pearson" else stats.spearmanr
    expected = [reference(a.flatten(), b.flatten())[0] for a, b in zip(maps.numpy(), others.numpy(), strict=True)]
    np.testing.assert_allclose(map_correlation(maps, others, kind).numpy(), expected, rtol=1e-12)  # type: ignore[arg-type]


def test_correlation_of_a_map_with_itself_and_its_opposite() -> None:
    maps = torch.randn(3, 1, 5, 4)
    for kind in ("pearson", "spearman"):
        torch.testing.assert_close(map_correlation(maps, 2 * maps + 5, kind), torch.ones(3))  # type: ignore[arg-type]
        torch.testing.assert_close(map_correlation(maps, -maps, kind), -torch.ones(3))  # type: ignore[arg-type]


def test_correlation_of_tiny_maps_does_not_underflow() -> None:
    maps, others = torch.rand(2, 3, 1, 5, 4)
    torch.testing.assert_close(map_correlation(maps * 1e-30, others), map_correlation(maps, others))


def test_correlation_with_a_flat_or_nan_map_is_undefined() -> None:
    maps, others = torch.rand(2, 3, 1, 2, 2)
    maps[0] = 0.3
    others[1, 0, 0, 0] = torch.nan
    for kind in ("pearson", "spearman"):
        assert map_correlation(maps, others, kind).isnan().tolist() == [True, True, False]  # type: ignore[arg-type]


def test_maps_to_correlate_must_be_alike() -> None:
    with pytest.raises(ValueError, match=r"maps .*\(2, 1, 3, 3\) and others \(1, 1, 3, 3\)"):
        map_correlation(torch.rand(2, 1, 3, 3), torch.rand(1, 1, 3, 3))
    with pytest.raises(ValueError, match=r"kind .*'kendall'"):
        map_correlation(torch.rand(2, 3), torch.rand(2, 3), "kendall")  # type: ignore[arg-type]
