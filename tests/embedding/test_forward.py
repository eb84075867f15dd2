"""Images in memory are embedded as the model embeds them, and other outputs are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from captum_fam.embedding.forward import check_embedding, embed_images


def test_embed_images_equals_the_model(make_net: Callable[..., nn.Module], make_images: Callable[..., Tensor]) -> None:
    net, images = make_net(head="linear"), make_images(4, seed=2)
    assert torch.allclose(embed_images(net, images, batch_size=3), net(images), atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_embeddings_that_are_no_real_numbers_are_refused_and_named(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"forward_func .*{dtype}"):
        check_embedding(torch.ones(2, 3, dtype=dtype))
