"""Finding a classifier that was left on a network: its class scores are no embeddings."""

from __future__ import annotations

import keyword

from torch import nn

# Numbers of classes of ImageNet in its usual versions.
_CLASS_COUNTS = frozenset({1000, 1001, 10450, 11221, 11821, 21841, 21843})
_NAMES = frozenset({"classifier", "classification_head", "cls_head", "logits"})
# Metric heads have these names too, and mostly a multiple of 16 outputs.
_NAMES_OF_HEADS = frozenset({"fc", "head", "heads", "last_linear", "linear"})
_STEP_OF_HEADS = 16
_NOTHING_MORE = (nn.Identity, nn.Dropout, nn.Softmax, nn.LogSoftmax, nn.Flatten)


def classifier_note(model: nn.Module, n_features: int | None = None) -> str | None:
    """A note that a network still has its classifier, by the names and sizes of its layers.

    A network of transformers is known by its class, such as ``ViTForImageClassification``. In any other network the
    last linear layer or 1 x 1 convolution is a classifier if it has as many outputs as ImageNet has classes, or if it
    is the end of the network and a part of its dotted name is ``classifier``, ``classification_head``, ``cls_head`` or
    ``logits``. A last layer called ``fc``, ``head``, ``heads``, ``linear`` or ``last_linear`` may be a classifier if
    its number of outputs is no multiple of 16; the note then says that it may. A metric head, such as an ``fc`` with
    128 outputs, is no classifier.

    Args:
        model: the network.
        n_features: length of the embedding, J; a layer with another number of outputs does not give the embedding.
            Default: None, not known.

    Returns:
        A sentence for the user; None if no classifier is found.

    Example:
        >>> classifier_note(nn.Sequential(nn.Flatten(), nn.Linear(8, 128))) is None
        True
        >>> classifier_note(nn.Sequential(nn.Flatten(), nn.Linear(8, 1000)))[-34:]
        'it: model[1] = torch.nn.Identity()'
    """
    for name, module in model.named_modules():
        if type(module).__name__.endswith("ForImageClassification"):
            return _note(f"{type(module).__name__}{f' ({name})' if name else ''}", "take the model without it")
    is_last = True
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            count = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            if n_features is not None and count != n_features:
                return None
            parts, layer = set(name.split(".")), f"layer {name!r} ({count} outputs)"
            remedy = f"replace it: {_in_python(name)} = torch.nn.Identity()"
            if count in _CLASS_COUNTS or (is_last and _NAMES & parts):
                return _note(layer, remedy)
            if is_last and count % _STEP_OF_HEADS and _NAMES_OF_HEADS & parts:
                return (
                    f"{layer}, the last of the model, may be a classifier: if it is, similarities compare class "
                    f"scores, not embeddings; then {remedy}"
                )
            return None
        # A layer behind which more is computed is no classifier by its name: a ReLU follows fc7 of a VGG.
        is_last = is_last and (isinstance(module, _NOTHING_MORE) or next(module.children(), None) is not None)
    return None


def _in_python(name: str) -> str:
    """The expression for a module of ``model``, from its dotted name: ``model.classifier[3]``."""
    expression = "model"
    for part in name.split(".") if name else ():
        is_attribute = part.isidentifier() and not keyword.iskeyword(part)
        expression += f".{part}" if is_attribute else f"[{part if part.isdecimal() else repr(part)}]"
    return expression


def _note(classifier: str, remedy: str) -> str:
    return (
        f"the model seems to have its classifier still on, {classifier}: similarities then compare class scores, not "
        f"embeddings; {remedy}"
    )
