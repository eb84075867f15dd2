"""Contrastive training of the paper's networks, and of any other: NPID with a memory bank, and MoCo with a queue."""

from captum_fam.experiments.training.contrastive.data import ContrastiveImages, contrastive_images
from captum_fam.experiments.training.contrastive.instance_bank import InstanceBank
from captum_fam.experiments.training.contrastive.key_queue import KeyQueue
from captum_fam.experiments.training.contrastive.recipe import ContrastiveRecipe, MoCoRecipe, NPIDRecipe
from captum_fam.experiments.training.contrastive.training import train_contrastive

__all__ = [
    "ContrastiveImages",
    "ContrastiveRecipe",
    "InstanceBank",
    "KeyQueue",
    "MoCoRecipe",
    "NPIDRecipe",
    "contrastive_images",
    "train_contrastive",
]
