"""Rows of grad-cam: a cosine as a target class, as in its notebook on embeddings."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.peers.question import Explain, Question, Row, Subject, similarity, with_foil
from captum_fam import SimilarityToSupport

PACKAGE = "grad-cam"


def by(method: str) -> Explain:
    """The maps of a class of grad-cam.

    Args:
        method: name of the class.
    """

    def explain(subject: Subject, question: Question) -> Tensor:
        import pytorch_grad_cam

        targets = [partial(similarity, direction=direction) for direction in question.directions]
        with getattr(pytorch_grad_cam, method)(model=subject.model, target_layers=[subject.layer]) as cam:
            return torch.from_numpy(cam(input_tensor=question.images, targets=targets))[:, None]

    return explain


def finer(subject: Subject, question: Question) -> Tensor:
    """Finer-CAM, which contrasts a logit with other logits: here scores of classes by similarity."""
    from pytorch_grad_cam import FinerCAM
    from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

    scores = SimilarityToSupport(subject.model, question.support_set)
    classes = range(len(question.supports))
    # The other classes with equal weights: the score of the class minus their mean.
    targets = [FinerWeightedTarget(one, [other for other in classes if other != one], 1.0) for one in question.targets]
    with FinerCAM(model=scores, target_layers=[subject.layer]) as cam:
        return torch.from_numpy(cam(input_tensor=question.images, targets=targets))[:, None]


ROWS = (
    *with_foil(Row(PACKAGE, "GradCAM", by("GradCAM"))),
    *with_foil(Row(PACKAGE, "GradCAMPlusPlus", by("GradCAMPlusPlus"))),
    *with_foil(Row(PACKAGE, "LayerCAM", by("LayerCAM"))),
    Row(PACKAGE, "EigenCAM", by("EigenCAM"), supports="nothing", slow=True),
    Row(PACKAGE, "FinerCAM on SimilarityToSupport", finer, "others"),
    Row(PACKAGE, "ScoreCAM", by("ScoreCAM"), "others", slow=True),
    Row(PACKAGE, "AblationCAM", by("AblationCAM"), "others", slow=True),
)
