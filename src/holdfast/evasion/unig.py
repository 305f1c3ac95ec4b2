"""UniG: scale the last features of every batch so that the gradients of its samples look alike.

An attacker who learns from scores then climbs a direction that all samples of the batch share and that is good for
none. The scales are drawn anew in every pass, moved one step so that neighbours' gradients come closer, and kept near
one, which changes the logits little.

Wang et al., "Unifying Gradients to Improve Real-world Robustness for Deep Networks", 2022, arXiv:2208.06228.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.evasion.guard import Guarded
from holdfast.methods import Paper, Surgery
from holdfast.models.features import classifier_head, tap_input

__all__ = ["GuardedByUniG", "UniG", "feature_gradient"]

_SPREAD = 0.5  # standard deviation of the scales before their first step
_COMPANIONS = 5  # remembered images that a single one is answered beside


@dataclass(frozen=True, kw_only=True)
class UniG(
    Surgery,
    id="unig",
    title="Unifying gradients",
    paper=Paper(
        title="Unifying Gradients to Improve Real-world Robustness for Deep Networks", arxiv="2208.06228", year=2022
    ),
):
    """A guard against query attacks that unifies the gradients of the samples of a batch.

    For a served model whose scores are given away. It costs one extra pass of the last layer. Answers are random and
    depend on the company an image is in, by design, so results under it differ with the batch size, and asking ten
    times averages much of it away. Whoever knows the weights attacks the model behind it.

    Args:
        lr: length of the step on the scales; the paper takes 10 for CIFAR, 1 for ImageNet.
        delta: the scales stay within this of one; the paper takes 0.5 for CIFAR, 0.1 for ImageNet. 0 is no guard.
        steps: on the scales.
        momentum, weight_decay: of these steps. Nothing is carried over from one batch to the next, as it is in the
            published code.
        keep_labels: answer with the plain logits wherever the predicted class would change.
    """

    lr: Annotated[float, Field(ge=0)] = 10.0
    delta: Annotated[float, Field(ge=0, le=1)] = 0.5
    steps: Annotated[int, Field(ge=1)] = 1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    keep_labels: bool = False

    def __call__(self, model: nn.Module) -> GuardedByUniG:
        """The guarded copy of the model.

        Raises:
            UserError: the logits do not come straight from an `nn.Linear`.
        """
        return GuardedByUniG(model, self)

    def unify(
        self, features: Float[Tensor, "n d"], head: nn.Linear, y: Int64[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, " s"]]:
        """The scales for a batch, and the loss before each step.

        Args:
            features: input of the last layer.
            head: the last layer.
            y: labels, or what the model predicts.
        """
        scales = nn.Parameter(1 + _SPREAD * torch.randn_like(features))
        optimizer = torch.optim.SGD([scales], lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        low = high = None
        losses = []
        for _ in range(self.steps):
            gradient = feature_gradient(scales, features, head, y)
            if low is None or high is None:
                low, high = gradient.detach().aminmax()
            unit = (gradient - low) / (high - low).clamp_min(torch.finfo(gradient.dtype).tiny)
            # Equal neighbours have no distance, whose root has no slope.
            loss = (unit[1:] - unit[:-1]).square().sum(1).add(1e-12).sqrt().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                scales.clamp_(1 - self.delta, 1 + self.delta)
            losses.append(loss.detach())
        return scales.detach(), torch.stack(losses)


class GuardedByUniG(Guarded):
    """A model behind UniG. Gradients pass through its features; the scales count as constants."""

    mixes_samples = "UniG unifies the gradients of the samples of a batch"

    guard: UniG

    def __init__(self, model: nn.Module, guard: UniG):
        super().__init__(model, guard)
        head = classifier_head(self.model)
        if head is None:
            raise UserError("unig: the model's logits must come straight from a linear layer, whose input is scaled.")
        self.head = next(name for name, module in self.model.named_modules() if module is head)
        self.register_buffer("companions", None)
        self.register_buffer("companion_labels", None)

    def remember(self, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"]) -> None:
        """Keep training images in whose company single images are answered.

        Args:
            x: images in [0, 1]; the paper keeps 100, of which five at a time are taken.
            y: their labels.

        Raises:
            UserError: there are fewer than five.
        """
        if len(x) < _COMPANIONS or len(x) != len(y):
            raise UserError(f"unig: at least {_COMPANIONS} images with labels are needed, got {len(x)} and {len(y)}.")
        self.companions, self.companion_labels = x.detach().clone(), y.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        """Logits from the scaled features."""
        count, labels = len(x), torch.empty(0, dtype=torch.int64, device=x.device)
        if count == 1 and self.companions is not None:
            start = int(torch.randint(len(self.companions) - _COMPANIONS + 1, (1,)))
            company = slice(start, start + _COMPANIONS)
            x, labels = torch.cat([x, self.companions[company].to(x)]), self.companion_labels[company].to(x.device)
        head = self.model.get_submodule(self.head)
        assert isinstance(head, nn.Linear)
        with tap_input(head) as seen:
            plain = self.model(x)
        (features,) = seen
        y = torch.cat([plain.argmax(1)[:count], labels])
        with torch.inference_mode(False), torch.enable_grad():
            scales, _ = self.guard.unify(features.detach().clone().float(), head, y)
        logits = head(scales.to(features.dtype) * features)[:count]
        if not self.guard.keep_labels:
            return logits
        plain = plain[:count]
        return torch.where((logits.argmax(1) == plain.argmax(1))[:, None], logits, plain)


def feature_gradient(
    scales: Float[Tensor, "n d"], features: Float[Tensor, "n d"], head: nn.Linear, y: Int64[Tensor, " n"]
) -> Float[Tensor, "n d"]:
    """The gradient of the mean cross-entropy of ``head(scales * features)`` with respect to the features."""
    weight = head.weight.detach().float()
    bias = None if head.bias is None else head.bias.detach().float()
    logits = F.linear(scales * features, weight, bias)
    error = logits.softmax(1) - F.one_hot(y, logits.shape[1])
    return scales * (error @ weight) / len(features)
