"""The rows of ``captum-fam report pairs``: the pairs of a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from captum_fam._text import printable_path
from captum_fam._warnings import warn_user
from captum_fam.cli.class_files import counts, report_unreadable
from captum_fam.cli.reports.images import ImageEmbedder, read_foil_images
from captum_fam.cli.reports.jobs import PairsJob
from captum_fam.cli.reports.pair_list import ListedPair
from captum_fam.cli.reports.queries import choose_rows
from captum_fam.cli.reports.rows import JobRows, classified, renamed
from captum_fam.explanation import Explanation
from captum_fam.explanation.pairs.one_call_for_pairs import FEWEST_OTHERS, explain_pairs
from captum_fam.explanation.reading.supports import PictureSupport
from captum_fam.image_files import names_of_files
from captum_fam.images import UnreadableImageError, read_image
from captum_fam.similarity import Similarity, get_similarity
from captum_fam.support.threshold import check_in_range

_WORDS = {True: "same", False: "different"}
_MOST_AT_ONCE = 32  # pairs


def pair_rows(job: PairsJob, embedder: ImageEmbedder) -> JobRows:
    """The pairs of a job.

    Args:
        job: the job.
        embedder: embeds images with the model of the job.

    Raises:
        ValueError: if no image of the list, or of the gallery, can be read, or for a threshold that no score reaches.
    """
    check_in_range(job.threshold, _similarity_of(embedder))
    chosen = _choose(job, embedder)
    unreadable = _unreadable(_files_of(chosen))
    if len(unreadable) == len(_files_of(chosen)):
        raise ValueError(
            f"{next(iter(unreadable.values()))}; no image of the list can be read. Its paths are relative to its folder"
        )
    report_unreadable(unreadable, embedder.unreadable)
    pairs = [pair for pair in chosen if pair.left not in unreadable and pair.right not in unreadable]
    names = names_of_files([Path(f"{pair.left.stem} - {pair.right.stem}.jpg") for pair in pairs])
    about: dict[str, Any] = {"pairs": job.source.name, "threshold": job.threshold}
    gallery = None
    if job.gallery is not None:
        about["gallery_images"] = counts(job.gallery)
        files = [file for members in job.gallery.values() for file in members]
        gallery = read_foil_images(files, "--gallery", job.page.seed, embedder)
    elif job.foil == "gallery" and len(_files_of(job.pairs)) - 2 >= FEWEST_OTHERS:
        # The average of all images of the list, however many rows are shown.
        gallery = read_foil_images(_files_of(job.pairs), printable_path(job.source), job.page.seed, embedder)
    has_truth = job.threshold is not None
    truth = {name: _WORDS[pair.same] for name, pair in zip(names, pairs, strict=True) if pair.same is not None}
    explanations = _explanations(job, embedder, pairs, names, gallery)
    facts = {} if job.threshold is None else {"threshold": f"{job.threshold:g}"}
    return JobRows(explanations, len(job.pairs), len(chosen), truth if has_truth else {}, about, facts)


def _explanations(
    job: PairsJob,
    embedder: ImageEmbedder,
    pairs: Sequence[ListedPair],
    names: Sequence[str],
    gallery: PictureSupport | None,
) -> Iterator[Explanation]:
    """The explanations of the pairs."""
    # In parts, because the images and the parts of their embeddings need not be in memory at once. A list of so few
    # images that they are no gallery is one part, so that its note has the number of all images.
    size = _MOST_AT_ONCE if gallery is not None or job.foil is None else max(1, len(pairs))
    with tqdm(total=len(pairs), desc="explaining", unit="pair", disable=job.run.quiet or None) as progress:
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            why = explain_pairs(
                embedder.net,
                [pair.left for pair in part],
                [pair.right for pair in part],
                method=job.methods,
                foil=job.foil,
                gallery=gallery,
                against=job.against,
                threshold=job.threshold if job.against == "threshold" else None,
                smooth=job.maps.smooth,
                names=names[start : start + size],
                batch_size=job.run.batch_size,
                top_matches=job.page.matches,
            )
            for index, pair in enumerate(part):
                one = renamed(why[index], [pair.right], [""])
                if job.threshold is not None:
                    one = classified(one, list(_WORDS.values()), _WORDS[float(one.plain_scores[0]) >= job.threshold])
                yield one
            progress.update(len(part))


def _choose(job: PairsJob, embedder: ImageEmbedder) -> list[ListedPair]:
    """The pairs that get a row, in the order of the rows."""
    page = job.page
    if not page.wrong_first or job.threshold is None:
        return choose_rows(job.pairs, page.max_rows, page.seed)
    vectors = embedder.embed(_files_of(job.pairs))
    similarity = _similarity_of(embedder)
    known = [pair for pair in job.pairs if pair.left in vectors and pair.right in vectors]
    wrong = set()
    for pair in known:
        score = float(similarity.score(vectors[pair.left][None], vectors[pair.right][None, None]))
        if (score >= job.threshold) != pair.same:
            wrong.add(pair)
    warn_user(f"{len(wrong)} of {len(known)} pairs are on the wrong side of the threshold", 1)
    return choose_rows(known or job.pairs, page.max_rows, page.seed, wrong)


def _similarity_of(embedder: ImageEmbedder) -> Similarity:
    return get_similarity(embedder.net.similarity or "cosine")


def _files_of(pairs: Sequence[ListedPair]) -> list[Path]:
    """The different files of pairs."""
    return list(dict.fromkeys(file for pair in pairs for file in (pair.left, pair.right)))


def _unreadable(files: Sequence[Path]) -> dict[Path, str]:
    """Why files cannot be read, by file."""
    reasons = {}
    for file in files:
        try:
            read_image(file)
        except UnreadableImageError as error:
            reasons[file] = str(error)
    return reasons
