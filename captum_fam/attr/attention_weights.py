"""The attention of a transformer, computed again from the calls of torch that a forward pass makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from captum_fam._arithmetic import plain_arithmetic
from captum_fam.attr.layer_hooks import run_without_graph
from captum_fam.attr.way_back.torch_calls import opened
from captum_fam.attr.way_back.view import current_view
from captum_fam.functional import widen

_PRODUCTS = ("matmul", "__matmul__", "__rmatmul__", "bmm", "einsum")
# Calls whose result has the values of their first argument, perhaps in another type.
_CONVERSIONS = ("to", "type_as", "type", "float", "half", "bfloat16", "double", "dropout", "contiguous", "clone")


class AttentionMode(TorchFunctionMode):
    """A function mode that hands on the self-attention over all tokens, block by block, while a model runs.

    Three calls of torch are read: ``scaled_dot_product_attention``, whose weights are computed again from its queries
    and keys, head by head; the calls inside ``multi_head_attention_forward``, and so ``nn.MultiheadAttention``; and
    ``softmax`` over the last of two dimensions of equal size, where the next product takes the weights to the values:
    attention written by hand. A kernel of another package and a scripted model make no such call. Several attentions
    side by side in one block are read as if they came one after the other.

    Args:
        batch: how many images go through the model.
        keep: ``keep(attention, view)`` is called for every block with the mean over the heads, ``(B, T, T)``, whose
            rows sum to one, and the number of the view of the image that runs.

    Attributes:
        others: attention of other kinds that was seen, in words.
        is_over_all_tokens: whether every block was self-attention over all tokens. Queries that only pool the tokens of
            the block before them are no block.
        is_unsure: whether heads and images could not be told apart, so that the images have to go through the model one
            by one.
    """

    def __init__(self, batch: int, keep: Callable[[Tensor, int], None]) -> None:
        super().__init__()
        self.others: dict[str, None] = {}  # in the order in which they were seen, each once
        self.is_over_all_tokens = True
        self.is_unsure = False
        self._tokens = 0  # of the last block
        self._weights: list[Tensor] = []  # the last softmax and its conversions, until a product takes them
        self._is_in_torch = False  # inside torch's own attention, where images come before heads
        self._batch = batch
        self._keep = keep

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for every function of torch while the mode is active."""
        kwargs = kwargs or {}
        if func is torch.nn.functional.multi_head_attention_forward:
            self._is_in_torch = True
            try:
                with self:  # the function is written in Python, and calls one of the other two
                    return opened(func)(*args, **kwargs)
            finally:
                self._is_in_torch = False
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if func is torch.nn.functional.scaled_dot_product_attention:
            self._read_queries_and_keys(*args, **kwargs)
        elif name == "softmax" and isinstance(result, Tensor):
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            if dim in (-1, result.dim() - 1) and result.dim() > 2 and result.shape[-1] > 1:
                self._weights = [result]
        elif self._weights:
            self._follow_weights(name, [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)], result)
        return result

    def _follow_weights(self, name: str, given: Sequence[Tensor], result: Any) -> None:
        """Follow the last softmax through its conversions to the product that takes it to the values."""
        if name in _CONVERSIONS and isinstance(result, Tensor) and given and self._are_weights(given[0]):
            self._weights.append(result)
        elif name in _PRODUCTS:
            values = [one for one in given if not self._are_weights(one)]
            if len(values) == 1 < len(given):
                self._read_weights(self._weights[0], values[0])
                self._weights = []

    def _are_weights(self, tensor: Tensor) -> bool:
        """Whether a tensor is, or is a view of, the last softmax or one of its conversions."""
        return tensor.layout is torch.strided and any(
            tensor.untyped_storage().data_ptr() == one.untyped_storage().data_ptr() for one in self._weights
        )

    def _read_weights(self, weights: Tensor, values: Tensor) -> None:
        """Keep the result of a softmax, ``(B, H, T, T)`` or ``(B * H, T, T)``, which weights the values of tokens."""
        *groups, n_queries, n_keys = weights.shape
        # Attention of T channels to each other, over as many tokens, has the same shapes.
        if not self._is_in_torch and n_queries == n_keys and list(values.shape[-2:]) == [n_keys, n_keys]:
            found = f"weights of {n_keys} tokens or of {n_keys} channels (images of another size tell these apart)"
            self.others[found] = None
            self.is_over_all_tokens = False
            return
        heads = self._heads(groups, n_queries, n_keys)
        if heads:
            with plain_arithmetic(weights.device):
                self._keep(widen(weights).reshape(self._batch, heads, n_queries, n_keys).mean(1), current_view())

    def _read_queries_and_keys(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        """Keep the weights of ``scaled_dot_product_attention``, whose arguments these are."""
        *groups, n_queries, features = query.shape
        n_keys = key.shape[-2]
        heads = self._heads(groups, n_queries, n_keys)
        if not heads:
            return
        with plain_arithmetic(query.device):
            if enable_gqa:
                key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            key = key.expand(*groups, n_keys, features)  # one key for all heads
            mask = None if attn_mask is None else attn_mask.expand(*groups, n_queries, n_keys)
            if is_causal:
                mask = (
                    torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device).tril().expand(*groups, -1, -1)
                )
            queries, keys = (widen(one).reshape(self._batch, heads, -1, features) for one in (query, key))
            masks = None if mask is None else mask.reshape(self._batch, heads, n_queries, n_keys)
            total = torch.zeros((), dtype=queries.dtype, device=queries.device)
            # One head after the other, because the weights of all heads are what the fused call keeps out of memory.
            for head in range(heads):
                logits = queries[:, head] @ keys[:, head].mT * (features**-0.5 if scale is None else scale)
                if masks is not None:
                    mask = masks[:, head]
                    logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
                total = total + logits.softmax(-1)
            self._keep(total / heads, current_view())

    def _heads(self, groups: Sequence[int], n_queries: int, n_keys: int) -> int:
        """The number of heads of self-attention over all tokens; 0 for another kind, which is noted."""
        if n_queries != n_keys:
            queries = "1 query" if n_queries == 1 else f"{n_queries} queries"
            self.others[f"attention of {queries} to {n_keys} tokens"] = None
            self.is_over_all_tokens &= n_keys == self._tokens
            return 0
        self._tokens = n_keys
        if len(groups) <= 2 and self._batch == math.prod(groups):  # one head
            return 1
        if len(groups) == 1 and groups[0] % self._batch == 0:  # heads and images in one dimension
            self.is_unsure |= self._batch > 1 and not self._is_in_torch
            return groups[0] // self._batch
        if len(groups) == 2 and self._batch in groups:
            self.is_unsure |= self._batch == groups[1] > 1
            return math.prod(groups) // self._batch
        self.others[f"attention within windows of {n_keys} tokens"] = None
        self.is_over_all_tokens = False
        return 0


@contextmanager
def watch_attention(batch: int, keep: Callable[[Tensor, int], None]) -> Iterator[AttentionMode]:
    """Hand on the attention of the forward passes inside the context, which run without a graph.

    Args:
        batch: how many images go through the model.
        keep: as for :class:`AttentionMode`.

    Example:
        >>> block = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
        >>> kept = []
        >>> with watch_attention(2, lambda attention, view: kept.append(attention)):
        ...     block(torch.rand(2, 5, 8)).shape
        torch.Size([2, 5, 8])
        >>> kept[0].shape
        torch.Size([2, 5, 5])
    """
    with run_without_graph(), AttentionMode(batch, keep) as mode:
        yield mode
