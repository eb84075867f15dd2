"""The supports of ``captum-fam explain``: images by class, a gallery or a memory bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image
from torch.utils.data import Dataset

from captum_fam._files import lock_folder, sha256_of, sha256_of_weights
from captum_fam._text import printable_path
from captum_fam._warnings import warn_user
from captum_fam.cli.class_files import paths_as_text, read_classes, report_unreadable
from captum_fam.cli.explain import Classes, ExplainJob, class_name
from captum_fam.cli.shards import shard_of_process
from captum_fam.explanation import Explanation
from captum_fam.explanation.reading.supports import PictureSupport
from captum_fam.explanation.reading.thumbnails import MOST_SHOWN
from captum_fam.explanation.used_supports import UsedSupport
from captum_fam.image_files import same_files
from captum_fam.images import read_image
from captum_fam.models import EmbeddingModel
from captum_fam.support import MemoryBank, Support

_GALLERY_NEIGHBORS = 5


class JobSupport(Protocol):
    """The support of a job."""

    @property
    def support(self) -> Any:
        """The support, as :class:`~captum_fam.explanation.Explainer` takes it."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes."""

    @property
    def target(self) -> str | None:
        """The class to explain; None for the predicted classes."""

    @property
    def notes(self) -> list[str]:
        """What the user has to know of the support."""

    def without(self, files: Sequence[Path]) -> Support | None:
        """The support of a batch without the queries themselves; None for a support that needs no change."""

    def files(self, why: Explanation, index: int, target: str) -> list[Path]:
        """The files of the supports of one query, the most similar first where that is known."""

    def class_files(self, name: str) -> Sequence[Path]:
        """The files of a class, for the pictures of a foil; none if they are not known."""

    def entry(self, why: Explanation, index: int) -> list[dict[str, Any]]:
        """The supports of one query for the manifest; empty where all queries share them."""

    def describe(self) -> dict[str, Any]:
        """The support for the manifest, as JSON can represent it."""


@dataclass(frozen=True)
class ClassSupport:
    """Images by class, which all queries share.

    Attributes:
        support: the support.
        classes: files by class.
        target: the class to explain; None for the predicted classes. Default: None.
    """

    support: PictureSupport
    classes: Mapping[str, Sequence[Path]]
    target: str | None = None

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes."""
        return list(self.classes)

    def without(self, files: Sequence[Path]) -> None:
        """None: the explainer itself leaves out a support that is the query."""

    def files(self, why: Explanation, index: int, target: str) -> list[Path]:
        """The files of the explained class."""
        return list(self.classes[target])

    def class_files(self, name: str) -> Sequence[Path]:
        """The files of a class."""
        return self.classes[name]

    def entry(self, why: Explanation, index: int) -> list[dict[str, Any]]:
        """Nothing: all queries have the same supports."""
        return []

    @property
    def notes(self) -> list[str]:
        """Nothing: the explainer itself says what it leaves out."""
        return []

    def describe(self) -> dict[str, Any]:
        """The files by class."""
        return {"support_files": paths_as_text(self.classes)}


@dataclass(frozen=True)
class BankSupport:
    """The rows of a memory bank, made of a gallery or read from a file.

    Attributes:
        support: the bank.
        about: the entries of the manifest.
        gallery: files of the gallery, one per item of the bank; empty for a bank from a file.
        target: the class to explain; None for the predicted classes.
        own_rows: rows of the bank that are the query itself, by the file of the query.
        top: how many neighbors were asked for; None for the number of the bank. Default: None.
    """

    support: MemoryBank
    about: Mapping[str, Any]
    gallery: Sequence[Path] = ()
    target: str | None = None
    own_rows: Mapping[Path, Sequence[int]] = field(default_factory=dict)
    top: int | None = None

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes."""
        return self.support.class_names

    @property
    def notes(self) -> list[str]:
        """What the user has to know of the support."""
        notes = []
        if self.own_rows:
            notes.append(
                f"{len(self.own_rows)} queries are images of the gallery; each is left out of its own neighbors"
            )
        if self.top is not None and self.top > len(self.support):
            notes.append(f"--top {self.top}: there are only {len(self.support)} to find")
        return notes

    def without(self, files: Sequence[Path]) -> MemoryBank | None:
        """The bank without the rows that are a query of the batch."""
        rows = [list(self.own_rows.get(path, ())) for path in files]
        return self.support.using(exclude=rows) if any(rows) else None

    def files(self, why: Explanation, index: int, target: str) -> list[Path]:
        """The files of the rows that the query was compared with, the most similar first."""
        return [Path(entry["file"]) for entry in self.entry(why, index) if "file" in entry]

    def class_files(self, name: str) -> Sequence[Path]:
        """The files of a class of the gallery; none for a bank from a file."""
        label = self.support.class_names.index(name)
        items = self.support.items[self.support.labels == label].tolist() if self.gallery else []
        return [self.gallery[item] for item in items[:MOST_SHOWN]]

    def entry(self, why: Explanation, index: int) -> list[dict[str, Any]]:
        """The rows with a positive weight, the most similar first."""
        return [self._hit(used) for used in why.supports_of(index) if used.weight > 0]

    def _hit(self, used: UsedSupport) -> dict[str, Any]:
        item = int(self.support.items[used.row])
        place = {"file": str(self.gallery[item])} if self.gallery else {"row": used.row, "item": item}
        name = self.support.class_names[int(self.support.labels[used.row])]
        return {**place, "class": name, "similarity": used.similarity, "weight": used.weight}

    def describe(self) -> dict[str, Any]:
        """The bank, and its options."""
        bank = self.support
        return {
            **self.about,
            "neighbors": {"k": bank.k, "rule": bank.neighbors, "temperature": bank.temperature, "rows": len(bank)},
        }


def make_support(job: ExplainJob, net: EmbeddingModel, device: str, unreadable: dict[Path, str]) -> JobSupport:
    """Make the support of a job.

    Args:
        job: the job.
        net: the model.
        device: the device of the model.
        unreadable: gets the reason for each file that cannot be read.

    Raises:
        ValueError: for a file that holds no memory bank, an unknown target, or a class without readable images.
        OSError: if the embeddings of a gallery cannot be written.
    """
    if job.supports is not None:
        return class_support(job.supports, "--support", job, net, device, unreadable)
    if job.gallery is not None:
        return _gallery_support(job, job.gallery, net, device, unreadable)
    assert job.bank is not None
    bank = MemoryBank.load(job.bank).to(device)
    if bank.weights not in (None, sha256_of_weights(net.model)):
        raise ValueError(
            f"--bank {printable_path(job.bank)} was made with other weights than those of {job.model.model}: its rows "
            "are no embeddings of this model"
        )
    bank = bank if job.top is None else bank.using(k=job.top)
    target = class_name(job.target, bank.class_names)
    support = BankSupport(bank, {"bank": str(job.bank)}, target=target, top=job.top)
    _warn_of(support)
    return support


def class_support(
    classes: Classes, option: str, job: ExplainJob, net: EmbeddingModel, device: str, unreadable: dict[Path, str]
) -> ClassSupport:
    """Make a support of images by class.

    Args:
        classes: files by class.
        option: the option of the files, for messages and the progress bar.
        job: the job.
        net: the model.
        device: the device of the model.
        unreadable: gets the reason for each file that cannot be read.

    Raises:
        ValueError: if no image of a class can be read.
    """
    keep_images = any(method.needs_images for method in job.methods)
    support = read_classes(classes, option, net, device, job.run, unreadable, keep_images=keep_images)
    return ClassSupport(support, classes, job.target)


class _Gallery(Dataset[Any]):
    """The images of a gallery as a data set."""

    def __init__(self, classes: Classes) -> None:
        self.paths = [path for paths in classes.values() for path in paths]
        self.labels = [label for label, paths in enumerate(classes.values()) for _ in paths]
        self.class_names = tuple(classes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        return read_image(self.paths[index]), self.labels[index]


def _gallery_support(
    job: ExplainJob, classes: Classes, net: EmbeddingModel, device: str, unreadable: dict[Path, str]
) -> BankSupport:
    """Embed a gallery, or read the embeddings of an earlier run."""
    gallery = _Gallery(classes)
    # Beside --out, and without its name: further runs with other results in the same place find the embeddings.
    path = job.out.parent / f"captum-fam-gallery-{_hash_of(classes, net, job)}.safetensors"
    # Other shards of the same work wait for the embeddings instead of making them too. The processes of torchrun make
    # them together.
    with lock_folder(path.with_suffix(".lock"), holds=shard_of_process().number == 1, waits=True):
        options: dict[str, Any] = {
            "batch_size": job.run.batch_size,
            "on_error": "skip",
            "progress": not job.run.quiet,
            "k": job.top or _GALLERY_NEIGHBORS,
            # Without classes there is no vote: all neighbors count.
            "neighbors": "predicted" if len(classes) > 1 else "all",
        }
        try:
            bank = MemoryBank.from_dataset(net, gallery, path, **options)
        except ValueError as error:
            if not path.is_file():
                raise
            # Embeddings that an earlier run kept, and that can be made again.
            warn_user(f"{error}: made again", 1)
            path.unlink(missing_ok=True)
            bank = MemoryBank.from_dataset(net, gallery, path, **options)
    report_unreadable({gallery.paths[item]: reason for item, reason in bank.skipped.items()}, unreadable)
    own_rows = rows_of_queries(bank, gallery.paths, list(job.queries))
    about = {"gallery_files": paths_as_text(classes), "gallery_embeddings": str(path)}
    support = BankSupport(bank.to(device), about, gallery.paths, job.target, own_rows, job.top)
    _warn_of(support)
    return support


def rows_of_queries(bank: MemoryBank, gallery: Sequence[Path], queries: Sequence[Path]) -> dict[Path, list[int]]:
    """The rows of a bank that are a query itself, by the file of the query.

    Args:
        bank: the bank of a gallery.
        gallery: the files of the gallery, one per item of the bank.
        queries: the files of the queries.
    """
    row_of_item = {item: row for row, item in enumerate(bank.items.tolist())}
    rows: dict[Path, list[int]] = {}
    for query, item in same_files(queries, gallery):
        if item in row_of_item:
            rows.setdefault(queries[query], []).append(row_of_item[item])
    return rows


def _warn_of(support: BankSupport) -> None:
    for note in support.notes:
        warn_user(note, 1)


def _hash_of(classes: Classes, net: EmbeddingModel, job: ExplainJob) -> str:
    """A hash of the files of a gallery, by class, path, size and time of change, and of all that makes an embedding."""
    files = [
        f"{name} {path.absolute()} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for name, paths in classes.items()
        for path in paths
        if path.is_file()
    ]
    text = "\n".join(files).encode("utf-8", "surrogateescape").hex()
    model = [repr(net.preprocessing.describe()), sha256_of_weights(net.model), repr(job.model.output)]
    return sha256_of(text, *model)[:16]
