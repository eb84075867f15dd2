"""``captum-fam explain``: image files, compared by any embedding model of the package."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from captum_fam._files import MANIFEST, staged
from captum_fam.attr.registry import METHODS
from captum_fam.experiments.cli.protocol_options import positive
from captum_fam.explanation import Explainer, Explanation, compare_figure, versions, write_json, write_query
from captum_fam.images import IMAGE_SUFFIXES, UnreadableImageError, find_images, read_image
from captum_fam.models import EmbeddingModel, create_model, list_models
from captum_fam.models.registry import full_name
from captum_fam.similarity import get_similarity
from captum_fam.support import SupportSet, embed_images

_DISPLAY_SIDE = 1024  # pixels of the longer side of overlays
_THUMBNAIL_SIDE = 160
_SHOWN = 9
_NO_TOKENS = ("grad-cam",)  # Captum's, which know nothing of token grids
_NEED_IMAGES = ("correspondence",)  # of the support; the others do with its embeddings


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "explain",
        help="explain why images match their supports",
        description="Explain why query images match their support, by the embeddings of a network. "
        "Images are squashed to a square, so that nothing is cut off.",
        epilog="examples: captum-fam explain query.jpg --support wrens/*.jpg --foil jays/ | "
        "captum-fam explain photos/ --support birds/ --foil others --method fam similarity-cam. "
        "Writes for each query a figure, the overlays and the maps (.npz), and one manifest.json. Exit code: 0; "
        "1 if an image could not be read, the others being done; 2 for options that cannot be followed.",
    )
    paths: dict[str, Any] = {"nargs": "+", "type": Path}
    parser.add_argument("queries", **paths, metavar="QUERY", help="images, or folders of images; before --support")
    parser.add_argument(
        "--support",
        **paths,
        required=True,
        metavar="IMAGE_OR_FOLDER",
        help="images or a folder of one class; or a folder of class folders, or several folders, each a class: then "
        "the predicted class is explained",
    )
    parser.add_argument(
        "--foil",
        nargs="+",
        metavar="FOIL",
        help="why this class and not that: 'others', 'runner-up', or images or folders to contrast with; fam then "
        "leaves out its min-max, which would erase the sign",
    )
    parser.add_argument("--target", metavar="CLASS", help="explain this class instead of the predicted one")
    parser.add_argument(
        "--model",
        default="resnet50",
        metavar="NAME",
        help=f"of torchvision, timm/NAME, or with --weights one of the paper: {', '.join(list_models())}; default: "
        "%(default)s",
    )
    parser.add_argument(
        "--layer", metavar="NAME", help="default: found by measuring what its map explains; layer4 of a ResNet"
    )
    parser.add_argument(
        "--weights",
        metavar="DEFAULT|FILE",
        help="a file (.pth, .pt, .tar, .safetensors), as captum-fam train or the authors of the paper's networks wrote "
        "it; default, of torchvision and timm: the pretrained ones, downloaded once",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        choices=METHODS,
        default=["fam"],
        metavar="METHOD",
        help=f"{', '.join(METHODS)}; default: fam",
    )
    parser.add_argument(
        "--similarity", metavar="NAME", help="cosine, dot, euclidean, squared-euclidean; default: the model's, cosine"
    )
    parser.add_argument(
        "--size", type=_side, metavar="PIXELS", help="of the square; default: that of the weights, 224 for most"
    )
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="default: %(default)s")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    queries = _query_files(options.queries)
    supports = read_classes(options.support, "support")
    foil = options.foil[0] if options.foil and options.foil[0] in ("others", "runner-up") else None
    if foil and len(options.foil) > 1:
        raise ValueError(f"--foil {foil} stands alone, without files")
    if foil and len(supports) < 2:
        raise ValueError(f"--foil {foil} needs supports of at least two classes; give a folder of class folders")
    foils = read_classes([Path(path) for path in options.foil], "foil") if options.foil and not foil else {}
    target = _class_name(options.target, list(supports))
    if options.similarity is not None:
        get_similarity(options.similarity)
    methods = list(dict.fromkeys(options.method))

    weights = _weights(options.model, options.weights)
    net = create_model(options.model, weights, layer=options.layer)
    size = options.size or net.size
    if not net.any_size and size != net.size:
        raise ValueError(f"--size {size}: {options.model} takes images of {net.size} pixels only")
    net = dataclasses.replace(net, size=size, similarity=options.similarity or net.similarity)
    if net.token_grid and set(methods) & set(_NO_TOKENS):
        raise ValueError(f"--method {' '.join(_NO_TOKENS)}: cannot explain the tokens of {options.model}; take another")
    net.model.to(options.device)
    grid: dict[str, Any] = {"token_grid": net.token_grid} if net.token_grid else {}
    job = _Job(net, options.device, options.batch_size)

    as_images = any(name in _NEED_IMAGES for name in methods)
    support = job.support_set(supports, "support", as_images)
    foil_set = job.support_set(foils, "foil", as_images) if foils else None
    explainers = [
        Explainer(
            net.model, support, layer=net.layer, method=name, similarity=net.similarity, foil=foil_set or foil, **grid
        )
        for name in methods
    ]
    panels = _Panels(supports, foils, foil)
    (options.out / MANIFEST).unlink(missing_ok=True)  # it would speak of another run
    entries = []
    with tqdm(total=len(queries), desc="explaining", unit="image", disable=None) as progress:
        for chunk in job.read(queries):
            names = [queries[path] for path in chunk.paths]
            explanations = [
                explainer.explain(chunk.inputs, target=target, images=chunk.photos, names=names)
                for explainer in explainers
            ]
            for index, path in enumerate(chunk.paths):
                entry = _write(explanations, index, path, panels, options.out)
                entries.append({"file": str(path), "image_size": chunk.sizes[index], **entry})
                progress.update()
    with staged(options.out) as scratch:
        manifest = {
            "model": options.model,
            "weights": _describe_weights(weights, net.layout),
            "layer": net.layer,
            "similarity": net.similarity,
            "methods": methods,
            "foil": foil or {name: [str(path) for path in paths] for name, paths in foils.items()} or None,
            "preprocessing": {
                "size": net.size,
                "resize": "squash",
                "interpolation": net.interpolation,
                "mean": net.mean,
                "std": net.std,
            },
            "support": {name: [str(path) for path in paths] for name, paths in supports.items()},
            "queries": entries,
            "unreadable": [{"file": str(path), "error": reason} for path, reason in job.unreadable.items()],
            "versions": versions(),
        }
        write_json(scratch / MANIFEST, manifest)
    print(f"{len(entries)} explained, {len(job.unreadable)} unreadable: {options.out}")
    return 1 if job.unreadable else 0


def read_classes(paths: Sequence[Path], what: str) -> dict[str, list[Path]]:
    """Image files by class: files or one folder of images are one class, folders of folders or several are classes.

    Raises:
        ValueError: for a path that does not exist, a folder without images, or a mixture.
    """
    option = f"--{what}"
    for path in paths:
        if not path.exists():
            raise ValueError(f"{option} {path}: no such file or folder")
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        return {what: list(paths)}
    if len(folders) < len(paths):
        raise ValueError(f"{option}: give images, or folders, not both")
    if len(folders) == 1:
        inner = sorted(path for path in folders[0].iterdir() if path.is_dir() and find_images(path))
        if inner and find_images(folders[0]):
            raise ValueError(f"{option} {folders[0]} holds both images and folders of images; give one or the other")
        folders = inner or folders
    classes = {folder.resolve().name: find_images(folder) for folder in folders}
    if len(classes) < len(folders):
        raise ValueError(f"{option}: two folders have the same name, which is that of their class")
    for folder in folders:
        if not classes[folder.resolve().name]:
            raise ValueError(f"{option} {folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return classes


@dataclass(frozen=True)
class _Chunk:
    paths: list[Path]
    inputs: torch.Tensor
    photos: list[Image.Image]
    sizes: list[tuple[int, int]]


@dataclass
class _Job:
    """Reading images in batches, and remembering which could not be read."""

    net: EmbeddingModel
    device: str
    batch_size: int
    unreadable: dict[Path, str] = field(default_factory=dict)

    def read(self, paths: Sequence[Path] | dict[Path, str]) -> Iterator[_Chunk]:
        """The readable images, in batches."""
        done: list[tuple[Path, torch.Tensor, Image.Image, tuple[int, int]]] = []
        for number, path in enumerate(paths, 1):
            try:
                image = read_image(path)
            except UnreadableImageError as error:
                self.unreadable[path] = str(error)
                tqdm.write(f"captum-fam: {error}", file=sys.stderr)
            else:
                inputs, size = self.net.preprocess(image), (image.height, image.width)
                image.thumbnail((_DISPLAY_SIDE, _DISPLAY_SIDE))
                done.append((path, inputs, image, size))
            if done and (len(done) == self.batch_size or number == len(paths)):
                files, tensors, photos, sizes = zip(*done, strict=True)
                yield _Chunk(list(files), torch.stack(tensors).to(self.device), list(photos), list(sizes))
                done = []

    def support_set(self, classes: dict[str, list[Path]], what: str, as_images: bool) -> SupportSet:
        """The readable images of all classes; as embeddings, where those will do, thousands need little memory."""
        parts: list[torch.Tensor] = []
        labels: list[str] = []
        with tqdm(total=sum(map(len, classes.values())), desc=f"reading {what}", unit="image", disable=None) as bar:
            for name, paths in classes.items():
                before = len(labels)
                for chunk in self.read(paths):
                    parts.append(chunk.inputs if as_images else embed_images(self.net.model, chunk.inputs))
                    labels += [name] * len(chunk.paths)
                if len(labels) == before:
                    raise ValueError(f"--{what}: no image of {name!r} could be read")
                bar.update(len(paths))
        return SupportSet(torch.cat(parts), labels, class_names=list(classes))


class _Panels:
    """Thumbnails of supports and foils for the figures, read when first shown."""

    def __init__(self, supports: dict[str, list[Path]], foils: dict[str, list[Path]], foil: str | None) -> None:
        self._supports = supports
        self._foils = foils
        self._foil = foil
        self._thumbnails: dict[Path, Image.Image | None] = {}

    def supports(self, target: str) -> list[Image.Image]:
        return self._read(self._supports[target])

    def foils(self, target: str, scores: dict[str, float]) -> tuple[str, list[Image.Image]]:
        """What the class is contrasted with, in words and pictures."""
        others = {name: score for name, score in scores.items() if name != target}
        if self._foil == "runner-up":
            best = max(others, key=others.__getitem__)
            return f"foil: runner-up\n{best}", self.supports(best)
        if self._foil == "others":
            return "foil: other classes", self._read([self._supports[name][0] for name in others])
        one_of_each = [path for paths in zip_longest(*self._foils.values()) for path in paths if path]
        name = ", ".join(self._foils)
        return "foil" if name == "foil" else f"foil\n{name}", self._read(one_of_each)

    def _read(self, paths: Sequence[Path]) -> list[Image.Image]:
        for path in paths[:_SHOWN]:
            if path not in self._thumbnails:
                try:
                    thumbnail = read_image(path)
                except UnreadableImageError:  # named when it was to be embedded
                    self._thumbnails[path] = None
                    continue
                thumbnail.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
                self._thumbnails[path] = thumbnail
        return [image for path in paths[:_SHOWN] if (image := self._thumbnails[path])]


def _write(explanations: Sequence[Explanation], index: int, path: Path, panels: _Panels, out: Path) -> dict[str, Any]:
    """The files of one query, all or none; gives its entry of the manifest."""
    with staged(out) as scratch:
        entry = write_query(explanations, index, scratch)
        target = entry["target"]
        figure = f"{entry['name']}.figure.png"
        title, foils = panels.foils(target, entry["scores"])
        compare_figure(explanations, index, panels.supports(target), foils, title).save(scratch / figure)
    tqdm.write(f"{path}: {target} {_line(explanations, index)} -> {out / figure}")
    return {**entry, "figure": figure}


def _line(explanations: Sequence[Explanation], index: int) -> str:
    """The score, what maps explain of it, and which are flat, in words."""
    first = next((one for one in explanations if one.coverage is not None), explanations[0])
    said = [f"{one.method} {one.account_text(index)}" for one in explanations if one.coverage is not None]
    said += [f"{one.method} is zero everywhere" for one in explanations if not one.attributions[index].any()]
    return first.score_text(index) + (f" ({' | '.join(said)})" if said else "")


def _query_files(paths: Sequence[Path]) -> dict[Path, str]:
    """The query images and the name of each, which is its file's where that is the only one."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        inner = find_images(path) if path.is_dir() else [path]
        if not inner:
            raise ValueError(f"QUERY {path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        for image in inner:
            candidates = (image.stem if number == 1 else f"{image.stem}-{number}" for number in count(1))
            names[image] = next(name for name in candidates if name.casefold() not in taken)
            taken.add(names[image].casefold())
    return names


def _class_name(target: str | None, classes: list[str]) -> str | None:
    if target is None or target in classes:
        return target
    if target.isdecimal() and int(target) < len(classes):
        return classes[int(target)]
    close = difflib.get_close_matches(target, classes) or classes[:5]
    raise ValueError(
        f"--target {target} is none of the {len(classes)} classes of the support, such as {', '.join(close)}"
    )


def _weights(model: str, weights: str | None) -> str:
    """What to load; random weights explain nothing."""
    if weights is None and full_name(model) in list_models():
        raise ValueError(
            f"--model {model}: give its weights as --weights FILE; there are none to download, and random ones explain "
            "nothing"
        )
    return weights or "DEFAULT"


def _describe_weights(weights: str, layout: str | None) -> dict[str, str]:
    """The name, or file, hash and whose naming of the parameters it had, where that is known."""
    path = Path(weights)
    if not path.is_file():
        return {"name": weights}
    of = {} if layout is None else {"layout": layout}
    return {"file": weights, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **of}


def _side(text: str) -> int:
    if not text.isdecimal() or int(text) < 32:
        raise argparse.ArgumentTypeError(f"expected at least 32 pixels, got {text}")
    return int(text)
