"""A registered name belongs to one part; the same part may be defined again, as a cell of a notebook does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

from captum_fam import register_method, register_model, register_similarity
from captum_fam.attr import METHODS, LayerMaps, SimilarityLayerAttribution
from captum_fam.experiments import Column, FewShot, register_measure, register_protocol
from captum_fam.experiments.measures.base import MEASURES
from captum_fam.experiments.protocols.registry import PROTOCOLS
from captum_fam.models import registry as models
from captum_fam.similarity import EuclideanDifference
from captum_fam.similarity import registry as similarities

REGISTRIES: dict[str, dict[str, Any]] = {
    "method": METHODS,
    "model": models._MODELS,
    "similarity": similarities._MAKERS,
    "measure": MEASURES,
    "protocol": PROTOCOLS,
}
KINDS = sorted(REGISTRIES)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    before = {kind: dict(registry) for kind, registry in REGISTRIES.items()}
    yield
    for kind, registry in REGISTRIES.items():
        registry.clear()
        registry.update(before[kind])


def register(kind: str, name: str) -> Any:
    """Run a cell of a notebook that defines a part of a kind and registers it."""
    if kind == "method":

        @register_method(name)
        class Map(SimilarityLayerAttribution):
            def map_layers(self, call: Any) -> LayerMaps:
                return LayerMaps(call.activations)

        return Map
    if kind == "model":

        @register_model(name, size=32)
        def network() -> nn.Module:
            return nn.Flatten()

        return network
    if kind == "similarity":

        @register_similarity(name)
        class Distance(EuclideanDifference):
            pass

        return Distance
    if kind == "measure":

        @register_measure(name, columns=[Column(f"{name}-column")])
        def measured(batch: Any, conventions: Any) -> Any:
            return batch.maps.mean()

        return measured

    @register_protocol(name)
    class OwnProtocol(FewShot):
        pass

    return OwnProtocol


def held(kind: str, name: str) -> Any:
    """The class or function that has a name."""
    entry = REGISTRIES[kind][name]
    attribute = {"method": "make", "model": "factory", "measure": "compute"}.get(kind)
    return entry if attribute is None else getattr(entry, attribute)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_that_is_defined_again_takes_the_place_of_the_old_one(kind: str) -> None:
    first, second = register(kind, "mine"), register(kind, "mine")
    assert first is not second
    assert held(kind, "mine") is second


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_of_another_part_is_refused_and_keeps_its_part(kind: str) -> None:
    first = register(kind, "mine")
    other = {
        "method": lambda: register_method("mine", first.__base__),
        "model": lambda: register_model("mine", nn.Flatten),
        "similarity": lambda: register_similarity("mine", EuclideanDifference),
        "measure": lambda: register_measure("mine")(min),
        "protocol": lambda: register_protocol("mine")(type("Other", (FewShot,), {})),
    }[kind]
    with pytest.raises(ValueError, match=f"'mine' is taken by another {kind}; choose another name"):
        other()
    assert held(kind, "mine") is first


def test_two_functions_without_a_name_of_their_own_are_two_parts() -> None:
    register_similarity("mine", lambda: EuclideanDifference())
    with pytest.raises(ValueError, match="'mine' is taken"):
        register_similarity("mine", lambda: EuclideanDifference())
