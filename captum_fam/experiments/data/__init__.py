"""Data of the experiments: photographs with boxes, and few-shot episodes of them."""

from captum_fam.experiments.data.boxed_images import BoxedImage, BoxedImages, DatasetReport, ImageRecord, Problem
from captum_fam.experiments.data.cub import CUB200
from captum_fam.experiments.data.episodes import EpisodeItems, EpisodeSampler
from captum_fam.experiments.data.imagenet import ImageNetBoxes
from captum_fam.experiments.data.labels import labels_of

__all__ = [
    "CUB200",
    "BoxedImage",
    "BoxedImages",
    "DatasetReport",
    "EpisodeItems",
    "EpisodeSampler",
    "ImageNetBoxes",
    "ImageRecord",
    "Problem",
    "labels_of",
]
