"""What a transformer attends to, as Captum layer attributions: baselines for every table of map methods.

Attention says where a block takes its values from. The maps do not depend on the support, and sum to no score.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from captum_fam._arithmetic import plain_arithmetic
from captum_fam.attr.attention_weights import AttentionMode, watch_attention
from captum_fam.attr.baselines import SupportBlindAttribution
from captum_fam.attr.call import LayerCall, LayerMaps
from captum_fam.attr.tokens import TokenGrid, TokenHints
from captum_fam.attr.way_back.where import CLASS_TOKEN, FIRST_POSITION, token_positions


class AttentionAttribution(SupportBlindAttribution):
    """Base class of the two methods, which run the model once more. A subclass defines ``_fold``."""

    def map_layers(self, call: LayerCall) -> LayerMaps:
        """Lay a row of the attention out on the grid of each layer."""
        if not call.sum_channels:
            raise ValueError(f"attr_dim_summation=False: the map of {type(self).__name__} has no shares of channels")
        attention = self._attention(call)
        with plain_arithmetic(call.run.embedding.device):
            passes = zip(call.run.passes, self.passes_of(call.run), strict=True)
            maps: list[tuple[Tensor, ...]] = []
            for of_layer, laid_out in passes:
                views = [
                    self.lay_back(self._lay_out(attention[one.view], one.tensors[0], grid[0]), view)
                    for one, (view, grid) in zip(of_layer, laid_out, strict=True)
                ]
                maps.append((torch.stack(views).mean(0),))
        return LayerMaps(maps)

    def _attention(self, call: LayerCall) -> dict[int, Tensor]:
        """The attention that is shown, ``(B, T, T)``, by the number of the view of the image."""
        batch = len(call.run.embedding)
        arguments = (*call.inputs, *(call.args or ()))
        folded, mode = self._watch(batch, arguments)
        if mode.is_unsure and mode.is_over_all_tokens:
            each = [self._watch(1, [_row(one, image, batch) for one in arguments]) for image in range(batch)]
            folded = {view: torch.cat([found[view] for found, _ in each]) for view in each[0][0]}
            mode = each[0][1]
        if not folded or not mode.is_over_all_tokens:
            found = ", ".join(mode.others) or "no call of an attention or a softmax over tokens"
            raise ValueError(
                f"{type(self).__name__} needs a transformer whose blocks attend to all tokens, and found {found}; use "
                'another method for this model, such as LayerMeanActivation ("mean-activation")'
            )
        return folded

    def _watch(self, batch: int, arguments: Iterable[object]) -> tuple[dict[int, Tensor], AttentionMode]:
        """The joined attention of one pass by the number of the view, and what was seen on the way."""
        folded: dict[int, Tensor] = {}

        def keep(attention: Tensor, view: int) -> None:
            folded[view] = self._fold(folded.get(view), attention)

        with watch_attention(batch, keep) as mode:
            self.model(*arguments)
        return folded, mode

    @abstractmethod
    def _fold(self, before: Tensor | None, attention: Tensor) -> Tensor:
        """Join the attention of the next block, ``(B, T, T)``, to that of the blocks before it."""

    def _lay_out(self, attention: Tensor, tensor: Tensor, grid: Tensor) -> Tensor:
        """One row of the attention as a map.

        Args:
            attention: ``(B, T, T)``.
            tensor: the tensor of the layer, tokens or a grid of positions.
            grid: the same tensor, laid out as ``(B, N, *spatial)``.
        """
        are_tokens = self.token_grid is not None and tensor.dim() == 3
        count = tensor.numel() // (len(grid) * tensor.shape[-1]) if are_tokens else grid[0, 0].numel()
        # Tokens that the model joins behind the layer, such as a class token behind the embedding of patches.
        joined = attention.shape[-1] - count
        hints = TokenHints.of(self.model) if isinstance(self.model, nn.Module) else TokenHints(1)
        if not 0 <= joined <= hints.class_tokens + hints.registers:
            raise ValueError(
                f"layer: it has {count} positions, and the attention of the model is over {attention.shape[-1]} tokens "
                f"or channels; choose a layer of the tokens that the blocks attend to, or another method where there "
                'is none, such as LayerMeanActivation ("mean-activation")'
            )
        slots = self._slots(tensor, count) if are_tokens else torch.full((count,), FIRST_POSITION)
        class_tokens = (slots == CLASS_TOKEN).nonzero().flatten().tolist()
        if class_tokens and not joined:
            row = attention[:, class_tokens[0]]
        elif joined and hints.class_tokens:  # the class token comes first, then registers
            row = attention[:, 0]
        else:
            row = attention[:, joined:][:, (slots >= FIRST_POSITION).to(attention.device)].mean(1)
        row = row[:, joined:]
        if not are_tokens:
            return row.reshape(len(row), 1, *grid.shape[2:])
        assert self.token_grid is not None
        tokens = row.unsqueeze(-1)
        return self.token_grid(tokens.transpose(0, 1) if self._are_first(tensor, len(grid)) else tokens)

    def _slots(self, tensor: Tensor, count: int) -> Tensor:
        """The slot of each token: class token, registers or a position."""
        assert self.token_grid is not None
        is_first = self._are_first(tensor, tensor.numel() // (count * tensor.shape[-1]))
        where = token_positions((count, 1, 1) if is_first else (1, count, 1), self.token_grid, torch.device("cpu"))
        return where.index.flatten()

    def _are_first(self, tensor: Tensor, batch: int) -> bool:
        """Whether the tokens are the first dimension, ``(T, B, N)``."""
        if isinstance(self.token_grid, TokenGrid):
            return self.token_grid.sequence_first
        return len(tensor) != batch


class LayerAttention(AttentionAttribution):
    r"""What the class token attends to in the last block, as the mean over the heads. Support-blind.

    :math:`L_p = A_{c p}` with A the attention of the last block, whose rows sum to one, and c the class token. Without
    a class token, the row is the mean over the rows of all patches, also where learned queries pool the patches behind
    the last block, as in SigLIP. The attention is that of the last block, whatever the layer; the layer gives the grid.
    The weights are computed again from the queries and keys of the model, which runs once more and is not changed:
    models of timm, torchvision, transformers and open_clip need no setting.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of modules and names.
        device_ids: order of the devices of a ``DataParallel`` model that ``forward_func`` runs. Default: None, the
            ``device_ids`` of ``forward_func``.
        token_grid: rearranges the tokens of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`, and names the class token. Default: None, the layer is a grid already.

    Raises:
        ValueError: for a model with another attention than self-attention over all tokens, such as Swin (within
            windows) or CaiT (a class token that joins behind the blocks); the message names what was found.

    Example:
        >>> from captum_fam.attr import LayerAttention
        >>> vit = torchvision.models.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
        >>> vit.heads = torch.nn.Identity()
        >>> method = LayerAttention(vit.eval(), vit.encoder.dropout, token_grid=TokenGrid())
        >>> method.attribute(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 1, 4, 4])
    """

    @classmethod
    def get_name(cls) -> str:
        return "Layer Attention"

    def _fold(self, before: Tensor | None, attention: Tensor) -> Tensor:
        return attention


class LayerAttentionRollout(AttentionAttribution):
    r"""Attention rollout: what reaches the class token of the last block through all blocks. Support-blind.

    :math:`L_p = R_{c p}` with :math:`R = \frac{A_K + I}2 \cdots \frac{A_1 + I}2` over the K blocks, where each A is the
    mean over the heads, and c is the class token. Without a class token, the row is the mean over the rows of all
    patches. Half of each token stays where it is, as on the shortcut around an attention. The layer gives the grid
    only. Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of modules and names.
        device_ids: order of the devices of a ``DataParallel`` model that ``forward_func`` runs. Default: None, the
            ``device_ids`` of ``forward_func``.
        token_grid: rearranges the tokens of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`, and names the class token. Default: None, the layer is a grid already.

    Raises:
        ValueError: as :class:`LayerAttention`; for blocks that attend to different numbers of tokens.

    Example:
        >>> from captum_fam.attr import LayerAttentionRollout
        >>> vit = torchvision.models.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
        >>> vit.heads = torch.nn.Identity()
        >>> method = LayerAttentionRollout(vit.eval(), vit.encoder.dropout, token_grid=TokenGrid())
        >>> method.attribute(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 1, 4, 4])
    """

    @classmethod
    def get_name(cls) -> str:
        return "Layer Attention Rollout"

    def _fold(self, before: Tensor | None, attention: Tensor) -> Tensor:
        step = (attention + torch.eye(attention.shape[-1]).to(attention)) / 2
        if before is None:
            return step
        if before.shape != step.shape:
            raise ValueError(
                "LayerAttentionRollout needs blocks that attend to the same tokens, and found attention over "
                f"{before.shape[-1]} and then over {step.shape[-1]} tokens; use another method for this model"
            )
        return step @ before


def _row(argument: object, image: int, batch: int) -> object:
    """The part of an argument of the model that belongs to one image; an argument of all images stays whole."""
    if isinstance(argument, Tensor) and argument.dim() > 0 and len(argument) == batch:
        return argument[image : image + 1]
    return argument
