"""The recipe ``captum-fam train contrastive npid | moco``: training without labels."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from captum_fam._files import lock_folder, need, try_folder
from captum_fam.cli.loading import RunOptions
from captum_fam.cli.options import add_fields, default_out, option, read_fields
from captum_fam.cli.ranges import at_least
from captum_fam.embedding.ranks import joined, torchrun_size
from captum_fam.experiments.cli.loading import load_network
from captum_fam.experiments.cli.train_options import NetworkOptions, ResourceOptions, none_or_every
from captum_fam.experiments.data.scene_source import SCENES_TO_TRAIN, is_scenes, number_of_scenes
from captum_fam.experiments.training.contrastive import (
    ContrastiveRecipe,
    MoCoRecipe,
    NPIDRecipe,
    contrastive_images,
    train_contrastive,
)
from captum_fam.experiments.training.training_run import autocast


@dataclass(frozen=True)
class ContrastiveDataOptions:
    """The options of the images of a contrastive training.

    Attributes:
        split: split of CUB or of the scenes; None for ``"train"`` and ``"base"``. Default: None.
        boxes: boxes of ImageNet's validation images. Default: None.
        hold_out: N, where every Nth image of each class is a query of the k-NN accuracy; 0 for none. Default: 10.
        stored_size: side to which images are decoded once, into memory; None for no such images. Default: None.
    """

    split: str | None = option("split of CUB (default: train) or of the scenes (default: base)", None)
    boxes: str | None = option("folder of ImageNet's XML files, or LOC_val_solution.csv", None, metavar="PATH")
    hold_out: int = option(
        "hold out every Nth image of each class, whose k-NN accuracy chooses the best epoch; 0: none, the last epoch "
        "is kept",
        10,
        parse=none_or_every,
    )
    stored_size: int | None = option(
        "squash images to N x N pixels and decode them once, into memory and a file; default: read the files in every "
        "epoch",
        None,
        within=at_least(1),
    )


def add_contrastive(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for NPID and one for MoCo, whose options are the fields of its recipe.

    Args:
        parser: parser of the recipe.
    """
    parser.description = (
        "Train any network without labels: every image is told from all others. Labels are used for the k-NN accuracy "
        "only, whose best epoch is kept. A model without a head gets one for the training, which has its own file, "
        "best-head.safetensors; the accuracy is that of the network as it is saved, in best.safetensors."
    )
    algorithms = parser.add_subparsers(title="algorithms", metavar="ALGORITHM", required=True)
    recipes: dict[str, tuple[type[ContrastiveRecipe], str, str]] = {
        "npid": (
            NPIDRecipe,
            "instance discrimination with a memory bank (NPID; Wu et al., CVPR 2018)",
            "captum-fam train contrastive npid --model npid_resnet18 --data imagenet/train --out runs/npid --precision "
            "bfloat16 --num-workers 16",
        ),
        "moco": (
            MoCoRecipe,
            "momentum contrast with a queue of keys (MoCo v2; He et al., CVPR 2020; Chen et al., 2020)",
            "captum-fam train contrastive moco --model moco_v2_resnet50 --data imagenet/train --out runs/moco | "
            "version 1: moco --model moco_v1_resnet50 --schedule steps --temperature 0.07 --augmentation v1 ...",
        ),
    }
    for name, (recipe, text, example) in recipes.items():
        algorithm = algorithms.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=f"example: {example}"
        )
        add_fields(algorithm, NetworkOptions)
        algorithm.add_argument(
            "--data",
            required=True,
            metavar="FOLDER",
            help="folder of CUB-200-2011 or a part of it; folder with one folder of images per class; folder of "
            "ImageNet's validation images, with --boxes; or scenes[:NUMBER] for planted scenes, 8000 without a number",
        )
        add_fields(algorithm, ContrastiveDataOptions)
        add_fields(algorithm, recipe)
        add_fields(algorithm, ResourceOptions)
        add_fields(algorithm, RunOptions, skip=("batch_size",))
        algorithm.add_argument(
            "--out",
            type=Path,
            default=default_out(algorithm),
            metavar="DIR",
            help="folder of checkpoints and log.csv; default: %(default)s",
        )
        algorithm.set_defaults(run=_runner(recipe))


def _runner(recipe: type[ContrastiveRecipe]) -> Callable[[argparse.Namespace], int]:
    return lambda options: run_contrastive(options, recipe)


def run_contrastive(options: argparse.Namespace, kind: type[ContrastiveRecipe]) -> int:
    """Train a network without labels, and print the k-NN accuracy of the best epoch.

    Args:
        options: the parsed options.
        kind: class of the recipe.

    Returns:
        The exit code 0.

    Raises:
        ValueError: for options that do not fit together, see :func:`train_contrastive`.
    """
    recipe = read_fields(kind, options)
    need("safetensors.torch", extra="train", purpose="training")
    if is_scenes(options.data):
        recipe.check(number_of_scenes(options.data, SCENES_TO_TRAIN), torchrun_size())
    progress = not options.quiet
    with joined(options.device) as ranks, lock_folder(options.out, ranks.is_first):
        autocast(ranks.device, options.precision)  # refuses a precision before any image is read
        if options.cache and ranks.is_first:
            try_folder(options.cache)
        net = load_network(options.model, options.weights, size=options.size, seed=recipe.seed)
        images = contrastive_images(
            options.data,
            net,
            options.hold_out,
            split=options.split,
            boxes=options.boxes,
            stored=options.stored_size,
            cache=options.cache or options.out,
            num_workers=options.num_workers,
            ranks=ranks,
            progress=progress,
        )
        trained = train_contrastive(
            net,
            images.train,
            options.out,
            recipe,
            bank=images.bank,
            val=images.val,
            num_workers=options.num_workers,
            ranks=ranks,
            precision=options.precision,
            progress=progress,
            tensorboard=options.tensorboard,
        )
        if ranks.is_first:
            best = trained.best
            print(f"best epoch: {best['epoch']} of 0..{recipe.epochs - 1}, loss {best['loss']:.3f}")
            names = {"val_knn": "network", "val_knn_head": "with the added head"}
            for column, text in names.items():
                if column in best:
                    print(f"{recipe.k}-NN accuracy, {text}: {best[column]:.2%}")
    return 0
