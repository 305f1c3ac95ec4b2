"""The optimizers of `fit`, by spec: ``sgd(lr=0.1, momentum=0.9)``, ``adam``, ``adamw(lr=3e-4)``."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from holdfast.errors import UserError
from holdfast.methods import Method, Paper

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "SignSGD"]

Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0)]


class Optimizer(Method, kind="optimizer"):
    """How gradients move the weights."""

    @abstractmethod
    def __call__(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of all weights of `model` that take gradients."""


@dataclass(frozen=True, kw_only=True)
class SGD(
    Optimizer,
    id="sgd",
    paper=Paper(
        title="On the importance of initialization and momentum in deep learning",
        venue="Proceedings of ICML",
        year=2013,
    ),
):
    """Stochastic gradient descent with momentum.

    Args:
        lr: the learning rate that the schedule's factor multiplies.
        momentum: of the velocity, in [0, 1).
        nesterov: look ahead along the velocity; needs momentum above 0.
        weight_decay: added to the gradient as a multiple of the weight.
        decay: ``"all"`` weights, or only ``"matrices"``, which leaves biases and normalisation layers alone.
    """

    lr: Rate = 0.1
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: Decay = 5e-4
    decay: Literal["all", "matrices"] = "all"

    def __call__(self, model: nn.Module) -> torch.optim.Optimizer:
        """`torch.optim.SGD` over the model's weights."""
        groups = parameter_groups(model, self.weight_decay, self.decay)
        nesterov = self.nesterov and self.momentum > 0
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=nesterov, fused=fusible(model))


@dataclass(frozen=True, kw_only=True)
class Adam(
    Optimizer,
    id="adam",
    paper=Paper(title="Adam: A Method for Stochastic Optimization", arxiv="1412.6980", venue="ICLR", year=2015),
):
    """Adam: steps scaled by running moments of the gradient.

    Args:
        lr: the learning rate that the schedule's factor multiplies.
        beta1, beta2: decay of the first and second moment, in [0, 1).
        weight_decay: added to the gradient as a multiple of the weight.
        decay: ``"all"`` weights, or only ``"matrices"``, which leaves biases and normalisation layers alone.
    """

    lr: Rate = 1e-3
    beta1: Share = 0.9
    beta2: Share = 0.999
    weight_decay: Decay = 0.0
    decay: Literal["all", "matrices"] = "all"

    def __call__(self, model: nn.Module) -> torch.optim.Optimizer:
        """`torch.optim.Adam` over the model's weights."""
        groups = parameter_groups(model, self.weight_decay, self.decay)
        return torch.optim.Adam(groups, lr=self.lr, betas=(self.beta1, self.beta2), fused=fusible(model))


@dataclass(frozen=True, kw_only=True)
class AdamW(
    Optimizer,
    id="adamw",
    paper=Paper(title="Decoupled Weight Decay Regularization", arxiv="1711.05101", venue="ICLR", year=2019),
):
    """Adam with weight decay apart from the gradient.

    Args:
        lr: the learning rate that the schedule's factor multiplies.
        beta1, beta2: decay of the first and second moment, in [0, 1).
        weight_decay: share of the weight that a step of learning rate 1 takes away.
        decay: ``"all"`` weights, or only ``"matrices"``, which leaves biases and normalisation layers alone.
    """

    lr: Rate = 1e-3
    beta1: Share = 0.9
    beta2: Share = 0.999
    weight_decay: Decay = 0.05
    decay: Literal["all", "matrices"] = "matrices"

    def __call__(self, model: nn.Module) -> torch.optim.Optimizer:
        """`torch.optim.AdamW` over the model's weights."""
        groups = parameter_groups(model, self.weight_decay, self.decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2), fused=fusible(model))


@dataclass(frozen=True, kw_only=True)
class SignSGD(
    Optimizer,
    id="sign-sgd",
    title="SignSGD",
    paper=Paper(
        title="signSGD: Compressed Optimisation for Non-Convex Problems", arxiv="1802.04434", venue="ICML", year=2018
    ),
):
    """Every weight moves by the learning rate, against the sign of its gradient.

    Args:
        lr: the step of each weight, that the schedule's factor multiplies.
        weight_decay: added to the gradient, before its sign is taken, as a multiple of the weight.
        decay: ``"all"`` weights, or only ``"matrices"``, which leaves biases and normalisation layers alone.
    """

    lr: Rate = 1e-3
    weight_decay: Decay = 0.0
    decay: Literal["all", "matrices"] = "all"

    def __call__(self, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer over the model's weights."""
        return _SignDescent(parameter_groups(model, self.weight_decay, self.decay), {"lr": self.lr})


class _SignDescent(torch.optim.Optimizer):
    """PyTorch has none."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.sub_((weight.grad + group["weight_decay"] * weight).sign_(), alpha=group["lr"])
        return loss


def parameter_groups(model: nn.Module, weight_decay: float, decay: str) -> list[dict[str, Any]]:
    """The weights that take gradients, apart by whether `weight_decay` applies to them.

    Raises:
        UserError: no weight takes gradients.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise UserError("the model has no weights to train: none of its parameters requires a gradient.")
    decayed = [p for p in weights if decay == "all" or p.ndim > 1]
    spared = [p for p in weights if decay != "all" and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def fusible(model: nn.Module) -> bool | None:
    """Whether one kernel may update all weights at once (``None`` lets PyTorch choose)."""
    weights = [p for p in model.parameters() if p.requires_grad]
    fits = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in weights)
    return True if fits else None
