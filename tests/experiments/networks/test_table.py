from __future__ import annotations

from pathlib import Path

from captum_fam.experiments.networks.table import network_table
from captum_fam.models import list_models


def test_the_table_in_the_documentation_is_that_of_the_registry():
    page = Path(__file__).parents[3] / "docs" / "networks.md"
    assert page.read_text(encoding="utf-8") == network_table()


def test_a_row_says_what_goes_in_and_what_comes_out():
    rows = [line for line in network_table().splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} <= set(list_models())
    assert len(rows) == 13
    assert "| `resnet12` | 84 x 84 | 640 x 5 x 5 | GAP: 640 | 12,424,320 |" in rows
    assert "| `moco_v2_resnet50` | 224 x 224 | 2048 x 7 x 7 | GAP, MLP: 128 | 27,966,656 |" in rows
