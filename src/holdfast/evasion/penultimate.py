"""A model seen one layer earlier: the features its last linear layer reads."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from holdfast.evasion.oracle import Oracle
from holdfast.models import classifier_head
from holdfast.models.features import tap_input

__all__ = ["penultimate"]


def penultimate(oracle: Oracle, example: Float[Tensor, "n c h w"]) -> Oracle:
    """An oracle whose answers are the input of the model's last linear layer instead of logits.

    Where the logits do not come straight from a linear layer, the given oracle, with its logits.

    Args:
        oracle: of the model.
        example: a few images on its device.
    """
    head = classifier_head(oracle.twin, example)
    if head is None:
        return oracle
    return Oracle(oracle.judge, _Penultimate(oracle.twin, head), oracle.run, oracle.limit)


class _Penultimate(nn.Module):
    """A model that returns what one of its layers is given, one row per image."""

    def __init__(self, model: nn.Module, head: nn.Linear):
        super().__init__()
        self.model, self.head = model, head

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The features."""
        with tap_input(self.head) as seen:
            self.model(x)
        return seen[0].flatten(1)
