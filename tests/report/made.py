"""A small report with known numbers."""

from __future__ import annotations

import numpy as np
from PIL import Image

from captum_fam.report import CellMatches, ReportMap, ReportMethod, ReportPage, ReportPair, ReportRow, ReportSide
from captum_fam.report.page import Array

QUERY, SUPPORT = (3, 4), (5, 2)
"""The cells of the two images: neither grid is square, and no two sides are alike."""

SCORE = 0.731
EXACT = "explains 100 % of the score"
BLIND = "no account of the score"


def matrix(seed: int) -> Array:
    """Shares of pairs of cells, ``(12, 10)``, that sum to the score; those of cell 6 of the query are weak."""
    shares = np.random.default_rng(seed).normal(0.3, 1, (12, 10)) ** 3
    shares[6] /= 500
    return shares / shares.sum() * SCORE


def cosines(seed: int) -> Array:
    return np.random.default_rng(seed + 100).uniform(-1, 1, (12, 10))


def photograph(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(60, 200, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def maps(values: Array, seed: int) -> list[ReportMap]:
    """The maps of an exact method, with a contrast, and of a method without one."""
    random = np.random.default_rng(seed).uniform(0, 3, values.shape)
    return [ReportMap(values - values.mean(), EXACT, values, EXACT), ReportMap(random, BLIND, random)]


def pair(seed: int, name: str | None = None, label: str = "jay") -> ReportPair:
    shares = matrix(seed)
    return ReportPair(
        ReportSide(name or f"support-{seed}", photograph(seed), maps(shares.sum(0).reshape(SUPPORT), seed)),
        label,
        score="0.731",
        contrasted="0.120",
        query_maps=maps(shares.sum(1).reshape(QUERY), seed + 1),
        matches=CellMatches(SCORE, QUERY, SUPPORT, shares, cosines(seed)),
    )


def row(seed: int, n_pairs: int = 2, truth: str | None = "jay", name: str | None = None) -> ReportRow:
    pairs = [pair(10 * seed + place) for place in range(n_pairs)]
    whole = sum(matrix(10 * seed + place).sum(1).reshape(QUERY) for place in range(n_pairs)) / max(1, n_pairs)
    whole = whole if n_pairs else np.eye(3)
    return ReportRow(
        ReportSide(name or f"query-{seed}", photograph(seed + 50, 50, 60), maps(np.asarray(whole), seed)),
        pairs,
        score="0.731",
        contrasted="0.120",
        predicted="jay",
        target="jay",
        truth=truth,
    )


def page(title: str = "Birds") -> ReportPage:
    methods = [
        ReportMethod("similarity-cam", "share of the cosine", is_account=True),
        ReportMethod("fam", "activation"),
    ]
    return ReportPage(title, methods, "less the gallery", {"layer": "layer4"}, ["One note."], {"seed": 0})
