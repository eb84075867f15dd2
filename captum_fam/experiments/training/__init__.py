"""Training the paper's networks: few-shot episodes and metric learning."""

from captum_fam.experiments.training.few_shot import (
    FewShotLearner,
    FewShotLosses,
    FewShotRecipe,
    embed_bytes,
    few_shot_accuracy,
    initialize,
    train_few_shot,
)
from captum_fam.experiments.training.images import Augmentation, LabeledImages, read_images
from captum_fam.experiments.training.metric import (
    MetricRecipe,
    embed_dataset,
    new_head,
    pooled_features,
    recalls_at,
    train_metric,
    train_metric_head,
)
from captum_fam.experiments.training.training_run import Trained, TrainingRun

__all__ = [
    "Augmentation",
    "FewShotLearner",
    "FewShotLosses",
    "FewShotRecipe",
    "LabeledImages",
    "MetricRecipe",
    "Trained",
    "TrainingRun",
    "embed_bytes",
    "embed_dataset",
    "few_shot_accuracy",
    "initialize",
    "new_head",
    "pooled_features",
    "read_images",
    "recalls_at",
    "train_few_shot",
    "train_metric",
    "train_metric_head",
]
