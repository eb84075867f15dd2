"""``captum-fam evaluate``: the protocols, from a folder of images to a table."""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

from captum_fam.experiments.cli.protocol_options import (
    SPLITS,
    add_bank,
    add_episodes,
    add_images,
    add_methods,
    bank_settings,
    episode_settings,
    load_bank,
    load_images,
    positive,
    reading_settings,
)

# What summary.json names besides what the results depend on.
_ABOUT = ("model", "weights", "head", "pooling", "layer", "data", "split", "geometry")


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure maps on images with boxes: few-shot, contrastive, retrieval, mosaic",
        description="Run a protocol: the model's accuracy, and for every method how well its maps lie on the objects "
        "and follow the support, beside baselines that look at neither. A run that is killed goes on when the same "
        "command is given again; torchrun --nproc-per-node N -m captum_fam evaluate ... shares it among processes.",
    )
    protocols = parser.add_subparsers(title="protocols", metavar="PROTOCOL", required=True)
    _add_few_shot(protocols)
    _add_contrastive(protocols)
    _add_retrieval(protocols)
    _add_mosaic(protocols)
    _add_head(protocols)


def _add_few_shot(protocols: Any) -> None:
    parser = _add_protocol(protocols, "few-shot", "N-way K-shot episodes", _few_shot)
    add_episodes(parser, 2000)
    parser.add_argument("--seed", type=int, default=0, help="of the episodes; default: %(default)s")
    _add_conventions(parser)


def _add_contrastive(protocols: Any) -> None:
    parser = _add_protocol(protocols, "contrastive", "k-NN classification by a memory bank", _contrastive)
    parser.add_argument(
        "--bank", metavar="FILE", help="a memory bank (.safetensors) without the queries; default: made of --bank-split"
    )
    add_bank(parser)
    parser.add_argument(
        "--neighbors",
        choices=("predicted", "all", "vote", "within-class", "whole-class", "nearest"),
        default="predicted",
        help="which rows of the bank stand for the class in Eq. 11; default: %(default)s",
    )
    _add_conventions(parser)


def _add_retrieval(protocols: Any) -> None:
    parser = _add_protocol(
        protocols, "retrieval", "every image as a query, the nearest other as its support", _retrieval
    )
    parser.add_argument("--recall", type=_numbers, default=(1, 2, 4, 8), metavar="K,K,...", help="default: 1,2,4,8")
    _add_conventions(parser)


def _add_mosaic(protocols: Any) -> None:
    parser = _add_protocol(protocols, "mosaic", "images of several classes side by side, supports of one", _mosaic)
    parser.add_argument("--grid", type=int, default=2, metavar="N", help="images a side; default: %(default)s")
    parser.add_argument("--shot", type=int, default=5, metavar="N", help="supports a class; default: %(default)s")
    parser.add_argument("--mosaics", type=int, default=150, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--cell", type=positive, metavar="PIXELS", help="side of an image; default: as the model takes it"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the mosaics; default: %(default)s")
    parser.add_argument("--aggregate", choices=("mean", "prototype"), default="mean", help="default: %(default)s")


def _add_head(protocols: Any) -> None:
    parser = protocols.add_parser(
        "train-head",
        help="train a linear head on a model's frozen features, in seconds",
        description="Train a linear head so that the cosine tells the classes of a split apart, for --head.",
    )
    _add_model(parser, "base")
    parser.add_argument("--width", type=int, default=128, metavar="J", help="of the embedding; default: %(default)s")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("head.pt"), metavar="FILE", help="default: %(default)s")
    parser.set_defaults(run=_train_head, layer=None)


def _add_protocol(protocols: Any, name: str, said: str, make: Any) -> argparse.ArgumentParser:
    from captum_fam.experiments.measures import MEASURES
    from captum_fam.experiments.table_methods import DEFAULT_METHODS

    parser: argparse.ArgumentParser = protocols.add_parser(name, help=said, description=f"{said[0].upper()}{said[1:]}.")
    _add_model(parser, SPLITS[name])
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="cut the network behind this module, whose output the maps explain; default: that which is pooled. Layers "
        "behind it are explained by METHOD[layers=rest.NAME], rest alone being the pooled one",
    )
    add_methods(parser, ",".join(DEFAULT_METHODS), "")
    measures = "swap" if name == "mosaic" else "localization,swap"
    said = "swap, or nothing; those of the cells come anyway" if name == "mosaic" else ", ".join(MEASURES)
    parser.add_argument("--measures", default=measures, metavar="NAME,...", help=f"{said}; default: %(default)s")
    parser.add_argument("--examples", type=int, default=4, metavar="N", help="rows of the figure; default: %(default)s")
    parser.add_argument("--wrong", type=int, default=0, metavar="N", help="show the N most confident mistakes")
    parser.add_argument("--out", type=Path, default=Path(name), metavar="DIR", help="default: %(default)s")
    parser.set_defaults(run=_run, make=make)
    return parser


def _add_model(parser: argparse.ArgumentParser, split: str) -> None:
    from captum_fam.experiments.split_model import POOLINGS

    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="squeezenet, demo, conv4, conv64f, another name of create_model, or package.module:factory",
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="default: the pretrained ones, for networks of torchvision and timm"
    )
    parser.add_argument("--head", metavar="FILE", help="a linear head, as train-head or train metric makes one")
    parser.add_argument(
        "--pooling", choices=POOLINGS, help="before the head, that which it was trained for; default: the model's"
    )
    parser.add_argument("--size", type=positive, metavar="PIXELS", help="side of the images; default: the model's")
    parser.add_argument("--interpolation", choices=("bilinear", "bicubic"), help="default: the model's")
    parser.add_argument("--similarity", metavar="NAME", help="cosine, dot, euclidean, ...; default: the model's")
    add_images(parser, split)


def _add_conventions(parser: argparse.ArgumentParser) -> None:
    """Which queries are explained, and what the definitions of the measures leave open."""
    choices: dict[str, tuple[str, tuple[str, ...]]] = {
        "explain": ("which queries", ("correct", "all")),
        "over": ("which IoU counts where an image has several boxes", ("best", "first", "largest", "mean")),
        "mask": ("what average drop masks: the model's input, or the pixels", ("normalized", "raw")),
        "signed": ("what box and mask see of a signed map: all of it, or its positive part", ("minmax", "positive")),
    }
    for name, (said, values) in choices.items():
        parser.add_argument(f"--{name}", choices=values, default=values[0], help=f"{said}; default: %(default)s")
    parser.add_argument("--threshold", type=float, default=0.2, metavar="T", help="of the box; default: %(default)s")
    parser.add_argument("--connectivity", type=int, choices=(8, 4), default=8, help="default: %(default)s")
    parser.add_argument(
        "--steps", type=int, default=20, metavar="N", help="of deletion and insertion; default: %(default)s"
    )
    parser.add_argument(
        "--epsilon",
        type=float,
        default=1e-6,
        metavar="S",
        help="similarities of at most this have no drop, increase, deletion and insertion; default: %(default)s",
    )


def _run(options: argparse.Namespace) -> int:
    """Run a protocol."""
    from captum_fam.experiments.distributed import joined
    from captum_fam.experiments.evaluation import evaluate

    with joined(options.device) as ranks:
        try:
            protocol = options.make(options)
            _warn_of_random_weights(options, ranks)
            evaluation = evaluate(
                protocol,
                options.out,
                ranks=ranks,
                progress=True,
                examples=options.examples,
                wrong=options.wrong,
                about={name: getattr(options, name) for name in _ABOUT},
            )
        except KeyboardInterrupt:
            print(f"\ninterrupted; what is done is in {options.out}, the same command goes on", file=sys.stderr)
            raise
        if evaluation is not None:
            print(evaluation)
            for whose, skipped in (("", evaluation.skipped), (" of the bank", evaluation.bank_skipped)):
                for item, reason in list(skipped.items())[:10]:
                    print(f"left out{whose}: item {item}: {reason}", file=sys.stderr)
            print(f"written to {options.out}")
            return 1 if evaluation.skipped or evaluation.bank_skipped else 0
    return 0


def _few_shot(options: argparse.Namespace) -> Any:
    from captum_fam.experiments.protocols.few_shot import FewShot

    model = _model(options)
    return FewShot(
        model,
        load_images(options, model),
        _panel(options),
        **episode_settings(options),
        explain=options.explain,
        **reading_settings(options),
    )


def _contrastive(options: argparse.Namespace) -> Any:
    from captum_fam.experiments.protocols.contrastive import Contrastive

    model = _model(options)
    data = load_images(options, model)
    return Contrastive(
        model,
        data,
        load_bank(options, options.bank, model, data),
        _panel(options),
        **bank_settings(options),
        neighbors=options.neighbors,
        explain=options.explain,
        **reading_settings(options),
    )


def _retrieval(options: argparse.Namespace) -> Any:
    from captum_fam.experiments.protocols.retrieval import Retrieval

    model = _model(options)
    return Retrieval(
        model,
        load_images(options, model),
        _panel(options),
        ks=options.recall,
        explain=options.explain,
        **reading_settings(options),
    )


def _mosaic(options: argparse.Namespace) -> Any:
    from captum_fam.experiments.protocols.mosaic import Mosaic

    model = _model(options)
    return Mosaic(
        model,
        load_images(options, model),
        _panel(options),
        grid=options.grid,
        shot=options.shot,
        mosaics=options.mosaics,
        cell=options.cell,
        seed=options.seed,
        aggregate=options.aggregate,
        **reading_settings(options),
    )


def _train_head(options: argparse.Namespace) -> int:
    """Train a linear head."""
    import tempfile

    from torch import nn

    from captum_fam.experiments.distributed import joined
    from captum_fam.experiments.features import extract
    from captum_fam.experiments.linear_head import save_head, train_head

    # --head puts the new head in the place of the model's own.
    model = _model(options, nn.Identity())
    data = load_images(options, model)
    with joined(options.device) as ranks, tempfile.TemporaryDirectory() as folder:
        _warn_of_random_weights(options, ranks)
        features = extract(
            model.fast_copy(ranks.device),
            data,
            folder,
            (),
            batch_size=options.batch_size,
            num_workers=options.workers,
            ranks=ranks,
            progress=True,
        )
        if ranks.is_first:
            head = train_head(
                features.embeddings, features.labels, options.width, steps=options.steps, seed=options.seed
            )
            save_head(head, options.out)
            print(f"{head.in_features} -> {head.out_features}, on {len(features)} images: {options.out}")
    return 0


def _model(options: argparse.Namespace, head: Any = None) -> Any:
    from captum_fam.experiments.split_model import load_model

    model = load_model(options.model, options.weights, head or options.head, options.pooling, options.layer)
    model.size = options.size or model.size
    model.framing = options.geometry or model.framing
    model.interpolation = options.interpolation or model.interpolation
    model.similarity = options.similarity or model.similarity
    return model


def _warn_of_random_weights(options: argparse.Namespace, ranks: Any) -> None:
    """Say it once where the model is one of the paper's, whose weights cannot be downloaded."""
    from captum_fam.models import list_models
    from captum_fam.models.registry import full_name

    if ranks.is_first and options.weights is None and full_name(options.model) in list_models():
        warnings.warn(f"--model {options.model}: random weights; give trained ones as --weights FILE", stacklevel=2)


def _panel(options: argparse.Namespace) -> Any:
    from captum_fam.experiments.measures import Conventions, Panel
    from captum_fam.experiments.table_methods import get_methods

    measures = tuple(name.strip() for name in options.measures.split(",") if name.strip())
    given = {field.name: getattr(options, field.name) for field in fields(Conventions) if hasattr(options, field.name)}
    return Panel(get_methods(options.methods, options.foil), measures, Conventions(**given))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
