"""Training of the paper's networks: by few-shot episodes, by metric learning, and by contrast (NPID, MoCo)."""

from captum_fam.experiments.training.contrastive import (
    ContrastiveImages,
    ContrastiveRecipe,
    InstanceBank,
    KeyQueue,
    MoCoRecipe,
    NPIDRecipe,
    contrastive_images,
    train_contrastive,
)
from captum_fam.experiments.training.few_shot import initialize, train_few_shot
from captum_fam.experiments.training.few_shot_accuracy import embed_bytes, few_shot_accuracy
from captum_fam.experiments.training.few_shot_learner import FewShotLearner, FewShotLosses
from captum_fam.experiments.training.few_shot_recipe import FewShotRecipe
from captum_fam.experiments.training.images import Augmentation, LabeledImages, read_images
from captum_fam.experiments.training.metric import new_head, train_metric, train_metric_head
from captum_fam.experiments.training.metric_recipe import MetricRecipe
from captum_fam.experiments.training.retrieval_features import embed_dataset, pooled_features, recalls_at
from captum_fam.experiments.training.training_run import Trained, TrainingRun

__all__ = [
    "Augmentation",
    "ContrastiveImages",
    "ContrastiveRecipe",
    "FewShotLearner",
    "FewShotLosses",
    "FewShotRecipe",
    "InstanceBank",
    "KeyQueue",
    "LabeledImages",
    "MetricRecipe",
    "MoCoRecipe",
    "NPIDRecipe",
    "Trained",
    "TrainingRun",
    "contrastive_images",
    "embed_bytes",
    "embed_dataset",
    "few_shot_accuracy",
    "initialize",
    "new_head",
    "pooled_features",
    "read_images",
    "recalls_at",
    "train_contrastive",
    "train_few_shot",
    "train_metric",
    "train_metric_head",
]
