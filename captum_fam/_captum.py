"""All imports from private modules of Captum, so that a new release of Captum can break this file only."""

from captum._utils.common import _format_additional_forward_args as format_additional_forward_args
from captum._utils.common import _format_output as format_output
from captum._utils.common import _format_tensor_into_tuples as format_tensors
from captum._utils.common import _reduce_list as reduce_list
from captum._utils.common import _run_forward as run_forward
from captum._utils.common import _select_targets as select_targets
from captum._utils.common import _sort_key_list as sort_key_list
from captum._utils.typing import TargetType
from captum.log import log_usage

__all__ = [
    "TargetType",
    "format_additional_forward_args",
    "format_output",
    "format_tensors",
    "log_usage",
    "reduce_list",
    "run_forward",
    "select_targets",
    "sort_key_list",
]
