"""Accuracy when someone changes inputs on purpose, within the radius of the threat."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast import stats
from holdfast.audit.check import Answer, Check, Remedy, rate
from holdfast.audit.findings import Action, Chart, Gallery, Metric, Series, Table
from holdfast.audit.numbers import quantity
from holdfast.audit.pictures import difference, picture
from holdfast.audit.predictions import Attacked
from holdfast.audit.subject import Subject
from holdfast.data import to_float
from holdfast.evasion import APGD, FAB, FGSM, PGD, Square
from holdfast.evasion import Evasion as EvasionAttack
from holdfast.models import queryables
from holdfast.run import content_keys, uniform_at

__all__ = ["Evasion"]


@dataclass(frozen=True)
class _Stage:
    """An attack, the positions of the images it was let loose on, and what it did.

    `follows` says that these are the images which the attacks before it had left: a rate among them means nothing.
    """

    name: str
    attack: EvasionAttack
    which: NDArray[np.int64]
    found: Attacked
    follows: bool = False


@dataclass(frozen=True, kw_only=True)
class Evasion(Check):
    """FGSM, PGD, Square, and on what they leave more attacks; the verdict is on the images that withstand all of them.

    By the profile, what PGD leaves meets PGD on the margin; or Auto-PGD, untargeted and targeted; or these and FAB,
    which together with Square are AutoAttack.

    A model that only answers queries, such as a deployed one, meets Square alone, on as many images as that is run on.
    """

    id = "evasion"
    section = "evasion"
    title = "Attacks"
    question = "Can someone change inputs imperceptibly so that it errs?"

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        profile = subject.profile
        n = len(subject.first(profile.square_images if subject.only_answers else profile.attack_images))
        correct = subject.predictions("test").correct[:n]
        stages = _stages(subject, n)
        standing, cumulative = correct.copy(), []
        for stage in stages:
            standing[stage.which[stage.found.success]] = False
            cumulative.append(float(standing.mean()))
        black_box = stages[-1]
        return Answer(
            metrics=[
                rate("robust-accuracy", standing, title="Accuracy under the strongest attack on each image"),
                rate("clean-accuracy", correct, title="Accuracy on the same images, clean"),
                rate("noise-accuracy", _under_noise(subject, n), title="Accuracy under random noise of the same size"),
                *(
                    rate(f"{s.name}-accuracy", ~s.found.success, title=f"Accuracy under {s.attack}")
                    for s in stages
                    if not s.follows
                ),
                *_queries(black_box, correct),
            ],
            figures=[
                _bars(subject, stages, correct, standing),
                _table(stages, correct, cumulative),
                *_gallery(subject, stages),
            ],
            remedies=[
                Remedy(
                    Action(
                        text="Train against attacks of this size: adversarial training costs some clean accuracy and "
                        "is the one defence that has lasted.",
                        method="pgd-at",
                        command="holdfast show pgd-at",
                    ),
                    when="robust-accuracy",
                ),
                Remedy(
                    Action(
                        text="If nobody can choose the inputs, say so in the policy (threat: {adversary: false}); the "
                        "numbers are then reported and not judged."
                    ),
                    when="robust-accuracy",
                ),
            ],
            settings={
                "norm": "linf",
                "eps": subject.policy.threat.eps,
                "knowledge": "answers only (Square)"
                if subject.only_answers
                else "white box and, for Square, scores only",
                "attacks": {
                    s.name: {"images": len(s.which)} | {f.name: getattr(s.attack, f.name) for f in fields(s.attack)}  # type: ignore[arg-type]
                    for s in stages
                },
                "images": n,
            },
            limitations=[
                "An attack shows what breaks; what it does not break may still break. The figure is an upper bound.",
                "Only changes within the maximum norm are tried: no rotations, patches or physical changes.",
                *_unseen(subject),
                f"Square was tried on the first {len(black_box.which)} of {n} images.",
            ],
            doubt=_doubt(subject),
            samples={"test": _samples(stages, standing)},
        )


def _stages(subject: Subject, n: int) -> list[_Stage]:
    """The attacks in order; those that follow others are spared the images that have fallen."""
    eps, profile = subject.policy.threat.eps, subject.profile
    every = np.arange(n)
    square = Square(eps=eps, queries=profile.square_queries)
    stages: list[_Stage] = []

    def run(name: str, attack: EvasionAttack, which: NDArray[np.int64], examples: int = 0) -> None:
        stages.append(_Stage(name, attack, which, subject.attacked(attack, which, examples=examples)))

    def follow(name: str, attack: EvasionAttack) -> None:
        standing = subject.predictions("test").correct[:n].copy()
        for stage in stages:
            standing[stage.which[stage.found.success]] = False
        which = np.flatnonzero(standing)
        stages.append(_Stage(name, attack, which, subject.attacked(attack, which), follows=True))

    if subject.only_answers:
        run("square", square, every, profile.gallery)
        return stages
    run("fgsm", FGSM(eps=eps), every)
    run("pgd", PGD(eps=eps, steps=profile.pgd_steps, restarts=profile.pgd_restarts), every, profile.gallery)
    targets = min(profile.apgd_targets, subject.data.num_classes - 1)
    if not profile.apgd_steps:
        follow("pgd-margin", PGD(eps=eps, steps=profile.pgd_steps, loss="margin"))
    else:
        follow("apgd", APGD(eps=eps, steps=profile.apgd_steps))
        # The targeted loss compares four logits; with fewer classes the margin has to do.
        few = subject.features("test").logits.shape[1] < 4 or not targets
        other = {"loss": "margin"} if few else {"targets": targets}
        follow("apgd-targeted", APGD(eps=eps, steps=profile.apgd_steps, **other))
    if profile.fab_steps:
        follow("fab", FAB(eps=eps, steps=profile.fab_steps, targets=targets))
    run("square", square, every[: profile.square_images])
    return stages


def _unseen(subject: Subject) -> list[str]:
    """What an attacker with nothing but answers leaves unseen."""
    if not subject.only_answers:
        return []
    unseen = ["The model only answers queries. Whoever has its weights, or a model like it, may find more."]
    if any(part.labels_only for part in queryables(subject.model)):
        unseen.append(
            "It answers with labels alone, which give Square nothing to follow: it is little more than noise."
        )
    return unseen


def _under_noise(subject: Subject, n: int) -> NDArray[np.bool_]:
    """Whether predictions survive one draw of uniform noise in the ball: what an attack must beat to be one."""
    images = subject.first(n)
    x = to_float(images.x)
    noise = uniform_at(subject.run.seed_for("noise"), content_keys(x), x[0].numel()).view(x.shape)
    eps = subject.policy.threat.eps
    outputs = subject.respond((x + eps * (2 * noise - 1)).clamp(0, 1))
    right: NDArray[np.bool_] = (outputs.argmax(1) == images.y).numpy()
    return right


def _queries(square: _Stage, correct: NDArray[np.bool_]) -> list[Metric]:
    """What the black-box attack cost where it succeeded."""
    won = square.found.success & correct[square.which]
    if not won.any():
        return []
    return [
        Metric(
            name="square-median-queries",
            value=float(np.median(square.found.queries[won])),
            n=int(won.sum()),
            unit="count",
            better="higher",
            title="Median number of queries with which Square succeeds",
        )
    ]


def _doubt(subject: Subject) -> str:
    if subject.only_answers:
        return ""
    failed = [sign.name for sign in subject.masking if not sign.ok and sign.severity == "fail"]
    if not failed:
        return ""
    return f"Gradients seem to be masked ({', '.join(failed)}), so the accuracy under attack is not to be trusted."


def _bars(subject: Subject, stages: list[_Stage], correct: NDArray[np.bool_], standing: NDArray[np.bool_]) -> Chart:
    rates = {"clean": rate("", correct), "random noise": rate("", _under_noise(subject, len(correct)))}
    rates |= {s.name: rate("", ~s.found.success) for s in stages if not s.follows}
    rates["all attacks"] = rate("", standing)
    return Chart(
        kind="bar",
        title=f"Accuracy under attack, eps {quantity(255 * subject.policy.threat.eps, 'value')}/255",
        y_label="accuracy",
        series=[
            Series(
                name="accuracy",
                x=list(rates),
                y=[r.value for r in rates.values()],
                low=[r.low or 0.0 for r in rates.values()],
                high=[r.high or 0.0 for r in rates.values()],
            )
        ],
        y_range=(0, 1),
        caption="Whiskers are 95 % intervals (Wilson).",
    )


def _table(stages: list[_Stage], correct: NDArray[np.bool_], cumulative: list[float]) -> Table:
    rows: list[list[str | float | int | None]] = [["none", len(correct), float(correct.mean()), None, None, None, None]]
    for stage, left in zip(stages, cumulative, strict=True):
        n = len(stage.which)
        won = stage.found.success & correct[stage.which]
        low, high = stats.wilson(int((~stage.found.success).sum()), n) if n else (None, None)
        rows.append(
            [
                str(stage.attack),
                n,
                float((~stage.found.success).mean()) if n else None,
                low,
                high,
                left,
                float(np.median(stage.found.queries[won])) if won.any() else None,
            ]
        )
    return Table(
        title="Attacks",
        columns=["attack", "images", "accuracy", "at least", "at most", "with all before it", "median queries"],
        rows=rows,
        percent=["accuracy", "at least", "at most", "with all before it"],
        caption=" ".join(
            f"{stage.name} attacks only the images that those before it have left." for stage in stages if stage.follows
        ),
    )


def _gallery(subject: Subject, stages: list[_Stage]) -> list[Gallery]:
    shown = next((stage for stage in stages if stage.name == "pgd"), stages[-1])
    classes, seen = subject.data.classes, subject.predictions("test")
    groups = []
    for x_adv, i in zip(shown.found.examples, shown.found.example_of.tolist(), strict=True):
        place = int(np.flatnonzero(shown.which == i)[0])
        clean, changed = to_float(subject.test.x[i]), torch.from_numpy(x_adv)
        confidence = quantity(float(shown.found.confidence[place]), "rate")
        groups.append(
            [
                picture(clean, f"{classes[seen.label[i]]}, {quantity(float(seen.confidence[i]), 'rate')}", "clean"),
                picture(changed, f"{classes[shown.found.prediction[place]]}, {confidence}", "adversarial"),
                difference(clean, changed),
            ]
        )
    if not groups:
        return []
    return [
        Gallery(title="Adversarial examples", groups=groups[: subject.profile.gallery], caption=f"By {shown.attack}.")
    ]


def _samples(stages: list[_Stage], standing: NDArray[np.bool_]) -> dict[str, NDArray[np.generic]]:
    columns: dict[str, NDArray[np.generic]] = {"robust": standing}
    for stage in stages:
        if stage.follows:
            continue  # of the survivors only; `robust` knows of it
        columns[f"{stage.name}.success"] = stage.found.success
        columns[f"{stage.name}.queries"] = stage.found.queries
        columns[f"{stage.name}.distance"] = stage.found.distance.astype(np.float32)
    return columns
