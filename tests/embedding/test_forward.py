"""Images in memory are embedded as the model embeds them, and other outputs are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from captum_fam.embedding.forward import check_embedding, embed_images


def test_embed_images_equals_the_model(make_net: Callable[..., nn.Module], make_images: Callable[..., Tensor]) -> None:
    net, images = make_net(head="linear"), make_images(4, seed=2)
    assert torch.allclose(embed_images(net, images, batch_size=3), net(images), atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_embeddings_that_are_no_real_numbers_are_refused_and_named(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"model must give .*{dtype}"):
        check_embedding(torch.ones(2, 3, dtype=dtype))


@dataclass
class Output:
    """As models of transformers return it."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    image_embeds: Tensor | None = None


class Pair(NamedTuple):
    student: Tensor
    teacher: Tensor


class Pooled(NamedTuple):
    last_hidden_state: Tensor
    pooler_output: Tensor


POOLED, PROJECTED = torch.rand(2, 5), torch.rand(2, 3)


@pytest.mark.parametrize(
    ("output", "embedding"),
    [
        (POOLED, POOLED),
        (POOLED[:, :, None, None], POOLED),
        (POOLED[:, :, None, None, None], POOLED),
        (Output(torch.rand(2, 7, 5), POOLED, PROJECTED), PROJECTED),
        (Output(torch.rand(2, 7, 5), POOLED), POOLED),
        (Output(torch.rand(2, 5, 3, 3), POOLED[:, :, None, None]), POOLED),
        ({"pooler_output": POOLED, "image_embeds": None}, POOLED),
        (Pooled(torch.rand(2, 7, 5), POOLED), POOLED),
    ],
)
def test_the_embedding_is_taken_out_of_what_models_return(output: object, embedding: Tensor) -> None:
    assert torch.equal(check_embedding(output), embedding)
    assert torch.equal(embed_images(lambda images: output, torch.rand(2, 3, 4, 4)), embedding)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (
            Output(torch.rand(2, 7, 5)),
            TypeError,
            r"Output with the fields last_hidden_state \(2, 7, 5\); .* output=FIELD",
        ),
        (Pair(POOLED, PROJECTED), TypeError, r"Pair with the fields student \(2, 5\), teacher \(2, 3\)"),
        ({"logits": torch.rand(2, 5), "loss": 1.0}, TypeError, r"dict with the fields logits \(2, 5\), loss"),
        ((POOLED, PROJECTED), TypeError, r"a tuple of \(2, 5\), \(2, 3\); .*output=INDEX"),
        ([], TypeError, "a list of nothing"),
        (None, TypeError, "got NoneType"),
        (
            torch.rand(2, 7, 5),
            ValueError,
            r"got \(2, 7, 5\); for a sequence of tokens, take the class token or average",
        ),
        (torch.rand(2, 7, 5, 5), ValueError, r"got \(2, 7, 5, 5\); pool or flatten"),
        (torch.rand(2), ValueError, r"got \(2,\)"),
    ],
)
def test_an_output_without_an_embedding_is_refused_with_its_parts(
    output: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_embedding(output)
