"""The offline demo: planted scenes with known object masks, and a small network trained on such scenes."""

from captum_fam.demo.network import load_demo_network
from captum_fam.demo.rendering import Scene, render_scene
from captum_fam.demo.scene_classes import CLASSES, SceneClass
from captum_fam.demo.scene_episodes import Episode
from captum_fam.demo.scenes import PlantedScenes

__all__ = [
    "CLASSES",
    "Episode",
    "PlantedScenes",
    "Scene",
    "SceneClass",
    "load_demo_network",
    "render_scene",
]
