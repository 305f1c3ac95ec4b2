"""Whether evaluating the model leaves it unchanged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from holdfast.audit.check import Answer, Check, Remedy
from holdfast.audit.findings import Action, Metric, Table
from holdfast.audit.subject import Subject
from holdfast.data import to_float
from holdfast.models import frozen

__all__ = ["EvaluationMode"]


@dataclass(frozen=True, kw_only=True)
class EvaluationMode(Check):
    """Weights and buffers before and after a pass in evaluation mode, and the mode the model came in and left in."""

    id = "evaluation-mode"
    section = "sanity"
    title = "Evaluation mode"
    question = "Does evaluating it leave it as it was?"
    needs = ("weights",)

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        model, run = subject.model, subject.run
        x = to_float(subject.first(subject.profile.sanity_images).x).to(run.torch_device)
        modes = [module.training for module in model.modules()]
        with frozen(model, device=run.torch_device), torch.no_grad():
            before = {name: value.clone() for name, value in _tensors(model)}
            model(x)
            # Compared inside: `frozen` would put some of the tensors back.
            changed = [name for name, value in _tensors(model) if not _same(value, before[name])]
        restored = [module.training for module in model.modules()] == modes
        active = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | nn.Dropout)]
        return Answer(
            metrics=[
                Metric(
                    name="changed-tensors",
                    value=len(changed),
                    n=len(before),
                    unit="count",
                    better="lower",
                    title="Weights and buffers that a pass in evaluation mode changes",
                ),
                Metric(
                    name="came-in-training-mode",
                    value=float(any(modes)),
                    unit="count",
                    title="The model was handed over in training mode (1) or not (0)",
                ),
                Metric(
                    name="mode-restored",
                    value=float(restored),
                    unit="count",
                    better="higher",
                    title="The model's modes were given back as they were (1) or not (0)",
                ),
                Metric(
                    name="mode-dependent-layers",
                    value=len(active),
                    unit="count",
                    title="Layers that behave differently in training (batch norm, dropout)",
                ),
            ],
            figures=[
                Table(title="Changed by evaluation", columns=["tensor"], rows=[[name] for name in changed[:20]]),
            ]
            if changed
            else [],
            remedies=[
                Remedy(
                    Action(text="Let forward() change nothing while self.training is False; see the tensors listed."),
                    when="changed-tensors",
                )
            ],
            settings={"images": len(x)},
            limitations=[
                "State outside parameters and buffers is not seen; the check of determinism shows its effects."
            ],
        )


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
