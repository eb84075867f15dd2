"""The work of ``captum-fam explain``: reads queries batch by batch, explains them, and hands them to the writer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from captum_fam._files import lock_folder, try_folder
from captum_fam._warnings import warn_user
from captum_fam.cli.advice import in_options
from captum_fam.cli.class_files import report_unreadable
from captum_fam.cli.explain import ExplainJob
from captum_fam.cli.explain_files import QueryWriter, names_of_results
from captum_fam.cli.explain_supports import JobSupport, class_support, make_support
from captum_fam.cli.out_files import check_results_folder
from captum_fam.embedding.ranks import joined
from captum_fam.explanation import Explainer
from captum_fam.explanation.reading.pictures import PictureBatch, read_batches
from captum_fam.explanation.reading.supports import float_type_of
from captum_fam.models import EmbeddingModel

T = TypeVar("T")


def explain_files(job: ExplainJob) -> tuple[int, int]:
    """Explain the queries of this process and write the results; the manifest is written last.

    Args:
        job: the queries, supports, methods and model.

    Returns:
        The number of explained queries, and the number of images that could not be read, supports included.

    Raises:
        ValueError: for a model that cannot be loaded, a method that cannot explain the model, an unknown target, a
            class without readable images, or a folder with files of somebody else that have the names of results.
        OSError: if the results cannot be written, or another process works in their folder.
    """
    try_folder(job.out)
    check_results_folder(job.out, names_of_results(job))
    net = job.model.load()
    with ExitStack() as stack:
        # Processes that share the queries share the folder, and each locks its own part.
        stack.enter_context(
            lock_folder(job.out / job.shard.file_name(".queries", "") if job.shard.count > 1 else job.out)
        )
        ranks = stack.enter_context(joined(job.run.device))
        net.model.to(ranks.device)
        unreadable: dict[Path, str] = {}
        support = make_support(job, net, ranks.device, unreadable)
        explainer = _make_explainer(job, net, ranks.device, support, unreadable)
        with QueryWriter(job, support) as writer:
            chunks = _chunks_of_shard(job)
            _explain_batches(job, chunks, net, ranks.device, support, explainer, writer, unreadable)
            if writer.n_written or not chunks:
                writer.finish(net, unreadable)  # else the results of an earlier run stay
        ranks.wait()  # torchrun ends all processes when one ends with an exit code, as after unreadable images
    return writer.n_written, len(unreadable)


def _explain_batches(
    job: ExplainJob,
    chunks: list[list[Path]],
    net: EmbeddingModel,
    device: str,
    support: JobSupport,
    explainer: Explainer,
    writer: QueryWriter,
    unreadable: dict[Path, str],
) -> None:
    told: set[str] = set()
    if not chunks:
        warn_user(
            f"there are no queries for shard {job.shard.number}/{job.shard.count}: shards share whole batches of "
            f"--batch-size {job.run.batch_size} queries, so that all give the results of one process",
            1,
        )
    with tqdm(total=sum(map(len, chunks)), desc="explaining", unit="image", disable=job.run.quiet or None) as progress:
        for files, batch, reasons in ahead(_read(chunks, job, net, device)):
            report_unreadable(reasons, unreadable)
            progress.update(len(reasons))
            if batch is None:
                continue
            notes: list[str] = []
            why = explainer.noted(
                notes,
                batch.inputs,
                target=support.target,
                images=batch.photos,
                names=[job.queries[path] for path in files],
                support=support.without(files),
            )
            notes = [*filter(None, map(in_options, notes))]
            for note in dict.fromkeys(notes):
                if note not in told:
                    warn_user(note, 1)
            told.update(notes)
            for line in writer.write([why, *why.beside], files, batch.sizes):
                tqdm.write(line)
            progress.update(len(files))


def _chunks_of_shard(job: ExplainJob) -> list[list[Path]]:
    """The queries of this process, batch by batch. The batches, and so the results, are those of a single process."""
    files, size = list(job.queries), job.run.batch_size
    return job.shard.share([files[start : start + size] for start in range(0, len(files), size)])


def _read(
    chunks: list[list[Path]], job: ExplainJob, net: EmbeddingModel, device: str
) -> Iterator[tuple[list[Path], PictureBatch | None, dict[Path, str]]]:
    """Batches with their files; after each chunk, the reasons for its files that cannot be read."""
    for paths in chunks:
        reasons: dict[int, str] = {}
        dtype = float_type_of(net.model)
        for batch in read_batches(paths, net.preprocessing, job.run.batch_size, device, reasons, dtype):
            yield [paths[position] for position in batch.positions], batch, {}
        yield [], None, {paths[position]: reason for position, reason in reasons.items()}


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Make the next item in another thread while the caller works on the present one.

    Args:
        items: an iterator whose items are not None.

    Yields:
        The items in their order.

    Example:
        >>> list(ahead(iter("abc")))
        ['a', 'b', 'c']
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item


def _make_explainer(
    job: ExplainJob, net: EmbeddingModel, device: str, support: JobSupport, unreadable: dict[Path, str]
) -> Explainer:
    """The explainer of all methods, with the support and the contrast of the job."""
    foil: Any = job.foil
    if foil is not None and not isinstance(foil, str):
        foil = class_support(foil, "--foil", job, net, device, unreadable).support
    return Explainer(
        net,
        support.support,
        method=job.methods,
        foil=foil,
        against=job.against,
        threshold=job.threshold,
        smooth=job.maps.smooth,
        batch_size=job.run.batch_size,
    )
