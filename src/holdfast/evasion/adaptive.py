"""Attacks that know the defence: stand-ins for the parts of a model that attacks get stuck on.

    guarded = AAA()(model)
    PGD().run(guarded, x, y, run=run)            # the guard has no gradient: PGD finds nothing
    PGD().run(informed(guarded), x, y, run=run)  # the attacker searches on the model behind it

`informed` pairs a deployed model with a stand-in: searches use the stand-in, and every verdict is the deployed
model's. A guard offers its own by a method ``adaptive()``. `bpda` replaces what has no gradient, `Expectation`
averages what is random, `softened` undoes what saturates a softmax.

Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018, arXiv:1802.00420 (BPDA, EOT); Tramer
et al., "On Adaptive Attacks to Adversarial Example Defenses", NeurIPS 2020, arXiv:2002.08347.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.errors import UserError
from holdfast.models import frozen
from holdfast.run import Run

__all__ = ["Adaptive", "Expectation", "Informed", "adaptive", "bpda", "draws_needed", "informed", "softened"]


@runtime_checkable
class Adaptive(Protocol):
    """A model with a guard that says how an attacker sees it who knows the guard."""

    def adaptive(self) -> nn.Module:
        """A stand-in to search on: differentiable, from the same images to outputs of the same kind."""


class Informed(nn.Module):
    """A deployed model, and the stand-in on which attacks search for its errors.

    It answers as the deployed model does. Attacks take gradients and scores from the stand-in (see
    `holdfast.evasion.oracle.consult`); a success is one only where the deployed model errs.

    Args:
        deployed: that is attacked.
        stand_in: both give logits, or both give probabilities.
    """

    def __init__(self, deployed: nn.Module, stand_in: nn.Module):
        super().__init__()
        self.deployed, self.stand_in = deployed, stand_in

    def forward(self, x: Tensor) -> Tensor:
        """What the deployed model says."""
        answer: Tensor = self.deployed(x)
        return answer


def informed(model: nn.Module, stand_in: nn.Module | None = None) -> Informed:
    """The model for an attacker who knows its guard.

    Args:
        model: deployed.
        stand_in: to search on; by default what the guard offers.

    Raises:
        UserError: neither a stand-in is given, nor does the model offer one.
    """
    if stand_in is None:
        if not isinstance(model, Adaptive):
            raise UserError(
                f"{type(model).__name__} has no method adaptive() that offers an attacker's view of its guard: "
                "give a stand-in."
            )
        stand_in = model.adaptive()
    return Informed(model, stand_in)


def adaptive(attack: Any, model: nn.Module, stand_in: nn.Module | None = None) -> Callable[..., Any]:
    """The attack on the model by someone who knows its guard: ``adaptive(PGD(), guarded)(x, y, run=run)``.

    Args:
        attack: any attack of the family.
        model, stand_in: as of `informed`.

    Returns:
        From images, labels, and the named arguments of ``attack.run``, to its outcome.
    """
    knowing = informed(model, stand_in)

    def run(x: Tensor, y: Tensor, **named: Any) -> Any:
        return attack.run(knowing, x, y, **named)

    return run


class _Bypass(nn.Module):
    """One function forward, the derivative of another backward."""

    def __init__(self, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor] | None):
        super().__init__()
        self.there, self.back = forward, backward

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.there(x)
        if not torch.is_grad_enabled():
            return value
        smooth = x if self.back is None else self.back(x)
        if smooth.shape != value.shape:
            raise UserError(
                f"bpda: the two functions must give the same shape, got {tuple(value.shape)} and {tuple(smooth.shape)}."
            )
        # The difference is exactly zero, so the value is that of the first function to the last bit.
        return value + (smooth - smooth.detach())


def bpda(forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """Backward pass differentiable approximation: compute one function, differentiate another.

    Put it where a model has a part without a useful gradient:
    ``nn.Sequential(bpda(quantise), network)`` is the stand-in for ``nn.Sequential(quantise, network)``.

    Args:
        forward: what is computed; it may be anything, and need not be differentiable.
        backward: a differentiable function close to it, of the same shape; by default the identity.
    """
    return _Bypass(forward, backward)


class Expectation(nn.Module):
    """The mean of a random model's logits over several draws: expectation over transformation.

    Its gradient is the mean of the draws' gradients, seen through the loss of the mean. Use it as a stand-in, or attack
    it itself, so that verdicts too are on the mean. An attack counts one query where `draws` are made.

    Args:
        model: random in evaluation mode.
        draws: passes per answer; `draws_needed` says how many it takes.
    """

    def __init__(self, model: nn.Module, draws: int = 20):
        super().__init__()
        if draws < 1:
            raise UserError(f"Expectation: draws must be a whole number of at least 1, got {draws!r}.")
        self.model, self.draws = model, draws

    def forward(self, x: Tensor) -> Tensor:
        """The mean logits."""
        total: Tensor = self.model(x)
        for _ in range(self.draws - 1):
            total = total + self.model(x)
        return total / self.draws

    def extra_repr(self) -> str:
        """The number of draws."""
        return f"draws={self.draws}"


def draws_needed(
    model: nn.Module, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"], *, run: Run, most: int = 320
) -> int:
    """How many draws it takes until two means of gradients agree: their cosine is at least 0.9 on average.

    Args:
        model: random in evaluation mode.
        x, y: some images and their labels.
        run: device and seed.
        most: give up here.

    Returns:
        20, 40, 80, ..., or `most`.
    """
    device = run.torch_device
    x, y = x.float().to(device), y.to(device)
    draws = 20
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), frozen(model, device=device):
        torch.default_generator.manual_seed(run.seed_for("draws"))
        while draws < most:
            a, b = (_gradient(model, x, y, draws // 2) for _ in range(2))
            if float(F.cosine_similarity(a.flatten(1), b.flatten(1)).mean()) >= 0.9:
                return draws
            draws *= 2
    return min(draws, most)


def _gradient(model: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        loss = sum(F.cross_entropy(model(x).float(), y, reduction="sum") for _ in range(draws))
    (gradient,) = torch.autograd.grad(torch.as_tensor(loss), x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


class _Softened(nn.Module):
    def __init__(self, model: nn.Module, temperature: float):
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.model(x)
        return answer / self.temperature

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}"


def softened(model: nn.Module, temperature: float) -> nn.Module:
    """The model with its logits divided by a temperature: the same labels, and a softmax that is not saturated.

    Raises:
        UserError: the temperature is not positive.
    """
    if not temperature > 0:
        raise UserError(f"softened: temperature must be above 0, got {temperature!r}.")
    return _Softened(model, temperature)
