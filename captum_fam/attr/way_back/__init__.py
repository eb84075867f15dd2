r"""The way back from the embedding to a layer: gradients with held scales, and the shares of constants in the score.

A map sums to the score only where the network behind the layer is linear up to biases. Every *scale* is therefore
*held*: treated as a constant with its value in this pass. Scales are an L2 norm, the deviation of a normalization
layer, an attention weight, and the gate of an activation function :math:`\phi(x) = x \cdot (\phi(x) / x)`. Ali et al.,
"XAI for Transformers: Better Explanations through Conservative Propagation", ICML 2022, hold the scales of LayerNorm
and attention; this package holds all scales.

To follow how a map is computed, read the files in this order:

- ``recorder``: the :class:`torch.overrides.TorchFunctionMode` that sees every call of torch behind the layer,
- ``table``: which function follows which rule; ``rules/``: the rules by kind; ``call``: one call and its held form,
- ``notes``: what is known of a tensor on the way: its gate level, a rescaling, its positions,
- ``where`` and ``tracker``: the position in the image of every element of a tensor,
- ``way``: the backward pass; ``constants``: the shares of biases and class tokens in the score, by position,
- ``view``: which of several views of the image a thread is running.

:func:`register_rule` adds a rule for a function of torch that the table does not have.
"""

from captum_fam.attr.way_back.call import Call, Gate, Rule, linear
from captum_fam.attr.way_back.rules.activations import hold_quotient
from captum_fam.attr.way_back.rules.lengths import hold
from captum_fam.attr.way_back.table import RULES, register_rule

__all__ = ["RULES", "Call", "Gate", "Rule", "hold", "hold_quotient", "linear", "register_rule"]
