"""The subcommand ``captum-fam train``: few-shot, metric and contrastive training of networks, and heads."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import MISSING
from pathlib import Path

from torch import Tensor, nn

from captum_fam._files import lock_folder, sha256_of_weights, try_file, try_folder
from captum_fam.cli.loading import RunOptions, choose_device
from captum_fam.cli.options import add_fields, default_out, number_reader, read_fields
from captum_fam.cli.ranges import above
from captum_fam.embedding.ranks import joined
from captum_fam.experiments import save_head, split_model, train_head
from captum_fam.experiments.cli.loading import DataOptions, SplitModelOptions, load_network, load_split_model
from captum_fam.experiments.cli.train_contrastive import add_contrastive
from captum_fam.experiments.cli.train_options import (
    FewShotTestOptions,
    MetricHeadOptions,
    NetworkOptions,
    ProxyHeadOptions,
    ResourceOptions,
)
from captum_fam.experiments.data.labels import labels_of
from captum_fam.experiments.features import extract
from captum_fam.experiments.linear_head import check_two_classes
from captum_fam.experiments.training import (
    FewShotRecipe,
    MetricRecipe,
    Trained,
    embed_bytes,
    embed_dataset,
    few_shot_accuracy,
    initialize,
    pooled_features,
    recalls_at,
    train_few_shot,
    train_metric,
    train_metric_head,
)
from captum_fam.experiments.training.few_shot_recipe import check_episodes
from captum_fam.experiments.training.sources import (
    few_shot_images,
    few_shot_labels,
    holdout_mask,
    retrieval_data,
    split_holdout,
)
from captum_fam.pooling import GAP, GMP
from captum_fam.similarity import get_similarity

_POOLINGS = {"gap": GAP, "gmp": GMP}
_HEAD_LEARNING_RATE = 1e-3


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each recipe, whose options are the fields of the recipe.

    Args:
        parser: parser of the subcommand.
    """
    parser.description = "Train the networks of the paper's experiments, or linear heads."
    parser.epilog = (
        "A run that was killed continues when the same command is given again. For several GPUs: "
        "torchrun --nproc-per-node 4 -m captum_fam train few-shot ..."
    )
    recipes = parser.add_subparsers(title="recipes", metavar="RECIPE", required=True)
    few_shot = recipes.add_parser(
        "few-shot",
        help="episodes, global and nearest-neighbor loss",
        description="Train a network whose embedding is the average of a feature map, by the recipe of Cross Attention "
        "Network with learned weights of the two losses. The epoch that is best on the validation classes is kept.",
        epilog="example: captum-fam train few-shot --model conv4net --data CUB_200_2011 --out runs/conv4net",
    )
    _add_training(few_shot)
    add_fields(few_shot, FewShotRecipe)
    add_fields(few_shot, FewShotTestOptions)
    few_shot.set_defaults(run=run_few_shot)
    metric = recipes.add_parser(
        "metric",
        help="Multi-Similarity or Margin loss",
        description="Train a network for retrieval, or a linear head on a frozen network. A model without a head gets "
        "a head, which has its own file, best-head.safetensors.",
        epilog="examples: captum-fam train metric --model multi_similarity_bn_inception --data CUB_200_2011 --out "
        "runs/ms --weights bn_inception-52deb4733.pth | captum-fam train metric --model squeezenet1_0 "
        "--freeze-backbone --weights squeezenet1_0.pth --loss margin --data CUB_200_2011 --out runs/margin",
    )
    _add_training(metric)
    add_fields(metric, MetricRecipe, skip=("learning_rate",))
    metric.add_argument(
        "--learning-rate",
        type=number_reader(float, above(0)),
        metavar="X",
        help=f"initial learning rate, divided by ten at each milestone; default: {MetricRecipe().learning_rate}, or "
        f"{_HEAD_LEARNING_RATE} with --freeze-backbone",
    )
    add_fields(metric, MetricHeadOptions)
    metric.set_defaults(run=run_metric)
    add_contrastive(recipes.add_parser("contrastive", help="NPID or MoCo, without labels"))
    head = recipes.add_parser(
        "head",
        help="a linear head on frozen features, in seconds",
        description="Train a linear head, for --head, so that the cosine separates the classes of a split.",
    )
    add_fields(head, SplitModelOptions, skip=("layer", "head"), defaults={"model": MISSING})
    add_fields(head, DataOptions, defaults={"split": "base"})
    add_fields(head, ProxyHeadOptions)
    add_fields(head, ResourceOptions, skip=("precision", "cache", "tensorboard"))
    add_fields(head, RunOptions)
    head.add_argument(
        "--out",
        type=Path,
        default=default_out(head, ".pt"),
        metavar="FILE",
        help="file of the head; default: %(default)s",
    )
    head.set_defaults(run=run_head)


def _add_training(parser: argparse.ArgumentParser) -> None:
    add_fields(parser, NetworkOptions)
    parser.add_argument(
        "--data",
        required=True,
        metavar="FOLDER",
        help="folder of CUB-200-2011 or a part of it; or scenes[:NUMBER] for planted scenes, 8000 without a number",
    )
    add_fields(parser, ResourceOptions)
    add_fields(parser, RunOptions, skip=("batch_size",))
    parser.add_argument(
        "--out",
        type=Path,
        default=default_out(parser),
        metavar="DIR",
        help="folder of checkpoints and log.csv; default: %(default)s",
    )


def run_few_shot(options: argparse.Namespace) -> int:
    """Train a few-shot network, and measure its accuracy on the validation and the novel classes.

    Args:
        options: the parsed options.

    Returns:
        The exit code 0.

    Raises:
        ValueError: for options that do not fit together, see :func:`train_few_shot`.
    """
    recipe = read_fields(FewShotRecipe, options)
    progress = not options.quiet
    with joined(options.device) as ranks, lock_folder(options.out, ranks.is_first):
        if options.cache and ranks.is_first:
            try_folder(options.cache)
        net = load_network(options.model, options.weights, size=options.size, seed=recipe.seed)
        if options.weights is None:
            initialize(net.model, recipe.seed)
        labels = few_shot_labels(options.data, net)
        recipe.check_labels(labels["base"], labels["val"])
        check_episodes("novel", labels["novel"], recipe.way, recipe.shot, episodes=options.test_episodes)
        images = few_shot_images(
            options.data,
            net,
            options.cache or options.out,
            num_workers=options.num_workers,
            ranks=ranks,
            progress=progress,
        )
        trained = train_few_shot(
            net,
            images["base"],
            images["val"],
            options.out,
            recipe,
            precision=options.precision,
            tensorboard=options.tensorboard,
            ranks=ranks,
            progress=progress,
        )
        if not ranks.is_first:
            return 0
        print(f"best epoch: {trained.best['epoch']} of 0..{recipe.epochs - 1}")
        for split in ("val", "novel"):
            embeddings = embed_bytes(net, images[split].images, ranks.device)
            accuracy, interval = few_shot_accuracy(
                embeddings, images[split].labels, way=recipe.way, shot=recipe.shot, episodes=options.test_episodes
            )
            print(f"{split} {recipe.way}-way {recipe.shot}-shot: {accuracy:.2%} ± {interval:.2%}")
    return 0


def run_metric(options: argparse.Namespace) -> int:
    """Train a network, or with ``--freeze-backbone`` a head, by metric learning, and measure its recall.

    Args:
        options: the parsed options.

    Returns:
        The exit code 0.

    Raises:
        ValueError: for options that do not fit together, see :func:`train_metric`.
    """
    default_rate = _HEAD_LEARNING_RATE if options.freeze_backbone else MetricRecipe().learning_rate
    recipe = read_fields(MetricRecipe, options, learning_rate=options.learning_rate or default_rate)
    recipe.make_loss()  # refuses to begin without the library of the losses
    pooling = None if options.pooling is None else _POOLINGS[options.pooling]()
    if options.freeze_backbone:
        with lock_folder(options.out):
            return _train_frozen(options, pooling, recipe)
    progress = not options.quiet
    with joined(options.device) as ranks, lock_folder(options.out, ranks.is_first):
        net = load_network(options.model, options.weights, size=options.size, seed=recipe.seed)
        train, _ = split_holdout(retrieval_data(options.data, None, net.size)[0], options.hold_out)
        val, test = retrieval_data(options.data, net.evaluation_geometry, net.size)
        trained = train_metric(
            net,
            train,
            split_holdout(val, options.hold_out)[1],
            options.out,
            recipe,
            embedding_size=options.embedding_size,
            pooling=pooling,
            num_workers=options.num_workers,
            ranks=ranks,
            precision=options.precision,
            progress=progress,
            tensorboard=options.tensorboard,
        )
        if ranks.is_first:
            _report(trained, *embed_dataset(trained.model, net, test, ranks.device, options.num_workers, progress))
    return 0


def _train_frozen(options: argparse.Namespace, pooling: nn.Module | None, recipe: MetricRecipe) -> int:
    """Train a head on the features of a frozen network; the features are kept in files."""
    if options.cache:
        try_folder(options.cache)
    net = load_network(options.model, options.weights, size=options.size, seed=recipe.seed)
    stem = f"features-{sha256_of_weights(split_model(net))[:12]}-{options.pooling or 'own'}-{net.size}"
    train, test = retrieval_data(options.data, net.geometry, net.size)
    all_labels = labels_of(train)
    held_out = holdout_mask(all_labels, options.hold_out)
    recipe.check_labels(all_labels[~held_out], all_labels[held_out] if options.hold_out else None)
    features = {}
    for name, data in (("train", train), ("test", test)):
        features[name] = pooled_features(
            net,
            data,
            pooling,
            (options.cache or options.out) / f"{stem}-{name}.pt",
            device=choose_device(options.device),
            num_workers=options.num_workers,
            progress=not options.quiet,
        )
    rows, labels = features["train"]
    is_training = ~holdout_mask(labels, options.hold_out)
    trained = train_metric_head(
        rows[is_training],
        labels[is_training],
        (rows[~is_training], labels[~is_training]) if options.hold_out else None,
        options.out,
        recipe,
        embedding_size=options.embedding_size,
        progress=not options.quiet,
        tensorboard=options.tensorboard,
    )
    _report(trained, trained.model(features["test"][0]), features["test"][1])
    return 0


def run_head(options: argparse.Namespace) -> int:
    """Train a linear head on all images of a split.

    Args:
        options: the parsed options.

    Returns:
        The exit code 0.

    Raises:
        ValueError: for options that do not fit together, or images of a single class.
    """
    images = read_fields(DataOptions, options)
    if options.similarity is not None:
        get_similarity(options.similarity)
    try_file(options.out)
    with joined(options.device) as ranks, tempfile.TemporaryDirectory() as folder:
        model = load_split_model(
            read_fields(SplitModelOptions, options),
            missing="warn" if ranks.is_first else "ignore",
            head=nn.Identity(),  # the new head takes the place of the head of the model
        )
        dataset = images.load(model)
        check_two_classes(labels_of(dataset))
        features = extract(
            model.fast_copy(ranks.device),
            dataset,
            folder,
            (),
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            ranks=ranks,
            progress=not options.quiet,
        )
        if ranks.is_first:
            head = train_head(
                features.embeddings, features.labels, options.width, steps=options.steps, seed=options.seed
            )
            save_head(head, options.out)
            print(f"{head.in_features} -> {head.out_features}, on {len(features)} images: {options.out}")
    return 0


def _report(trained: Trained, embeddings: Tensor, labels: Tensor) -> None:
    """Print the best step, and the recall of the test classes."""
    print(f"best step: {trained.best['step']}")
    print("test " + "  ".join(f"{name} {value:.2%}" for name, value in recalls_at(embeddings.detach(), labels).items()))
