"""What a model's answers alone say: whether they are random, probabilities, rounded, or worked out by an optimiser."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.evasion.masking.sign import Sign, share, sign
from holdfast.evasion.oracle import Oracle

__all__ = ["gradient_calls", "output_signs"]


def output_signs(oracle: Oracle, x: Tensor) -> list[Sign]:
    """The signs that a few passes forward give."""
    reference = oracle.verdicts(x)
    return [
        sign(
            "random-output",
            _scatter(oracle, x),
            1e-4,
            "fail",
            "The largest distance between two of five answers to one image, in evaluation mode, of answers scaled to "
            "length 1. A single draw neither shows the gradient nor decides who is fooled.",
            "Average over draws, both to attack and to judge: holdfast.evasion.adaptive.Expectation, or apgd(eot=20).",
        ),
        sign(
            "probability-output",
            float(oracle.probabilities),
            0,
            "warn",
            "1 if the model gives probabilities. Their logarithms are attacked instead, but what the softmax has "
            "rounded away is lost.",
            "Attack the logits.",
        ),
        sign(
            "gradients-in-forward",
            float(gradient_calls(oracle, x[:8])),
            0,
            "warn",
            "How often a pass forward takes gradients of its own, as purifiers and adaptive guards do. Attacks "
            "differentiate through such a pass badly or not at all.",
            "Attack the model without that part (holdfast.evasion.adaptive.informed), or unroll fewer of its steps.",
        ),
        sign(
            "precision-flips",
            share(_rounded(oracle, x).argmax(1) != reference.argmax(1)),
            0.05,
            "warn",
            "Images whose class changes when the pass is computed in bf16: answers that hang on the last digits.",
            "Attack in float32 or float64 only.",
        ),
    ]


def _scatter(oracle: Oracle, x: Tensor) -> float:
    outputs = torch.stack([F.normalize(oracle.verdict(x), dim=1) for _ in range(5)])
    return float((outputs[1:] - outputs[0]).norm(dim=2).max())


def _rounded(oracle: Oracle, x: Tensor) -> Tensor:
    parts = []
    with torch.autocast(oracle.device.type, dtype=torch.bfloat16), torch.no_grad():
        for part in x.split(oracle.limit):
            parts.append(oracle.judge(part).float())
    return torch.cat(parts)


def gradient_calls(oracle: Oracle, x: Tensor) -> int:
    """How many times one pass forward calls autograd. Calls through names imported from it earlier are not seen."""
    with _counted() as calls:
        oracle.verdict(x)
    return len(calls)


@contextlib.contextmanager
def _counted() -> Iterator[list[str]]:
    calls: list[str] = []
    originals = {name: getattr(torch.autograd, name) for name in ("grad", "backward")}

    def counting(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return originals[name](*args, **kwargs)

        return call

    try:
        for name in originals:
            setattr(torch.autograd, name, counting(name))
        yield calls
    finally:
        for name, original in originals.items():
            setattr(torch.autograd, name, original)
