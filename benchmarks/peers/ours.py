"""Rows of captum-fam, and of the maps that know nothing of the supports."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.question import Explain, Question, Row, Subject, with_foil
from captum_fam import (
    LayerCorrespondence,
    LayerFAM,
    LayerPairs,
    LayerSimilarityCAM,
    SimilarityToSupport,
    SupportSet,
    explain_pairs,
)
from captum_fam.attr import LayerCenterPrior, LayerMeanActivation, LayerUniform
from captum_fam.functional import smooth_maps

PACKAGE = "captum-fam"


def _scores(subject: Subject, question: Question, support: SupportSet) -> SimilarityToSupport:
    if question.contrast == "gallery":
        return SimilarityToSupport(subject.model, support, foil="gallery", gallery=question.gallery)
    return SimilarityToSupport(subject.model, support, foil=None if question.contrast == "none" else "others")


def by(method: Any, smooth: int = 1, **options: Any) -> Explain:
    """The maps of a layer method for the embedded supports.

    Args:
        method: class of the method.
        smooth: window of the mean filter.
        **options: options of the constructor.
    """

    def explain(subject: Subject, question: Question) -> Tensor:
        attribution = method(_scores(subject, question, question.support_set), subject.layer, **options)
        if len(question.targets) == 1:
            return smooth_maps(attribution.attribute(question.image, target=question.targets[0]), smooth)
        # One forward pass serves all targets.
        run = LayerPairs(subject.model, subject.layer).run(question.image)
        maps = [run.maps(attribution, target=target).attributions for target in question.targets]
        return smooth_maps(torch.cat(maps), smooth)

    return explain


def both_sides(subject: Subject, question: Question) -> Tensor:
    """The left sides of the pairs of the image and each support, averaged over the supports of a class."""
    maps = []
    for target in question.targets:
        supports = question.support_images[target]
        pairs = explain_pairs(
            subject.model,
            question.image.expand(len(supports), -1, -1, -1),
            supports,
            layer=subject.layer,
            method="similarity-cam",
            foil=None,
        )
        maps.append(pairs.attributions.mean(0))
    return torch.stack(maps)


def correspondence(subject: Subject, question: Question) -> Tensor:
    """Positions against the positions of the support images."""
    n_classes, shot = question.support_images.shape[:2]
    support = SupportSet(question.support_images.flatten(0, 1), torch.arange(n_classes).repeat_interleave(shot))
    made = LayerCorrespondence(_scores(subject, question, support), subject.layer)
    return made.attribute(question.images, target=torch.tensor(question.targets))


ROWS = (
    *with_foil(Row(PACKAGE, "LayerFAM", by(LayerFAM))),
    *with_foil(Row(PACKAGE, "LayerSimilarityCAM", by(LayerSimilarityCAM))),
    Row(PACKAGE, "LayerSimilarityCAM", by(LayerSimilarityCAM), "gallery"),
    *with_foil(Row(PACKAGE, "LayerSimilarityCAM, smoothed 5 x 5", by(LayerSimilarityCAM, smooth=5), smoothed=True)),
    Row(PACKAGE, "explain_pairs, both sides", both_sides, supports="images"),
    Row(PACKAGE, "LayerCorrespondence", correspondence, "others", supports="images"),
    Row("no support", "mean activation", by(LayerMeanActivation), supports="nothing"),
    Row("no support", "center", by(LayerCenterPrior), supports="nothing"),
    Row("no support", "uniform", by(LayerUniform), supports="nothing"),
)
