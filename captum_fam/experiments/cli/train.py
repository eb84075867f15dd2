"""``captum-fam train few-shot | metric``: the networks of the paper's experiments, trained."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from captum_fam.experiments.cli.protocol_options import positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from captum_fam.experiments.training import MetricRecipe, Trained
    from captum_fam.models import EmbeddingModel


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="train few-shot networks on episodes, or heads and networks by metric learning",
        description="Train the networks of the paper's experiments.",
        epilog="A run that is killed goes on when the same command is given again. Several GPUs: torchrun "
        "--nproc-per-node 4 -m captum_fam train few-shot ...",
    )
    kinds = parser.add_subparsers(title="recipes", metavar="RECIPE", required=True)
    _add_few_shot(kinds)
    _add_metric(kinds)


def _add_few_shot(kinds: Any) -> None:
    from captum_fam.experiments.training.few_shot import FewShotRecipe

    default = FewShotRecipe()
    parser = kinds.add_parser(
        "few-shot",
        help="episodes, global and nearest-neighbor loss",
        description="Train a network whose embedding is the average of a feature map, as Cross Attention Network is, "
        "with learned weights of its two losses; the epoch that is best on the validation classes is kept.",
        epilog="example: captum-fam train few-shot conv4net --data CUB_200_2011 --out runs/conv4net",
    )
    _add_common(parser)
    numbers: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument("--way", **numbers, default=default.way, help="classes an episode; default: %(default)s")
    parser.add_argument("--shot", **numbers, default=default.shot, help="supports a class; default: %(default)s")
    parser.add_argument("--query", **numbers, default=default.query, help="queries a class; default: %(default)s")
    parser.add_argument(
        "--epochs",
        **numbers,
        default=default.epochs,
        help="the learning rate falls at the same shares of them; default: %(default)s",
    )
    parser.add_argument("--episodes", **numbers, default=default.episodes, help="an epoch; default: %(default)s")
    parser.add_argument(
        "--learning-rate",
        type=float,
        default=default.learning_rates[0],
        metavar="X",
        help="of the first epochs, the later ones in proportion; default: %(default)s",
    )
    parser.add_argument(
        "--weighting",
        choices=("learned", "fixed"),
        default=default.weighting,
        help="of the two losses; default: %(default)s",
    )
    parser.add_argument(
        "--val-episodes",
        **numbers,
        default=default.val_episodes,
        help="that choose the best epoch; default: %(default)s",
    )
    parser.add_argument(
        "--test-episodes",
        **numbers,
        default=2000,
        help="of the novel classes, on which the best epoch is measured in the end; default: %(default)s",
    )
    parser.set_defaults(run=_run_few_shot)


def _add_metric(kinds: Any) -> None:
    from captum_fam.experiments.training.metric import MetricRecipe

    default = MetricRecipe()
    parser = kinds.add_parser(
        "metric",
        help="Multi-Similarity or Margin loss",
        description="Train a network for retrieval, or a linear head on a network that stays as it is. A model without "
        "a head gets one, in a file of its own, best-head.safetensors.",
        epilog="examples: captum-fam train metric multi_similarity_bn_inception --data CUB_200_2011 --out runs/ms "
        "--weights bn_inception-52deb4733.pth | captum-fam train metric squeezenet1_0 --freeze-backbone --weights "
        "squeezenet1_0.pth --loss margin --data CUB_200_2011 --out runs/margin",
    )
    _add_common(parser)
    numbers: dict[str, Any] = {"type": int, "metavar": "N"}
    parser.add_argument(
        "--loss", choices=("multi-similarity", "margin"), default=default.loss, help="default: %(default)s"
    )
    parser.add_argument(
        "--freeze-backbone",
        action="store_true",
        help="train a head on features that are computed once, of squashed images: seconds",
    )
    parser.add_argument("--pooling", choices=("gap", "gmp"), help="before a new head; default: the model's")
    parser.add_argument("--embedding-size", **numbers, default=512, help="of a new head; default: %(default)s")
    parser.add_argument("--steps", **numbers, default=default.steps, help="default: %(default)s")
    parser.add_argument(
        "--learning-rate", type=float, metavar="X", help="default: 3e-5, or 1e-3 with --freeze-backbone"
    )
    parser.add_argument("--way", **numbers, help="classes in a batch; default: 16, or 24 for margin")
    parser.add_argument(
        "--images", **numbers, default=default.images, help="of a class in a batch; default: %(default)s"
    )
    parser.add_argument(
        "--period", **numbers, default=default.period, help="steps between checkpoints; default: %(default)s"
    )
    parser.add_argument(
        "--hold-out",
        **numbers,
        default=5,
        help="every Nth training class is kept to choose the best step; 0: none, and the last step is kept; "
        "default: %(default)s",
    )
    parser.set_defaults(run=_run_metric)


def _add_common(parser: Any) -> None:
    from captum_fam.experiments.training.training_run import Precision

    parser.add_argument("model", metavar="MODEL", help="a name of captum_fam.models.create_model: conv4net, ...")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FOLDER",
        help='of CUB-200-2011 or a part of it; or "scenes:LENGTH", planted scenes',
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoints, log.csv")
    parser.add_argument("--weights", metavar="FILE", help="to start from; default: random")
    parser.add_argument("--size", type=positive, metavar="PIXELS", help="of the images; default: the model's")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="bfloat16 halves the time, also on most CPUs; default: %(default)s",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="for decoded images and features; default: --out")
    parser.add_argument("--num-workers", type=int, default=0, metavar="N", help="that read images")
    parser.add_argument("--tensorboard", action="store_true", help="write curves to DIR/tensorboard")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _run_few_shot(options: argparse.Namespace) -> int:
    from captum_fam.experiments.distributed import joined
    from captum_fam.experiments.training import (
        FewShotRecipe,
        embed_bytes,
        few_shot_accuracy,
        initialize,
        train_few_shot,
    )
    from captum_fam.experiments.training.sources import few_shot_images

    net = _create(options)
    if options.weights is None:
        initialize(net.model, options.seed)
    rates = FewShotRecipe().learning_rates
    recipe = FewShotRecipe(
        way=options.way,
        shot=options.shot,
        query=options.query,
        epochs=options.epochs,
        episodes=options.episodes,
        learning_rates=tuple(rate * options.learning_rate / rates[0] for rate in rates),
        weighting=options.weighting,
        val_episodes=options.val_episodes,
        seed=options.seed,
    )
    with joined(options.device) as ranks:
        shared: dict[str, Any] = {"ranks": ranks, "progress": not options.quiet}
        cache = options.cache or options.out
        images = few_shot_images(options.data, net, cache, num_workers=options.num_workers, **shared)
        trained = train_few_shot(
            net,
            images["base"],
            images["val"],
            options.out,
            recipe,
            precision=options.precision,
            tensorboard=options.tensorboard,
            **shared,
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


def _run_metric(options: argparse.Namespace) -> int:
    from captum_fam.experiments.distributed import joined
    from captum_fam.experiments.training import MetricRecipe, embed_dataset, train_metric
    from captum_fam.experiments.training.sources import hold_out, retrieval_data
    from captum_fam.pooling import GAP, GMP

    net = _create(options)
    pooling = {"gap": GAP(), "gmp": GMP(), None: None}[options.pooling]
    recipe = MetricRecipe(
        loss=options.loss,
        steps=options.steps,
        learning_rate=options.learning_rate or (1e-3 if options.freeze_backbone else MetricRecipe().learning_rate),
        way=options.way,
        images=options.images,
        period=options.period,
        seed=options.seed,
    )
    if options.freeze_backbone:
        return _train_head(options, net, pooling, recipe)
    train, _ = hold_out(retrieval_data(options.data, None, net.size)[0], options.hold_out)
    squared, test = retrieval_data(options.data, net.evaluation_geometry, net.size)
    with joined(options.device) as ranks:
        progress = not options.quiet
        trained = train_metric(
            net,
            train,
            hold_out(squared, options.hold_out)[1],
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


def _train_head(
    options: argparse.Namespace, net: EmbeddingModel, pooling: nn.Module | None, recipe: MetricRecipe
) -> int:
    import torch

    from captum_fam.experiments.split_model import split_model
    from captum_fam.experiments.training import pooled_features, train_metric_head
    from captum_fam.experiments.training.sources import held_out, retrieval_data

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    stem = f"features-{split_model(net).weights_hash()[:12]}-{options.pooling or 'own'}-{net.size}"
    train, test = retrieval_data(options.data, net.geometry, net.size)
    features = {}
    for name, data in (("train", train), ("test", test)):
        file = (options.cache or options.out) / f"{stem}-{name}.pt"
        features[name] = pooled_features(
            net, data, pooling, file, device=device, num_workers=options.num_workers, progress=not options.quiet
        )
    rows, labels = features["train"]
    kept = ~held_out(labels, options.hold_out)
    trained = train_metric_head(
        rows[kept],
        labels[kept],
        (rows[~kept], labels[~kept]) if options.hold_out else None,
        options.out,
        recipe,
        embedding_size=options.embedding_size,
        progress=not options.quiet,
        tensorboard=options.tensorboard,
    )
    _report(trained, trained.model(features["test"][0]), features["test"][1])
    return 0


def _report(trained: Trained, embeddings: Tensor, labels: Tensor) -> None:
    """Print the recall of the test classes."""
    from captum_fam.experiments.training import recalls_at

    print(f"best step: {trained.best['step']}")
    print("test " + "  ".join(f"{name} {value:.2%}" for name, value in recalls_at(embeddings.detach(), labels).items()))


def _create(options: argparse.Namespace) -> EmbeddingModel:
    import torch

    from captum_fam.models import BNInception, create_model, load_weights, read_state_dict
    from captum_fam.models.layouts import IMAGENET_BN_INCEPTION

    torch.manual_seed(options.seed)  # of random weights
    net = create_model(options.model)
    state = {} if options.weights is None else read_state_dict(options.weights)
    if isinstance(net.model, BNInception) and "last_linear.weight" in state:
        load_weights(net.model.features, state, [IMAGENET_BN_INCEPTION])
    elif state:
        net = create_model(options.model, options.weights)
    return replace(net, size=options.size) if options.size else net
