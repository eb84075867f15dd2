"""The maps of both sides of pairs of images, from one run of the model for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from captum_fam._arithmetic import plain_arithmetic
from captum_fam._progress import progress_bar
from captum_fam.attr.account import Shares
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.embedding_parts import EmbeddingParts
from captum_fam.attr.image_run import ImageRun
from captum_fam.attr.layer_pairs import LayerPairs
from captum_fam.attr.layer_similarity_cam import LayerSimilarityCAM
from captum_fam.attr.registry import MapMethod
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.embedding.forward import embed_images
from captum_fam.explanation.batch import explain_batch
from captum_fam.explanation.pairs.pair_sides import (
    ExplainedPairs,
    PairFoil,
    PairGallery,
    PairLinks,
    Side,
    SideMaps,
    exact_sides,
    support_of_side,
)
from captum_fam.explanation.reading.layers import ChosenLayers
from captum_fam.explanation.reading.methods import options_of
from captum_fam.explanation.reading.model import ExplainedModel
from captum_fam.functional import widen
from captum_fam.similarity import Similarity
from captum_fam.support import Gallery, SimilarityToSupport, SupportSet


@dataclass
class _Known:
    """What is known of the images of some pairs while they are run.

    Attributes:
        links: the pairs.
        similarity: the similarity that the model decides with.
        embeddings: the embeddings ``(J,)`` of the images that have been run, by row.
        parts: the parts of these embeddings, if there is an exact map.
        sides: the maps that have been made.
    """

    links: PairLinks
    similarity: Similarity
    embeddings: dict[int, Tensor] = field(default_factory=dict)
    parts: dict[int, EmbeddingParts] = field(default_factory=dict)
    sides: SideMaps = field(default_factory=dict)

    @cached_property
    def gallery(self) -> PairGallery | None:
        """The gallery of the pairs. For that of the other images, the embeddings of all images must be known."""
        if self.links.gallery != "others":
            return self.links.gallery
        embeddings = torch.stack([self.embeddings[row] for row in range(len(self.links.images))])
        return PairGallery(Gallery(embeddings), self.links.pairs)

    def foils(self, uses: Sequence[tuple[int, int]]) -> Sequence[PairFoil | None]:
        """The foils of some sides of pairs, whose images have been run."""
        if self.gallery is None:
            return [self.links.foils[pair][side] for pair, side in uses] if self.links.foils else [None] * len(uses)
        pairs = [pair for pair, _ in uses]
        queries = torch.stack([self.embeddings[self.links.pairs[pair][0]] for pair in pairs])
        return self.gallery.foils(pairs, queries, self.similarity)

    @property
    def contrasts(self) -> tuple[bool, ...]:
        """Whether maps are contrasted: without the contrast, and with it where there is one."""
        return (False, True) if self.links.has_contrast else (False,)

    def has_all_for(self, rows: Sequence[int], uses: Sequence[Sequence[tuple[int, int]]]) -> bool:
        """Whether all embeddings are known that the maps of some images need."""
        if self.links.gallery == "others":
            return len(self.embeddings) == len(self.links.images)
        return all(self.links.pairs[pair][1 - side] in self.embeddings for row in rows for pair, side in uses[row])

    def partners(self, uses: Sequence[tuple[int, int]]) -> Tensor:
        """The embeddings of the other images of some pairs, ``(B, J)``.

        Args:
            uses: pairs, each with the side of the image whose partner is asked for.
        """
        return torch.stack([self.embeddings[self.links.pairs[pair][1 - side]] for pair, side in uses])


@dataclass
class PairRuns:
    """Runs the images of pairs, and makes the maps of both sides.

    The exact map, and the maps of other methods of this package, are made from one run of the model for each image. The
    matches of the exact map take one way back through the layers behind the explained layer for each of its positions,
    or for each feature of the embedding; without matches, each map takes one way back.

    The graph of a batch of images is kept until the embeddings of all partners of its images are known. For a gallery
    of the other images, which are more than ``batch_size``, the embeddings are computed first, in a pass of their own:
    otherwise the graphs of all images would be in memory at once. Methods of Captum, and methods that compare positions
    of images, run the model for each side of each pair.

    Attributes:
        model: the model.
        layers: the layer.
        methods: the methods.
        options: arguments of the constructors of the methods by name.
        similarity: the similarity that the model decides with.
        batch_size: how many images go through the model at once.
        notes: for each method the list to which its warnings are added.
        top_matches: how many matches of positions each pair lists; 0 for none, and no pair decomposition.
        smooth: the side of the mean filter over every map; matches and decompositions are not smoothed. Default: 1, no
            filter.
    """

    model: ExplainedModel
    layers: ChosenLayers
    methods: Sequence[MapMethod]
    options: Mapping[str, Any]
    similarity: Similarity
    batch_size: int
    notes: Sequence[list[str]]
    top_matches: int
    smooth: int = 1

    def explain(self, links: PairLinks) -> ExplainedPairs:
        """Make the maps of both sides of all pairs, by all methods.

        Args:
            links: the images, the pairs and their contrasts.

        Raises:
            ValueError: for a list of layers, or a layer or a method that does not fit.
        """
        if self.layers.is_list:
            raise ValueError(f"layer is a list of {len(self.layers.modules)}, but pairs are explained at one layer")
        known = _Known(links, self.similarity)
        exact, numbers = self._exact, range(len(self.methods))
        kept = [number for number in numbers if number != exact and self._keeps_run(self.methods[number])]
        others = [number for number in numbers if number != exact and number not in kept]
        total = len(links.images) + 2 * len(links.pairs) * len(others)
        with progress_bar(total=total, desc="pairs", unit="image", leave=False) as bar:
            self._run_images(known, kept, bar.update)
            for number in others:
                self._run_again(number, known, bar.update)
        similarities, scores = self._compare(known)
        decompositions = None
        if exact is not None:
            layer_pairs = self._layer_pairs()
            decompositions = [layer_pairs.decompose(*(known.parts[row] for row in pair)) for pair in links.pairs]
        sides = {key: side.smoothed(self.smooth) for key, side in known.sides.items()}
        return ExplainedPairs(similarities, scores, sides, decompositions, exact, self.top_matches)

    @property
    def _exact(self) -> int | None:
        """The number of the method whose maps follow from the parts of the embeddings; None without matches."""
        if not self.top_matches:
            return None
        makes = [method.make for method in self.methods]
        are_exact = [isinstance(make, type) and issubclass(make, LayerSimilarityCAM) for make in makes]
        return are_exact.index(True) if any(are_exact) else None

    @property
    def _token_grid(self) -> TokenGridLike | None:
        """How the tokens of the layer are laid out."""
        grid: TokenGridLike | None = self.options.get("token_grid", self.layers.token_grid)
        return grid

    def _layer_pairs(self) -> LayerPairs:
        """What runs the images. Without the exact map only the runs are used, which no similarity changes."""
        taken = {} if self._exact is None else options_of(self.methods[self._exact], self.options)
        options = {**taken, "token_grid": self._token_grid}
        similarity = "cosine" if self._exact is None else self.similarity
        return LayerPairs(self.model.forward_func, self.layers.modules[0], similarity=similarity, **options)

    def _keeps_run(self, method: MapMethod) -> bool:
        """Whether the maps of a method can be made from a run that was made for the exact map."""
        if not (isinstance(method.make, type) and issubclass(method.make, SimilarityLayerAttribution)):
            return False
        made = method.create(self.model.forward_func, self.layers.argument, **options_of(method, self.options))
        return self._layer_pairs().gives_maps_of(made) and not method.needs_images

    def _run_images(self, known: _Known, kept: Sequence[int], count: Callable[[int], object]) -> None:
        """Run each image once, and make the maps of the methods that are made from the runs."""
        images, uses = known.links.images, known.links.uses
        if known.links.gallery == "others" and kept and len(images) > self.batch_size:
            for rows, batch in images.batches(self.batch_size):
                known.embeddings |= zip(rows, widen(embed_images(self.model.forward_func, batch)), strict=True)
        layer_pairs = self._layer_pairs()
        waiting: list[tuple[list[int], ImageRun]] = []
        for rows, batch in images.batches(self.batch_size):
            run = layer_pairs.noted_run(self.notes[0], batch)
            known.embeddings |= zip(rows, run.embedding, strict=True)
            if self._exact is not None:
                known.parts |= {row: run.parts()[index] for index, row in enumerate(rows)}
            waiting += [(rows, run)] if kept else []
            del run  # the graph goes with the last reference
            ready = [one for one in waiting if known.has_all_for(one[0], uses)]
            waiting = [one for one in waiting if one not in ready]
            while ready:
                self._map_run(*ready.pop(), uses, known, kept)
            count(len(rows))

    def _map_run(
        self,
        rows: Sequence[int],
        run: ImageRun,
        uses: Sequence[Sequence[tuple[int, int]]],
        known: _Known,
        kept: Sequence[int],
    ) -> None:
        """The maps of the images of one run, by the methods that are made from it, for each pair of each image."""
        for slot in range(max(len(uses[row]) for row in rows)):
            # An image of fewer pairs is explained again for one of them, so that the run stays one batch.
            chosen = [uses[row][slot % len(uses[row])] for row in rows]
            for is_contrasted in known.contrasts:
                scores = self._scores(known, chosen, is_contrasted)
                for number in kept:
                    made = self._maps_of(run, number, scores)
                    for row, (pair, side), one in zip(rows, chosen, made, strict=True):
                        if slot < len(uses[row]):
                            known.sides[number, pair, side, is_contrasted] = one

    def _scores(self, known: _Known, uses: Sequence[tuple[int, int]], is_contrasted: bool) -> SimilarityToSupport:
        """The forward function that compares image b with its partner, which is class b."""
        partners, links = known.partners(uses), known.links
        if is_contrasted:
            foils = known.foils(uses)
            support = support_of_side(partners, foils, links.against, links.threshold)
        else:
            support = support_of_side(partners, [None] * len(uses), None, None)
        return SimilarityToSupport(self.model.forward_func, support, self.similarity)

    def _maps_of(self, run: ImageRun, number: int, scores: SimilarityToSupport) -> list[Side]:
        """The maps of all images of a run, by one method."""
        method = self.methods[number]
        attribution = method.create(scores, self.layers.argument, **options_of(method, self.options))
        if isinstance(attribution, LayerSimilarityCAM):
            attribution.has_warned = True  # its warning measures layers, again for every object
        targets = torch.arange(len(run), device=run.embedding.device)
        details = run.noted_maps(self.notes[number], attribution, target=targets)
        maps = widen(details.attributions.detach()).sum(1, keepdim=True)  # type: ignore[union-attr]  # one layer
        comparison = details.comparison
        if comparison is not None:
            maps = method.without_noise(maps, lambda: comparison.magnitude)
        return _sides_of(maps, details.coverage, details.shares)

    def _run_again(self, number: int, known: _Known, count: Callable[[int], object]) -> None:
        """The maps of a method that runs the model itself, batch by batch of images of one size."""
        method, links = self.methods[number], known.links
        options = options_of(method, self.options)
        for side in (0, 1):
            for pairs, inputs in _batches_of_side(links, side, 1 if method.needs_images else self.batch_size):
                for is_contrasted in (False,) if method.needs_images else known.contrasts:
                    if method.needs_images:
                        partner = links.images.inputs[links.pairs[pairs[0]][1 - side]]
                        support = SupportSet(partner[None])
                        scores = SimilarityToSupport(self.model.forward_func, support, self.similarity)
                    else:
                        scores = self._scores(known, [(pair, side) for pair in pairs], is_contrasted)
                    attribution = method.create(scores, self.layers.argument, **options)
                    targets = torch.arange(len(pairs), device=inputs.device)
                    batch = explain_batch(method, attribution, scores, inputs, targets, self.notes[number])
                    made = _sides_of(batch.attributions, batch.coverage, batch.shares)
                    for pair, one in zip(pairs, made, strict=True):
                        known.sides[number, pair, side, is_contrasted] = one
                count(len(pairs))

    def _compare(self, known: _Known) -> tuple[Tensor, Tensor]:
        """Similarities ``(n,)`` and explained scores ``(n, 2)``; and the exact maps."""
        similarities: list[float] = []
        scores: list[list[float]] = [[], []]
        for start in range(0, len(known.links.pairs), self.batch_size):
            pairs = range(start, min(start + self.batch_size, len(known.links.pairs)))
            for side in (0, 1):
                own = known.partners([(pair, 1 - side) for pair in pairs])
                self.model.length = own.shape[1]
                targets = torch.arange(len(pairs), device=own.device)
                for is_contrasted in known.contrasts:
                    support = self._scores(known, [(pair, side) for pair in pairs], is_contrasted).embedded()
                    with plain_arithmetic(own.device):
                        comparison = support.compare(own, targets, self.similarity)
                        if self._exact is not None:
                            parts = [known.parts[known.links.pairs[pair][side]] for pair in pairs]
                            for pair, made in zip(pairs, exact_sides(parts, comparison), strict=True):
                                known.sides[self._exact, pair, side, is_contrasted] = made
                    if side == 0 and not is_contrasted:
                        similarities += comparison.score.tolist()
                scores[side] += comparison.score.tolist()
        return torch.tensor(similarities, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64).T


def _batches_of_side(links: PairLinks, side: int, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """The pairs in batches whose images of one side have one size, and these images."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for pair, rows in enumerate(links.pairs):
        by_size.setdefault(tuple(links.images.inputs[rows[side]].shape), []).append(pair)
    for pairs in by_size.values():
        for start in range(0, len(pairs), batch_size):
            part = pairs[start : start + batch_size]
            yield part, torch.stack([links.images.inputs[links.pairs[pair][side]] for pair in part])


def _sides_of(maps: Tensor, coverage: Any, shares: Shares | Any) -> list[Side]:
    """The map ``(B, 1, *spatial)`` and the account of each image of a batch."""
    if coverage is None or shares is None:
        return [Side(map_[0]) for map_ in maps]
    return [
        Side(map_[0], float(coverage[index]), {name: float(share[index]) for name, share in shares.items()})
        for index, map_ in enumerate(maps)
    ]
