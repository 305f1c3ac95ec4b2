"""Prune first, then unlearn: any unlearner, on a sparse model.

The error of approximate unlearning against retraining scales with how far the weights have moved in training; fewer
weights, less of it. The model is pruned and trained on with all of its data before anything of the request is known,
and the unlearner then moves only the weights that are left.

Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023, arXiv:2304.04934, section 3.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from holdfast.compression import GlobalMagnitude, HoldMasks
from holdfast.compression.masks import Masks, Pruner, apply_masks
from holdfast.data import Images, concat
from holdfast.errors import UserError
from holdfast.methods import Paper, Unlearner
from holdfast.run import Run
from holdfast.training import SGD, Cosine, Optimizer, Schedule
from holdfast.unlearning.fine_tuning import Tuning, check_request
from holdfast.unlearning.ft import FT
from holdfast.unlearning.retrain import Retrain

__all__ = ["UnlearnSparse"]


@dataclass(frozen=True, kw_only=True)
class UnlearnSparse(
    Tuning,
    Unlearner,
    id="unlearn-sparse",
    title="Prune, then unlearn",
    paper=Paper(title="Model Sparsity Can Simplify Machine Unlearning", arxiv="2304.04934", venue="NeurIPS", year=2023),
):
    """Prune the model, let it recover on all of its training data, and unlearn with the pruned weights kept at zero.

    The paper goes back to the weights of an early epoch before the sparse training; a user's model has no such record,
    so it goes on from the trained weights.

    Args:
        pruner: chooses the weights that stay.
        epochs: of the recovery, on the images to forget and to retain; 0 where the model is sparse already.
        batch_size, optimizer, schedule: of the recovery.
        crop, flip: its augmentation; ``none`` where it does not fit, such as flipping digits.
        then: the unlearner. One that starts from new weights, `retrain`, cannot follow.
    """

    pruner: Pruner = GlobalMagnitude(sparsity=0.95, keep_last=True)
    epochs: Annotated[int, Field(ge=0)] = 10
    optimizer: Optimizer = SGD(lr=0.05, momentum=0.9, nesterov=False, weight_decay=5e-4)
    schedule: Schedule = Cosine()
    then: Unlearner = FT()

    def __call__(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> nn.Module:
        """Return a sparse copy that has forgotten, in evaluation mode.

        Raises:
            UserError: nothing is to be forgotten or retained, the unlearner starts from new weights, or there is
                nothing to prune.
        """
        check_request(forget, retain)
        if isinstance(self.then, Retrain | UnlearnSparse):
            raise UserError(f"unlearn-sparse: {self.then.id} cannot follow on a pruned model; name another unlearner.")
        run = run.child(self.id)
        sparse, masks = self.sparse(model, forget, retain, run=run)
        unlearned = self.then(_held(sparse, masks), forget, retain, run=run)
        return _plain(unlearned, sparse, masks).to(run.torch_device).eval()

    def sparse(self, model: nn.Module, forget: Images, retain: Images, *, run: Run) -> tuple[nn.Module, Masks]:
        """The pruned model before the request, and the masks of the weights that stay."""
        everything = concat(retain.but(columns={}), forget.but(columns={}))
        sparse = copy.deepcopy(model)
        masks = self.pruner.masks(sparse, everything, self.pruner.sparsity, run=run)
        apply_masks(sparse, masks)
        if self.epochs:
            sparse = self.trained(sparse, everything, callbacks=[HoldMasks(masks)], run=run.child("recover"))
        return sparse, masks


class _Masked(nn.Module):
    """A weight that is what is stored, where the mask is true, and zero elsewhere."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask.to(weight.device)  # type: ignore[operator]


def _held(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy that computes with masked weights, however the stored ones move; so do its copies."""
    held = copy.deepcopy(model)
    for name, mask in masks.items():
        module, _, leaf = name.rpartition(".")
        parametrize.register_parametrization(held.get_submodule(module), leaf, _Masked(mask), unsafe=True)
    return held


def _plain(held: nn.Module, like: nn.Module, masks: Masks) -> nn.Module:
    """A copy of the model `like` with the weights that `held` computes with."""
    state = held.state_dict()
    for name, mask in masks.items():
        module, dot, leaf = name.rpartition(".")
        stored = state.pop(f"{module}{dot}parametrizations.{leaf}.original")
        state[name] = stored.masked_fill(~mask.to(stored.device), 0)
    plain = copy.deepcopy(like)
    plain.load_state_dict(state)
    return plain
