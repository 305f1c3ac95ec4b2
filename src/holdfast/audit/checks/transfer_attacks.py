"""Accuracy under attacks made on other models, by someone who has never touched this one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.audit.check import Answer, Check, Remedy, left_out, rate
from holdfast.audit.findings import Action, Table
from holdfast.audit.subject import Subject
from holdfast.data import to_float
from holdfast.errors import UserError
from holdfast.evasion import NISITIDI
from holdfast.evasion.transfer import attacked
from holdfast.models import load_model, weights_hash, zoo_card, zoo_names

__all__ = ["TransferAttacks"]


@dataclass(frozen=True, kw_only=True)
class TransferAttacks(Check):
    """Images attacked on models of the zoo for the same classes and image size, tried on this model.

    Args:
        attack_steps: of the attack that is made to transfer.
    """

    id = "transfer-attacks"
    section = "evasion"
    title = "Attacks made on other models"
    question = "Does what fools a public model fool it too?"

    attack_steps: int = 10

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        left_out(subject, subject.profile.transfer_images)
        surrogates = _surrogates(subject)
        images = subject.first(subject.profile.transfer_images)
        attack = NISITIDI(eps=subject.policy.threat.eps, steps=self.attack_steps)
        correct = subject.predictions("test").correct[: len(images)]
        standing = torch.from_numpy(correct.copy())
        rows: list[list[str | float | int | None]] = []
        samples: dict[str, Tensor] = {}
        for name, (digest, surrogate) in surrogates.items():

            def compute(surrogate: nn.Module = surrogate) -> dict[str, Tensor]:
                made = attacked(attack, surrogate, images, subject.run)
                return {"logits": subject.respond(to_float(made.x)), "right": made.right}

            settings: dict[str, Any] = {"attack": str(attack), "surrogate": digest, "images": len(images)}
            kept = subject.store.tensors("transfer", settings, compute)
            withstood = kept["logits"].argmax(1) == images.y
            standing &= withstood
            counted = kept["right"] & torch.from_numpy(correct)
            fooled = float((~withstood)[counted].double().mean()) if counted.any() else None
            rows.append([name, int(counted.sum()), fooled, float(withstood.double().mean())])
            samples[f"transfer.{name}.withstood"] = withstood
        return Answer(
            metrics=[
                rate("transfer-accuracy", standing.numpy(), title="Accuracy under images made on other models"),
                rate("clean-accuracy", correct, title="Accuracy on the same images, clean"),
            ],
            figures=[
                Table(
                    title="By surrogate",
                    columns=["made on", "images that both have right", "of those fooled", "accuracy on all"],
                    rows=rows,
                    percent=["of those fooled", "accuracy on all"],
                )
            ],
            remedies=[
                Remedy(
                    Action(
                        text="Train on images attacked on public models; it costs far less accuracy than adversarial "
                        "training, and stops just this.",
                        method="pubdef",
                        command="holdfast show pubdef",
                    ),
                    when="transfer-accuracy",
                )
            ],
            settings={
                "norm": "linf",
                "eps": subject.policy.threat.eps,
                "attack": str(attack),
                "surrogates": list(surrogates),
                "images": len(images),
            },
            limitations=["A surrogate closer to this model, such as one trained on its answers, would do more."],
            samples={"test": samples},
        )


def _surrogates(subject: Subject) -> dict[str, tuple[str, nn.Module]]:
    """Zoo models for such images, by name, each with the hash of its weights; this model itself is none."""
    found = {}
    own = weights_hash(subject.model)
    for name in zoo_names():
        card = zoo_card(name)
        if tuple(card.classes) == tuple(subject.data.classes) and tuple(card.image_shape) == subject.data.shape:
            model = load_model(f"zoo:{name}")
            if (digest := weights_hash(model)) != own:
                found[name] = (digest, model)
    if not found:
        raise UserError(
            "No other bundled model is for these classes and this image size; `holdfast transfer` takes models of "
            "your own."
        )
    return found
