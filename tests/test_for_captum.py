"""The two defects of Captum on the page for its maintainers: the cases run, and do what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import captum
import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs" / "for-captum.md"


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    """The names that the code of the page leaves, with all of it run in order."""
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_the_sensitivity_of_one_layer_map_is_too_large_by_the_root_of_the_number_of_samples(
    cases: dict[str, Any],
) -> None:
    if all(abs(factor - 1) < 1e-4 for factor in cases["factors"].values()):
        pytest.skip(f"captum {captum.__version__} has mended sensitivity_max for layer methods")
    assert cases["factors"] == pytest.approx({4: 2.0, 16: 4.0}, rel=1e-4)


def test_the_sensitivity_of_several_layer_maps_is_an_error(cases: dict[str, Any]) -> None:
    if not isinstance(cases["of_a_batch"], Exception):
        pytest.skip(f"captum {captum.__version__} has mended sensitivity_max for layer methods")
    assert re.search("size of tensor", str(cases["of_a_batch"]))


def test_the_remedy_gives_the_sensitivity_by_definition(cases: dict[str, Any]) -> None:
    cam, image = cases["cam"], cases["image"]
    seen: list[torch.Tensor] = []

    def explain(images: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        seen.append(images[0])
        return cases["as_tuple"](images, **options)

    found = cases["sensitivity"](explain, image, 4)
    whole = cam.attribute(image, target=0).detach()
    perturbed = torch.cat([cam.attribute(one, target=0).detach() for one in seen[1:]])
    largest = (perturbed - whole).flatten(1).norm(dim=1).amax() / whole.norm()
    torch.testing.assert_close(found, largest[None])


def test_an_activation_is_replaced_by_that_of_a_thread_that_only_predicts(cases: dict[str, Any]) -> None:
    if cases["is_of_a"]:
        pytest.skip(f"captum {captum.__version__} has mended layer hooks in several threads")
    assert cases["is_of_b"]


def test_grad_cam_fails_while_another_thread_predicts(cases: dict[str, Any]) -> None:
    if isinstance(cases["answers"]["LayerGradCam"], torch.Tensor):
        pytest.skip(f"captum {captum.__version__} has mended layer hooks in several threads")
    assert isinstance(cases["answers"]["LayerGradCam"], RuntimeError)
