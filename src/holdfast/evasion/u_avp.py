"""U-AVP: one learned prompt for all images, the conventional visual prompting that class-wise prompts are measured by.

Chen et al., "Visual Prompting for Adversarial Robustness", ICASSP 2023, arXiv:2210.06284; visual prompts after
Bahng et al., "Exploring Visual Prompts for Adapting Large-Scale Models", 2022, arXiv:2203.17274.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.evasion.prompts import PromptGuard
from holdfast.methods import Paper
from holdfast.training import Step

__all__ = ["UAVP"]


@dataclass(frozen=True, kw_only=True)
class UAVP(
    PromptGuard,
    id="u-avp",
    title="Universal adversarial visual prompting",
    paper=Paper(title="Visual Prompting for Adversarial Robustness", arxiv="2210.06284", venue="ICASSP", year=2023),
):
    """A guard of one border of pixels for every image, learned around a network that stays as it is.

    A baseline: one pass of the network per image, as without it. In the paper it costs most of the clean accuracy and
    gives little robustness, since one prompt cannot mend what goes wrong differently from image to image. The prompt
    after the last epoch is kept; see `c-avp`, whose training and fields it shares.
    """

    def count(self, classes: int) -> int:
        """One."""
        return 1

    def own(self, y: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """The only one."""
        return torch.zeros_like(y)

    def answer(self, logits: Float[Tensor, "n 1 k"]) -> Float[Tensor, "n k"]:
        """The network's logits under the prompt."""
        return logits[:, 0]

    def loss(self, lesson: nn.Module, x: Tensor, y: Tensor, attacked: Float[Tensor, "n k"], step: Step) -> Tensor:
        """Cross-entropy, clean and attacked."""
        return F.cross_entropy(step.seen(lesson(x)), y) + F.cross_entropy(attacked, y)
