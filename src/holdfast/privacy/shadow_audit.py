"""The audit of membership with shadow models: from a model, its training images, others, and the recipe, to leakage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from holdfast import catalog
from holdfast.data import Images, concat
from holdfast.errors import UserError
from holdfast.methods import Method
from holdfast.models import extract
from holdfast.privacy.evaluation import Leakage, leakage
from holdfast.privacy.fit_recipe import Trainer, views_of
from holdfast.privacy.membership import MembershipInference, ShadowAttack
from holdfast.privacy.shadow_models import train_shadows
from holdfast.privacy.shadows import Shadows
from holdfast.privacy.views import observe
from holdfast.run import Run

__all__ = ["MembershipAudit", "audit_with_shadows"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MembershipAudit:
    """What membership attacks achieve on a model.

    Args:
        leakage: by attack, in the order they were named.
        scores: float64 (N,) by attack, higher says member; the members come first, then the others.
        member: bool (N,), the truth.
        y: int64 (N,), the labels.
        shadows: the number of shadow models that were used.
        notes: what makes the figures less than they seem, in words.
    """

    leakage: Mapping[str, Leakage]
    scores: Mapping[str, Float[Tensor, " n"]]
    member: Bool[Tensor, " n"]
    y: Tensor
    shadows: int
    notes: tuple[str, ...] = ()

    def table(self) -> pa.Table:
        """One row per image: split (``train`` or ``test``), index in it, label, member, and each attack's score."""
        inside = int(self.member.sum())
        columns: dict[str, Any] = {
            "split": ["train"] * inside + ["test"] * (len(self.y) - inside),
            "index": [*range(inside), *range(len(self.y) - inside)],
            "label": self.y.numpy(),
            "member": self.member.numpy(),
        }
        return pa.table(columns | {name: score.numpy() for name, score in self.scores.items()})

    def to_json(self) -> dict[str, Any]:
        """Everything but the scores, as plain values."""
        return {
            "members": int(self.member.sum()),
            "nonmembers": int((~self.member).sum()),
            "shadows": self.shadows,
            "attacks": {name: plain(leak) for name, leak in self.leakage.items()},
            "notes": list(self.notes),
        }


def audit_with_shadows(
    model: nn.Module,
    members: Images,
    nonmembers: Images,
    recipe: Trainer | None = None,
    *,
    attacks: Sequence[str | MembershipInference | ShadowAttack] = ("lira", "rmia", "loss-mia"),
    shadows: int = 64,
    views: Sequence[str] | None = None,
    population: Images | None = None,
    resamples: int = 10_000,
    run: Run,
) -> MembershipAudit:
    """Attack a model by what its training makes of its images: how many of them could be recognised?

    Args:
        model: the model to be attacked.
        members: images that it was trained on.
        nonmembers: images of the same kind that it was not trained on, best as many, with the same mix of classes.
        recipe: trains a model as this one was trained, see `train_shadows`; attacks without shadow models need none.
        attacks: of the kinds membership and shadow-membership.
        shadows: the number of shadow models; even.
        views: what is asked of all models; see `train_shadows`.
        population: further images, which join the pool of the shadow models and stand for all others in `rmia`, instead
            of the images attacked.
        resamples: for the intervals.
        run: device, seed, folder.

    Raises:
        UserError: a set has fewer than two images, the sets do not fit together, there are too few shadow models, or a
            method or an option is unknown.
    """
    for name, images in (("members", members), ("non-members", nonmembers)):
        if len(images) < 2:
            raise UserError(f"membership inference: at least two {name} are needed, got {len(images)}.")
    built = _attacks(attacks)
    attacked = concat(*(part.but(columns={}) for part in (members, nonmembers)), name=members.name)
    needing = [name for name, attack in built.items() if isinstance(attack, ShadowAttack)]
    others = None
    if needing:
        if recipe is None:
            raise UserError(
                f"{needing[0]} must know how the model was trained: give the recipe (on the command line, --recipe "
                "FILE, or --epochs N and what differs from the defaults)."
            )
        views = views_of(recipe) if views is None else views
        pool = attacked if population is None else concat(attacked, population.but(columns={}))
        others = train_shadows(model, pool, recipe, shadows=shadows, views=views, run=run)
        if population is not None:
            others = dataclasses.replace(others, population=torch.arange(len(pool)) >= len(attacked))
        answers = observe(model, pool, views=views, run=run)
    features = extract(model, attacked, run=run)
    scores = {}
    for name, attack in built.items():
        if isinstance(attack, ShadowAttack):
            assert others is not None
            scores[name] = attack.score(answers, others)[: len(attacked)]
        else:
            scores[name] = attack.score(features)
    inside = len(members)
    return MembershipAudit(
        leakage={
            name: leakage(
                score[:inside].numpy(),
                score[inside:].numpy(),
                rng=run.numpy_rng("membership", name),
                resamples=resamples,
            )
            for name, score in scores.items()
        },
        scores=scores,
        member=torch.arange(len(attacked)) < inside,
        y=attacked.y,
        shadows=0 if others is None else len(others),
        notes=tuple(_notes(members, nonmembers, others)),
    )


def plain(leak: Leakage) -> dict[str, Any]:
    """Figures with their 95 % intervals, as plain values."""

    def rate(value: float | None, interval: tuple[float, float] | None) -> dict[str, float | None]:
        low, high = interval or (None, None)
        return {"value": value, "low": low, "high": high}

    return {
        "auc": rate(leak.auc, leak.auc_interval),
        "balanced_accuracy": rate(leak.balanced_accuracy, leak.balanced_accuracy_interval),
        "tpr": {f"{fpr:g}": rate(value, leak.tpr_intervals.get(fpr)) for fpr, value in leak.tpr.items()},
    }


def _attacks(
    specs: Sequence[str | MembershipInference | ShadowAttack],
) -> dict[str, MembershipInference | ShadowAttack]:
    built: dict[str, MembershipInference | ShadowAttack] = {}
    for spec in specs:
        method: Method = catalog.build(spec)
        if not isinstance(method, MembershipInference | ShadowAttack):
            raise UserError(
                f"{spec} is of kind {method.kind}, but a method of kind {MembershipInference.kind} or "
                f"{ShadowAttack.kind} is needed."
            )
        built[str(method)] = method
    if not built:
        raise UserError("membership inference: name at least one attack.")
    return built


def _notes(members: Images, nonmembers: Images, shadows: Shadows | None) -> list[str]:
    notes = []
    shares = [torch.bincount(i.y, minlength=i.num_classes) / len(i) for i in (members, nonmembers)]
    apart = float((shares[0] - shares[1]).abs().sum() / 2)
    if apart > 0.1:
        notes.append(
            f"Members and non-members differ in their mix of classes by {apart:.0%}: what tells classes apart looks "
            "like leakage."
        )
    if shadows is not None:
        seen = shadows.members.shape[1] // 2
        if not 0.75 <= seen / len(members) <= 1.33:
            notes.append(
                f"Shadow models are trained on {seen} images, the attacked model on {len(members)}: they memorise "
                f"{'more' if seen < len(members) else 'less'} than it does, which weakens the attacks."
            )
    return notes
