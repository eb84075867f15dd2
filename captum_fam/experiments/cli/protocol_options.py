"""What the protocols are told on the command line, whether they make a table (``evaluate``) or a figure."""

from __future__ import annotations

import argparse
from typing import Any, get_args

SPLITS = {"few-shot": "novel", "contrastive": "test", "retrieval": "retrieval-test", "mosaic": "novel"}
"""Of CUB, by protocol."""


def add_images(parser: argparse.ArgumentParser, split: str) -> None:
    """Where the images are, and how they are framed and read."""
    from captum_fam.experiments.split_model import Framing

    parser.add_argument(
        "--data",
        required=True,
        metavar="FOLDER",
        help="CUB-200-2011; ImageNet's validation images, with --boxes; class folders, which have no boxes; "
        "scenes[:NUMBER]; or package.module:factory",
    )
    parser.add_argument("--split", default=split, metavar="NAME", help="of CUB and the scenes; default: %(default)s")
    parser.add_argument("--boxes", metavar="PATH", help="ImageNet's XML folder or LOC_val_solution.csv")
    parser.add_argument(
        "--geometry",
        choices=get_args(Framing),
        help="squash the whole image to the model's size, or resize its shorter side and crop the center, both in the "
        "model's ratio or 256:224; default: the model's, squash",
    )
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="that read images; default: %(default)s")
    parser.add_argument("--device", metavar="NAME", help="default: cuda where there is one")


def add_methods(parser: argparse.ArgumentParser, default: str, said: str) -> None:
    """Which maps are made."""
    from captum_fam.experiments.table_methods import METHOD_NAMES

    parser.add_argument(
        "--methods",
        default=default,
        metavar="NAME,NAME,...",
        help=f"{said}{', '.join(METHOD_NAMES)}; each with -foil behind it, or [option=value,...] as in "
        "fam[normalization=none] and similarity-cam[layers=activation+rest]; default: %(default)s",
    )
    parser.add_argument("--foil", choices=("others", "runner-up"), default="others", help="default: %(default)s")


def add_episodes(parser: argparse.ArgumentParser, episodes: int) -> None:
    """What an episode is, and how many there are."""
    parser.add_argument("--way", type=int, default=5, metavar="N", help="classes an episode; default: %(default)s")
    parser.add_argument("--shot", type=int, default=1, metavar="N", help="supports a class; default: %(default)s")
    parser.add_argument("--query", type=int, default=15, metavar="N", help="queries a class; default: %(default)s")
    parser.add_argument("--episodes", type=int, default=episodes, metavar="N", help="default: %(default)s")
    parser.add_argument("--aggregate", choices=("mean", "prototype"), default="mean", help="default: %(default)s")


def add_bank(parser: argparse.ArgumentParser) -> None:
    """Where the memory bank comes from, and how it votes."""
    parser.add_argument("--bank-data", metavar="FOLDER", help="where the bank's images are; default: as --data")
    parser.add_argument("--bank-boxes", metavar="PATH", help="those of --bank-data for ImageNet; default: as --boxes")
    parser.add_argument("--bank-split", default="train", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--k", type=int, default=200, metavar="N", help="neighbors that vote; default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.07, metavar="T", help="default: %(default)s")
    parser.add_argument(
        "--backend", choices=("torch", "faiss"), default="torch", help="of the exact search; default: %(default)s"
    )


def positive(text: str) -> int:
    """A whole number of at least 1, as the type of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


def load_images(options: argparse.Namespace, model: Any) -> Any:
    """The images of :func:`add_images`, as the model takes them."""
    from captum_fam.experiments.data.load import load_dataset

    return load_dataset(options.data, options.split, model, boxes=options.boxes)


def load_bank(options: argparse.Namespace, file: str | None, model: Any, data: Any) -> Any:
    """The memory bank of a file, or the images that it is made of: those of the queries, or others."""
    from captum_fam.experiments.data.load import load_dataset
    from captum_fam.support.memory_bank import MemoryBank

    if file:
        return MemoryBank.load(file, backend=options.backend)
    source = options.bank_data or options.data
    if (source, options.bank_split, options.bank_boxes) == (options.data, options.split, None):
        return data
    return load_dataset(source, options.bank_split, model, boxes=options.bank_boxes or options.boxes)


def episode_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``FewShot`` for :func:`add_episodes`."""
    return {name: getattr(options, name) for name in ("way", "shot", "query", "episodes", "seed", "aggregate")}


def bank_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``Contrastive`` for :func:`add_bank`."""
    return {name: getattr(options, name) for name in ("k", "temperature", "backend")}


def reading_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of all protocols for :func:`add_images`."""
    return {"batch_size": options.batch_size, "num_workers": options.workers}
