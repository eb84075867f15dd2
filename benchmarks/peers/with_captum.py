"""Rows of Captum: on the wrapper that its users write, and on SimilarityToSupport."""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import LayerGradCam, LayerGradientXActivation, LayerIntegratedGradients
from torch import Tensor

from benchmarks.peers.question import Explain, Question, Row, Subject, similarity, with_foil
from captum_fam import SimilarityToSupport
from captum_fam.functional import smooth_maps

PACKAGE = "captum"
# Steps of integrated gradients at once; all of them need several GiB for images of 448 pixels.
STEPS_AT_ONCE = 5


def by(method: Any, smooth: int = 1, **options: Any) -> Explain:
    """A layer method on the cosine as a forward function.

    Args:
        method: class of the method.
        smooth: window of the mean filter of captum-fam.
        **options: options of ``attribute``.
    """

    def explain(subject: Subject, question: Question) -> Tensor:
        def forward(images: Tensor, directions: Tensor) -> Tensor:
            return similarity(subject.model(images), directions)

        directions = (question.directions,)
        found = method(forward, subject.layer).attribute(question.images, additional_forward_args=directions, **options)
        return smooth_maps(found.detach().sum(1, keepdim=True), smooth)

    return explain


def on_scores(subject: Subject, question: Question) -> Tensor:
    """Grad-CAM of the scores of SimilarityToSupport."""
    foil = None if question.contrast == "none" else "others"
    scores = SimilarityToSupport(subject.model, question.support_set, foil=foil)
    target = torch.tensor(question.targets)
    return LayerGradCam(scores, subject.layer).attribute(question.images, target=target).detach()


ROWS = (
    *with_foil(Row(PACKAGE, "LayerGradCam", by(LayerGradCam))),
    *with_foil(Row(PACKAGE, "LayerGradCam, smoothed 5 x 5", by(LayerGradCam, smooth=5), smoothed=True)),
    *with_foil(Row(PACKAGE, "LayerGradientXActivation", by(LayerGradientXActivation))),
    *with_foil(
        Row(
            PACKAGE,
            "LayerIntegratedGradients, 50 steps",
            by(LayerIntegratedGradients, internal_batch_size=STEPS_AT_ONCE),
            slow=True,
        )
    ),
    *with_foil(Row(PACKAGE, "LayerGradCam on SimilarityToSupport", on_scores)),
)
