"""Accuracy when someone changes inputs on purpose, within the radius of the threat."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from holdfast.audit.attack_figures import Stage, class_chart, gallery, query_curve, stage_bars, stage_table
from holdfast.audit.check import Answer, Check, Remedy, left_out, rate
from holdfast.audit.findings import Action, Metric
from holdfast.audit.subject import Subject
from holdfast.data import to_float
from holdfast.evasion import APGD, FAB, FGSM, PGD, HopSkipJump, Square
from holdfast.evasion import Evasion as EvasionAttack
from holdfast.run import content_keys, uniform_at

__all__ = ["Evasion"]


@dataclass(frozen=True, kw_only=True)
class Evasion(Check):
    """FGSM, PGD, Square, and on what they leave more attacks; the verdict is on the images that withstand all of them.

    By the profile, what PGD leaves meets PGD on the margin; or Auto-PGD, untargeted and targeted; or these and FAB,
    which together with Square are AutoAttack.

    A model that only answers queries, such as a deployed one, meets Square alone, on as many images as that is run on;
    if it answers with labels, HopSkipJump instead.
    """

    id = "evasion"
    section = "evasion"
    title = "Attacks"
    question = "Can someone change inputs imperceptibly so that it errs?"

    def __call__(self, subject: Subject) -> Answer:
        """Measure."""
        profile = subject.profile
        labels = subject.labels_only
        if labels:
            left_out(subject, profile.decision_images)
        images = profile.decision_images if labels else profile.square_images
        n = len(subject.first(images if subject.only_answers else profile.attack_images))
        correct = subject.predictions("test").correct[:n]
        stages = _stages(subject, n)
        standing, cumulative = correct.copy(), []
        for stage in stages:
            standing[stage.which[stage.found.success]] = False
            cumulative.append(float(standing.mean()))
        black_box, noisy = stages[-1], _under_noise(subject, n)
        return Answer(
            metrics=[
                rate("robust-accuracy", standing, title="Accuracy under the strongest attack on each image"),
                rate("clean-accuracy", correct, title="Accuracy on the same images, clean"),
                rate("noise-accuracy", noisy, title="Accuracy under random noise of the same size"),
                *(
                    rate(f"{s.name}-accuracy", ~s.found.success, title=f"Accuracy under {s.attack}")
                    for s in stages
                    if not s.follows
                ),
                *_queries(black_box, correct),
            ],
            figures=[
                stage_bars(subject, stages, {"clean": correct, "random noise": noisy}, standing),
                stage_table(stages, correct, cumulative),
                class_chart(subject, correct, standing),
                *query_curve(black_box, correct),
                *gallery(subject, stages),
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
                "knowledge": f"answers only ({black_box.name})"
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
                f"{black_box.attack.card().title} was tried on the first {len(black_box.which)} of {n} images.",
            ],
            doubt=subject.doubt,
            samples={"test": _samples(stages, standing)},
        )


def _stages(subject: Subject, n: int) -> list[Stage]:
    """The attacks in order; those that follow others are spared the images that have fallen."""
    eps, profile = subject.policy.threat.eps, subject.profile
    every = np.arange(n)
    square = Square(eps=eps, queries=profile.square_queries)
    stages: list[Stage] = []

    def run(name: str, attack: EvasionAttack, which: NDArray[np.int64], examples: int = 0) -> None:
        stages.append(Stage(name, attack, which, subject.attacked(attack, which, examples=examples)))

    def follow(name: str, attack: EvasionAttack) -> None:
        standing = subject.predictions("test").correct[:n].copy()
        for stage in stages:
            standing[stage.which[stage.found.success]] = False
        which = np.flatnonzero(standing)
        stages.append(Stage(name, attack, which, subject.attacked(attack, which), follows=True))

    if subject.labels_only:
        run("hopskipjump", HopSkipJump(norm="linf", eps=eps, queries=profile.decision_queries), every, profile.gallery)
        return stages
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
    if subject.labels_only:
        unseen.append("It answers with labels alone, so that the attack has no score to follow.")
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


def _queries(black_box: Stage, correct: NDArray[np.bool_]) -> list[Metric]:
    """What the black-box attack cost where it succeeded."""
    won = black_box.found.success & correct[black_box.which]
    if not won.any():
        return []
    return [
        Metric(
            name=f"{black_box.name}-median-queries",
            value=float(np.median(black_box.found.queries[won])),
            n=int(won.sum()),
            unit="count",
            better="higher",
            title=f"Median number of queries with which {black_box.attack.card().title} succeeds",
        )
    ]


def _samples(stages: list[Stage], standing: NDArray[np.bool_]) -> dict[str, NDArray[np.generic]]:
    columns: dict[str, NDArray[np.generic]] = {"robust": standing}
    for stage in stages:
        if stage.follows:
            continue  # of the survivors only; `robust` knows of it
        columns[f"{stage.name}.success"] = stage.found.success
        columns[f"{stage.name}.queries"] = stage.found.queries
        columns[f"{stage.name}.distance"] = stage.found.distance.astype(np.float32)
    return columns
