"""Data to explain and to measure on."""

from captum_fam.demo.scenes import CLASSES, Episode, PlantedScenes, Scene, SceneClass, render_scene
from captum_fam.embedding.batches import Batch, BatchLoader
from captum_fam.experiments.data.boxed_images import BoxedImages, Problem, Record, Report, Sample
from captum_fam.experiments.data.cub import CUB200
from captum_fam.experiments.data.episodes import EpisodeItems, EpisodeSampler
from captum_fam.experiments.data.imagenet import ImageNetBoxes
from captum_fam.geometry import ResizeCrop, Squash, box_areas, clip_boxes

__all__ = [
    "CLASSES",
    "CUB200",
    "Batch",
    "BatchLoader",
    "BoxedImages",
    "Episode",
    "EpisodeItems",
    "EpisodeSampler",
    "ImageNetBoxes",
    "PlantedScenes",
    "Problem",
    "Record",
    "Report",
    "ResizeCrop",
    "Sample",
    "Scene",
    "SceneClass",
    "Squash",
    "box_areas",
    "clip_boxes",
    "render_scene",
]
