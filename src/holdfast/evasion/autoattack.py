"""AutoAttack: four attacks that fail for different reasons, none with a step size to tune; the worst case counts.

APGD climbs the cross-entropy, then targeted APGD the DLR loss towards nine classes; FAB looks for the nearest boundary;
Square does without gradients. Each one gets only the images that the earlier ones left standing.

Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML
2020, arXiv:2003.01690; for l_1 Croce & Hein, "Mind the box: l_1-APGD for sparse adversarial attacks on image
classifiers", ICML 2021, arXiv:2103.01208.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.evasion.apgd import APGD
from holdfast.evasion.attack import Evasion
from holdfast.evasion.balls import Norm, distance
from holdfast.evasion.fab import FAB
from holdfast.evasion.losses import Aim, LossName, goal_margin, loss_for, reached
from holdfast.evasion.oracle import Oracle, consult
from holdfast.evasion.outcome import StagedOutcome, check_inputs, check_labels
from holdfast.evasion.pgd import check_eps
from holdfast.evasion.square import Square
from holdfast.methods import Paper
from holdfast.models import NonDeterministic
from holdfast.run import Run, Ticker

__all__ = ["AutoAttack", "Unreliable"]

_L1_RESTARTS, _L1_TARGETS = 5, 5  # of APGD, by the l_1 paper
_PLUS_RESTARTS = 5
_PROBED = 64  # images whose gradients are looked at before the attack
_SQUARE_FINDS = 0.002  # as in the authors' check


class Unreliable(UserWarning):
    """There is a reason not to trust a robust accuracy."""


@dataclass(frozen=True, kw_only=True)
class AutoAttack(
    Evasion,
    id="autoattack",
    title="AutoAttack",
    paper=Paper(
        title="Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
        arxiv="2003.01690",
        venue="ICML",
        year=2020,
    ),
):
    """AutoAttack, the customary figure for robustness within a ball.

    The outcome says, stage by stage, how many images were left and how long it took, and notes what makes the figure
    doubtful: random answers, probabilities instead of logits, gradients that are zero, images that only Square broke.
    It is an upper bound on robustness, and for a guarded model often a loose one: attack such a model knowing its
    guard.

    An image that stands to the end costs 1,200 to 1,900 gradients and 5,000 further passes; one that falls to the first
    stage costs a few. A stage run alone with the same run finds nothing that the whole does not find.

    Args:
        eps: radius of the ball, in pixel units of [0, 1]; at most 1 for l_inf.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        version: ``"standard"``; ``"plus"``, with restarts and the untargeted forms as well, which costs several times
            as much and finds little more; ``"rand"``, for models that answer at random: APGD with either loss, whose
            gradients are averaged over `eot` passes.
        steps: of APGD and FAB.
        queries: of Square.
        targets: how many of the likeliest wrong classes targeted stages aim at, one after the other.
        eot: passes per gradient in the version for random models.
    """

    eps: Annotated[float, Field(ge=0)] = 8 / 255
    norm: Norm = "linf"
    version: Literal["standard", "plus", "rand"] = "standard"
    steps: Annotated[int, Field(ge=1)] = 100
    queries: Annotated[int, Field(ge=1)] = 5000
    targets: Annotated[int, Field(ge=1)] = 9
    eot: Annotated[int, Field(ge=1)] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    def members(self, classes: int = 10, *, targeted: bool = False) -> dict[str, Evasion]:
        """The attacks by name, in order.

        Args:
            classes: of the model. Where there are too few for a DLR loss, the plain margin takes its place.
            targeted: the caller chooses the class that every image is to be given.
        """

        def apgd(loss: LossName, *, restarts: int = 1, targets: int = 0, eot: int = 1) -> APGD:
            enough = classes >= (4 if targets or targeted else 3)
            if not enough:
                loss, targets = "margin" if loss == "dlr" else loss, 0
            return APGD(
                eps=self.eps,
                norm=self.norm,
                steps=self.steps,
                loss=loss,
                restarts=restarts,
                targets=targets,
                eot=eot,
            )

        def fab(*, restarts: int = 1, targets: int = 0) -> FAB:
            return FAB(eps=self.eps, norm=self.norm, steps=self.steps, restarts=restarts, targets=targets)

        sparse = self.norm == "l1"
        square = Square(eps=self.eps, norm=self.norm, queries=self.queries)
        led = apgd("dlr", targets=min(self.targets, _L1_TARGETS) if sparse else self.targets)
        if self.version == "rand":
            return {"apgd-ce": apgd("ce", eot=self.eot), "apgd-dlr": apgd("dlr", eot=self.eot)}
        if self.version == "plus":
            return {
                "apgd-ce": apgd("ce", restarts=_PLUS_RESTARTS),
                "apgd-dlr": apgd("dlr", restarts=_PLUS_RESTARTS),
                "fab": fab(restarts=_PLUS_RESTARTS),
                "square": square,
                "apgd-t": led,
                "fab-t": fab(targets=self.targets),
            }
        return {
            "apgd-ce": apgd("ce", restarts=_L1_RESTARTS if sparse else 1),
            "apgd-t": led,
            "fab-t": fab(targets=self.targets),
            "square": square,
        }

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, run: Run, target: Tensor | None = None) -> StagedOutcome:
        """Run the stages, each on what is left; see `Evasion.run`.

        Warns:
            Unreliable: for each of the outcome's notes.
        """
        check_inputs(self.id, x, y, target)
        y = y.to(x.device)
        goal = y if target is None else target.to(x.device)
        aim: Aim = "any" if target is None else "given"
        clean, notes = self._survey(model, x, y, goal, run, targeted=target is not None)
        x_adv, logits, success = x.clone(), clean.clone(), reached(aim, clean, y, goal)
        fell = torch.full((len(x),), -1, device=x.device)
        queries, gradients = torch.zeros_like(fell), torch.zeros_like(fell)
        nearest = torch.full((len(x),), -torch.inf, device=x.device)
        members, seconds = self.members(clean.shape[1], targeted=target is not None), []
        for number, (name, attack) in enumerate(members.items()):
            started = time.perf_counter()
            rows = (~success).nonzero().squeeze(1)
            if len(rows):
                label = f"{self.id} {number + 1}/{len(members)} {name}, {len(rows) / len(x):.1%} standing"
                stage = attack.run(
                    model, x[rows], y[rows], run=_labelled(run, label), target=None if target is None else goal[rows]
                )
                queries[rows] += stage.queries
                gradients[rows] += stage.gradients
                margin = goal_margin(aim, stage.logits, y[rows], goal[rows])
                kept = stage.success | (margin > nearest[rows])
                x_adv[rows[kept]], logits[rows[kept]] = stage.x_adv[kept], stage.logits[kept]
                nearest[rows[kept]] = margin[kept]
                fell[rows[stage.success]] = number
                success[rows] = stage.success
            seconds.append(time.perf_counter() - started)
        outcome = StagedOutcome(
            x_adv=x_adv,
            success=success,
            correct=clean.argmax(1) == y,
            queries=queries,
            gradients=gradients,
            distance=distance(x_adv, x, self.norm),
            logits=logits,
            clean_logits=clean,
            norm=self.norm,
            eps=self.eps,
            names=tuple(members),
            specs=tuple(map(str, members.values())),
            seconds=tuple(seconds),
            fell=fell,
            notes=tuple(notes),
        )
        outcome = dataclasses.replace(outcome, notes=outcome.notes + _afterthoughts(outcome))
        for note in outcome.notes:
            warnings.warn(f"{self.id}: {note}", Unreliable, stacklevel=2)
        return outcome

    def _survey(
        self, model: nn.Module, x: Tensor, y: Tensor, goal: Tensor, run: Run, *, targeted: bool
    ) -> tuple[Tensor, list[str]]:
        """The logits of the images as they are, and what speaks against trusting the attack."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with consult(model, x[:8], run) as oracle:
                clean = oracle.verdicts(x)
                check_labels(self.id, clean.shape[1], y, goal if targeted else None)
                flat = _without_gradient(oracle, x, y)
                probabilities = oracle.probabilities
        random, classes, notes = any(issubclass(w.category, NonDeterministic) for w in caught), clean.shape[1], []
        if random and self.version != "rand":
            notes.append("the model answers at random; take version='rand', and judge by the mean of many answers.")
        if self.version == "rand" and not random:
            notes.append("version='rand' is for models that answer at random; this one does not, take 'standard'.")
        if probabilities:
            notes.append("the model gives probabilities, in which what the softmax rounded away is lost; give logits.")
        if flat:
            notes.append("there are images whose gradient is exactly zero; only Square means anything there.")
        if classes < 4:
            notes.append(
                f"with {classes} classes the targeted DLR loss does not exist; the margin takes its place, and "
                f"{classes - 1} of the {self.targets} targets are left."
            )
        return clean, notes


def _without_gradient(oracle: Oracle, x: Tensor, y: Tensor) -> bool:
    """Whether the cross-entropy of any of the first images has a gradient of zero."""
    # Cloned, since inference tensors of the caller's cannot take part in a gradient.
    points, labels = x[:_PROBED].clone().float().to(oracle.device), y[:_PROBED].clone().to(oracle.device)
    _, _, gradient = oracle.gradient(points, loss_for("any", "ce"), labels, labels)
    return bool((gradient == 0).flatten(1).all(1).any())


def _afterthoughts(outcome: StagedOutcome) -> tuple[str, ...]:
    if outcome.names[-1] != "square":
        return ()
    found = float((outcome.fell == len(outcome.names) - 1).double().mean())
    if found <= _SQUARE_FINDS:
        return ()
    return (
        f"Square, without gradients, broke more than {_SQUARE_FINDS:.1%} of the images, after all attacks with "
        "gradients had missed them: the gradients are masked, and an attack made for this model will find more.",
    )


@dataclass(frozen=True, kw_only=True)
class _LabelledRun(Run):
    """A run whose progress bars have a label of their own."""

    label: str = ""

    @contextlib.contextmanager
    def track(self, total: float, label: str) -> Iterator[Ticker]:
        with super().track(total, self.label) as ticker:
            yield ticker


def _labelled(run: Run, label: str) -> Run:
    return _LabelledRun(label=label, **{f.name: getattr(run, f.name) for f in dataclasses.fields(Run)})
