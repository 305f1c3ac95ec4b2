"""Experience replay: learn each batch of new images together with a batch from the memory.

It is the plainest remedy against catastrophic forgetting, and hard to beat: a few remembered images of each class keep
the network from giving every image to the classes that came last. It knows no unlearning, for which it takes an
unlearner with the memory in place of the retained images.

Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019, arXiv:1902.10486.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.continual.memory import Memory
from holdfast.continual.replay import Replay
from holdfast.data import Images
from holdfast.methods import Objective, Paper
from holdfast.training import Step

__all__ = ["ER"]

_MEMORY = "memory"


@dataclass(frozen=True, kw_only=True)
class ER(
    Replay,
    id="er",
    title="Experience replay",
    paper=Paper(title="On Tiny Episodic Memories in Continual Learning", arxiv="1902.10486", year=2019),
):
    """Cross-entropy of the incoming and of as many remembered images, in one pass.

    Images are remembered in full batches, each again only when all others have come.
    """

    def rehearsal(self, memory: Memory) -> tuple[Objective, Mapping[str, Images]]:
        """The joint loss."""
        return _Joint(), {_MEMORY: memory.images}


class _Joint(Objective):
    """Mean cross-entropy of both batches together."""

    companions = (_MEMORY,)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        recalled = step.companions[_MEMORY]
        logits = model(torch.cat([x, recalled.x])).float()
        step.seen(logits[: len(y)])
        return F.cross_entropy(logits, torch.cat([y, recalled.y]))

    def __str__(self) -> str:
        return "cross-entropy with the memory's"
