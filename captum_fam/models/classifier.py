"""Noticing a classifier that was left on: its class scores are no embeddings."""

from __future__ import annotations

from torch import nn

CLASS_COUNTS = frozenset({1000, 1001, 10450, 11221, 11821, 21841, 21843})
"""Numbers of classes of ImageNet in its usual versions."""

_NAMES = frozenset({"classifier", "classification_head", "cls_head", "logits"})
_NOTHING_MORE = (nn.Identity, nn.Dropout, nn.Softmax, nn.LogSoftmax, nn.Flatten)


def classifier_note(model: nn.Module, n_features: int | None = None) -> str | None:
    """Say that a network still has its classifier, as far as names and sizes tell.

    A network of transformers is known by its class, such as ``ViTForImageClassification``. In any other network the
    last linear layer or 1 x 1 convolution is a classifier if it has as many outputs as ImageNet has classes, or if it
    is the end of the network and a part of its dotted name is ``classifier``, ``classification_head``, ``cls_head`` or
    ``logits``. A metric head, such as a ``fc`` with 128 outputs, is none.

    Args:
        model: the network.
        n_features: length of the embedding, J; a layer with another number of outputs does not give the embedding.
            Default: None, not known.

    Returns:
        A sentence for the user; None if no classifier is noticed.

    Example:
        >>> classifier_note(nn.Sequential(nn.Flatten(), nn.Linear(8, 128))) is None
        True
    """
    for name, module in model.named_modules():
        if type(module).__name__.endswith("ForImageClassification"):
            return _note(f"{type(module).__name__}{f' ({name})' if name else ''}", "take the model without it")
    is_last = True
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            count = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            is_named = is_last and bool(_NAMES & set(name.split(".")))
            if (n_features is None or count == n_features) and (count in CLASS_COUNTS or is_named):
                return _note(f"layer {name!r} ({count} outputs)", f"replace it: model.{name} = torch.nn.Identity()")
            return None
        # A layer behind which more is computed is no classifier by its name: a ReLU follows fc7 of a VGG.
        is_last = is_last and (isinstance(module, _NOTHING_MORE) or next(module.children(), None) is not None)
    return None


def _note(classifier: str, remedy: str) -> str:
    return (
        f"the model seems to have its classifier still on, {classifier}: similarities then compare class scores, not "
        f"embeddings; {remedy}"
    )
