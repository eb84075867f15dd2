"""The page of photographs whose truth is exact: mutual matches, and the whole of it on the demo's network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("skimage", reason='needs pip install "captum-fam[demo]"')

from benchmarks import photographs
from benchmarks.networks import Network
from captum_fam import create_model
from captum_fam.demo.stereo_pair import StereoPair, decompose
from captum_fam.demo.texture_mosaics import cut_texture_mosaics


def test_mutual_matches_are_counted_where_the_truth_is_known() -> None:
    # An image beside itself: every cell that matches at all is its own partner.
    torch.manual_seed(0)
    image = torch.rand(3, 60, 90)
    decomposition = decompose(create_model("demo"), StereoPair(image, image, torch.zeros(60, 90)), "features")
    rows, columns = decomposition.query_grid
    cells = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1).float()
    matches = [(match.query, match.support) for match in decomposition.top_matches(rows * columns, mutual=True)]
    right = sum(max(abs(a - b) for a, b in zip(*pair, strict=True)) <= 1 for pair in matches)
    assert photographs.mutual_matches(decomposition, cells) == (right, len(matches))
    cells[matches[0][0]] = torch.nan
    assert photographs.mutual_matches(decomposition, cells)[1] == len(matches) - 1


def test_the_page_is_written_and_then_written_again_from_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photographs, "NETWORKS", {"demo": Network("demo", "Demo", "demo", "", "")})
    monkeypatch.setattr(photographs, "LAYERS", {"demo": ("features",)})
    textures = [level + 0.2 * torch.rand(3, 40, 80) for level in (0.0, 0.4, 0.8)]
    monkeypatch.setattr(photographs, "read_textures", lambda: textures)
    monkeypatch.setattr(
        photographs,
        "cut_texture_mosaics",
        lambda textures, count: cut_texture_mosaics(textures, count, shot=2, side=40),
    )
    image = torch.rand(3, 60, 96)
    monkeypatch.setattr(
        photographs, "read_stereo_pair", lambda: StereoPair(image, image.roll(-6, 2), torch.full((60, 96), 6.0))
    )
    words = ["--quick", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "page.md")]
    photographs.main(words)
    text = (tmp_path / "page.md").read_text()
    assert "Written by `python -m benchmarks.photographs --quick`" in text
    assert "6 mosaics of 40 x 40 pixels" in text
    # A flat map has the energy of the area, and no place with the most.
    assert "| uniform | 0.250 ± 0.000 | 0.250 ± 0.000 | 0.500 ± 0.000 |" in text
    assert text.count("| Demo `features` |") == 2
    for name in ("explain", "best_matches", "decompose"):
        monkeypatch.setattr(photographs, name, None)
    (tmp_path / "page.md").unlink()
    photographs.main(words)
    assert (tmp_path / "page.md").read_text() == text
