"""Transferability by both norms: does an attack transfer better, or does it only change the images more?

Attacks within one l_inf ball differ in how much of it they fill. Each attack is therefore reported with its l_2 norm,
and once more with all perturbations scaled to equal norm; what an attack gains over the baseline is split into the part
that the larger norm explains and the part that the better direction does.

Chen et al., "Measuring the Transferability of l_inf Attacks by the l_2 Norm", arXiv:2102.10343, 2021. How
norms are matched here is our own choice: by scaling and clipping within the ball, see `holdfast.evasion.rescaling`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any

import scipy  # its modules load on first use
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast import catalog
from holdfast.data.images import Images, to_float
from holdfast.errors import UserError
from holdfast.evasion.rescaling import Rescaling
from holdfast.evasion.transfer import Transferred, attacked, right_on, to_bytes
from holdfast.methods import Analysis, Attack, Paper
from holdfast.models import predict
from holdfast.run import Run

__all__ = ["L2Report", "L2Row", "L2Transferability"]


@dataclass(frozen=True, kw_only=True)
class L2Transferability(
    Analysis,
    id="l2-transferability",
    title="Transferability by the l_2 norm",
    paper=Paper(
        title="Measuring the Transferability of l_inf Attacks by the l_2 Norm", arxiv="2102.10343", venue="", year=2021
    ),
):
    """Transfer attacks compared at equal l_2 norm as well as at equal l_inf norm.

    Before believing that a new attack transfers better, ask this. Costs each attack once per surrogate, and per victim
    some ten passes over the images for each attack.

    Args:
        attacks: their specs; the first is the baseline.
        eps: the l_inf radius of all of them, in place of their own.
        points: norms at which the curves of success against norm are measured.
    """

    attacks: tuple[str, ...] = (
        *("i-fgsm", "fgsm", "mi-fgsm", "di-fgsm", "ti-fgsm"),
        "si-fgsm(lookahead='momentum')",
    )
    eps: Annotated[float, Field(gt=0, le=1)] = 8 / 255
    points: Annotated[int, Field(ge=2)] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.attacks)) != len(self.attacks) or not self.attacks:
            raise UserError(f"{self.id}: attacks must be different attacks, at least one, got {list(self.attacks)}.")
        for spec in self.attacks:
            if "eps" not in {f.name for f in dataclasses.fields(catalog.find(catalog.build(spec, kind=Attack).id))}:
                raise UserError(f"{self.id}: attacks must have a radius eps, but {spec} has none.")

    def __call__(
        self, surrogates: Mapping[str, nn.Module], victims: Mapping[str, nn.Module], images: Images, *, run: Run
    ) -> L2Report:
        """Compare the attacks.

        Args:
            surrogates: models to attack, by name.
            victims: models to fool, by name.
            images: with their true labels. Floats are rounded to 8 bits first, and so are attacked images before they
                are measured; scaled perturbations are not rounded again.
            run: device, seed, batch size.

        Raises:
            UserError: as the attacks do, or no image is classified rightly by a surrogate and a victim.
        """
        images = images.but(x=to_bytes(images.x))
        rows = [row for source, model in surrogates.items() for row in self._rows(source, model, victims, images, run)]
        return L2Report(images=images.name, eps=self.eps, baseline=self.attacks[0], rows=tuple(rows))

    def of_models(self, models: Mapping[str, nn.Module], images: Images, *, run: Run) -> L2Report:
        """Attack each model in turn, and try the images on the others."""
        if len(models) < 2:
            raise UserError(
                f"{self.id}: it takes at least two models, one to attack and one to fool, got {len(models)}."
            )
        reports = [
            self({name: model}, {v: victim for v, victim in models.items() if v != name}, images, run=run)
            for name, model in models.items()
        ]
        return dataclasses.replace(reports[0], rows=tuple(row for report in reports for row in report.rows))

    def _rows(
        self, source: str, surrogate: nn.Module, victims: Mapping[str, nn.Module], images: Images, run: Run
    ) -> list[L2Row]:
        """All attacks on one surrogate."""
        method = {spec: self._at_eps(spec) for spec in self.attacks}
        made = {spec: attacked(method[spec], surrogate, images, run) for spec in self.attacks}
        right = next(iter(made.values())).right
        both = {name: right & right_on(victim, images, run) for name, victim in victims.items()}
        for name, counted in both.items():
            if not counted.any():
                raise UserError(f"{self.id}: {source} and {name} classify no image rightly, both of them.")
        clean = to_float(images.x)
        scaling = {spec: Rescaling(clean, to_float(m.x) - clean, self.eps) for spec, m in made.items()}
        smallest = min(float(m.l2[right].double().mean()) for m in made.values())
        largest = 0.9 * min(float(s.corner[right].mean()) for s in scaling.values())
        norms = [largest * (i + 1) / self.points for i in range(self.points)]

        def rates(spec: str, norm: Tensor | float) -> dict[str, float]:
            """Success on each victim with the attack's perturbations brought to a norm."""
            x = clean + scaling[spec].to_norm(norm)
            return {v: _success(model, x[both[v]], images.select(both[v]), run) for v, model in victims.items()}

        base = self.attacks[0]
        rows = []
        for spec in self.attacks:
            curves = [rates(spec, norm) for norm in norms]
            rows.append(
                L2Row(
                    surrogate=source,
                    attack=spec,
                    steps=getattr(method[spec], "steps", 1),
                    step=getattr(method[spec], "step_length", self.eps),
                    **_norms(made[spec], self.eps),
                    n={name: int(counted.sum()) for name, counted in both.items()},
                    success={
                        v: _success(model, to_float(made[spec].x)[both[v]], images.select(both[v]), run)
                        for v, model in victims.items()
                    },
                    matched_norm=smallest,
                    matched=rates(spec, smallest),
                    reached=float((scaling[spec].corner[right] >= largest).double().mean()),
                    norms=norms,
                    curves={name: [point[name] for point in curves] for name in victims},
                    baseline_at_this_norm=rates(base, made[spec].l2),
                )
            )
        return rows

    def _at_eps(self, spec: str) -> Attack:
        method: Any = catalog.build(spec, kind=Attack)
        return dataclasses.replace(method, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class L2Row:
    """One attack on one surrogate. Shares are over images that surrogate and victim classify rightly.

    Args:
        surrogate, attack: names.
        steps, step: of the attack; few small steps fill little of the ball.
        l2: mean l_2 norm of its perturbations, after rounding to 8 bits.
        rmse: mean norm per square root of pixels and channels.
        saturation: the same as a share of eps: 1 if every pixel is at its bound.
        n: images that count, by victim.
        success: share fooled, by victim.
        matched_norm: the smallest mean norm of all attacks on this surrogate.
        matched: share fooled when every perturbation is scaled to that norm.
        reached: share of images whose perturbation can be scaled to the largest of `norms`; the others stay below.
        norms: nine tenths of the way to the smallest mean corner of the ball, in equal steps.
        curves: share fooled at each of `norms`, by victim.
        baseline_at_this_norm: share fooled by the baseline's perturbations scaled, image by image, to this attack's.
    """

    surrogate: str
    attack: str
    steps: int
    step: float
    l2: float
    rmse: float
    saturation: float
    n: dict[str, int] = field(default_factory=dict)
    success: dict[str, float] = field(default_factory=dict)
    matched_norm: float
    matched: dict[str, float] = field(default_factory=dict)
    reached: float
    norms: list[float] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    baseline_at_this_norm: dict[str, float] = field(default_factory=dict)

    def area(self, victim: str) -> float:
        """The mean height of the curve."""
        curve = self.curves[victim]
        return sum((a + b) / 2 for a, b in pairwise(curve)) / (len(curve) - 1)


@dataclass(frozen=True, kw_only=True)
class L2Report:
    """What the comparison found.

    Args:
        images: name of the split.
        eps: the l_inf radius.
        baseline: the attack that the others are compared with.
        rows: surrogate by surrogate, attack by attack.
    """

    images: str
    eps: float
    baseline: str
    rows: tuple[L2Row, ...]

    def row(self, surrogate: str, attack: str) -> L2Row:
        """One attack on one surrogate."""
        return next(r for r in self.rows if (r.surrogate, r.attack) == (surrogate, attack))

    def correlation(self, surrogate: str, victim: str) -> float | None:
        """Spearman's rank correlation, over attacks, of mean l_2 norm and success; None where it is not defined."""
        rows = [r for r in self.rows if r.surrogate == surrogate]
        norms, rates = [r.l2 for r in rows], [r.success[victim] for r in rows]
        if len(set(norms)) < 2 or len(set(rates)) < 2:
            return None
        value = float(scipy.stats.spearmanr(norms, rates).statistic)
        return value if math.isfinite(value) else None

    def gain(self, surrogate: str, attack: str, victim: str) -> dict[str, float]:
        """What an attack gains over the baseline: in all, by its larger norm, and by its direction."""
        row, base = self.row(surrogate, attack), self.row(surrogate, self.baseline)
        total = row.success[victim] - base.success[victim]
        norm = row.baseline_at_this_norm[victim] - base.success[victim]
        return {
            "total": total,
            "norm": norm,
            "direction": total - norm,
            "matched": row.matched[victim] - base.matched[victim],
            "area": row.area(victim) - base.area(victim),
        }

    @property
    def sentence(self) -> str:
        """The finding in words, for the first surrogate and victim."""
        surrogate, victim = self.rows[0].surrogate, next(iter(self.rows[0].success))
        rows = [r for r in self.rows if r.surrogate == surrogate]
        best = max(rows, key=lambda r: r.success[victim])
        said = f"{surrogate} -> {victim}: {best.attack} transfers best ({best.success[victim]:.1%})"
        if best.attack == self.baseline:
            return said + "."
        base, gain = self.row(surrogate, self.baseline), self.gain(surrogate, best.attack, victim)
        return (
            f"{said}, with {best.l2 / max(base.l2, 1e-12):.2f} times the l_2 norm of {self.baseline} "
            f"({base.success[victim]:.1%}); of its gain of {100 * gain['total']:.1f} points, "
            f"{100 * gain['norm']:.1f} come from the norm and {100 * gain['direction']:.1f} from the direction."
        )

    def listing(self) -> list[dict[str, str]]:
        """A row per surrogate, victim and attack, in words."""
        return [
            {
                "surrogate": row.surrogate,
                "victim": victim,
                "attack": row.attack,
                "fooled": f"{success:.1%}",
                "of": str(row.n[victim]),
                "mean l_2": f"{row.l2:.3f}",
                "saturation": f"{row.saturation:.0%}",
                "fooled at equal l_2": f"{row.matched[victim]:.1%}",
            }
            for row in self.rows
            for victim, success in row.success.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        rows = []
        for row in self.rows:
            gains = {victim: self.gain(row.surrogate, row.attack, victim) for victim in row.success}
            rows.append({**dataclasses.asdict(row), "gain_over_baseline": gains})
        pairs = {(r.surrogate, victim) for r in self.rows for victim in r.success}
        return {
            "images": self.images,
            "eps": self.eps,
            "baseline": self.baseline,
            "rows": rows,
            "correlation_of_norm_and_success": [
                {"surrogate": s, "victim": v, "spearman": self.correlation(s, v)} for s, v in sorted(pairs)
            ],
        }


def _norms(made: Transferred, eps: float) -> dict[str, float]:
    l2 = float(made.l2[made.right].double().mean())
    rmse = l2 / math.sqrt(made.x[0].numel())
    return {"l2": l2, "rmse": rmse, "saturation": rmse / eps}


def _success(model: nn.Module, x: Float[Tensor, "n c h w"], images: Images, run: Run) -> float:
    wrong = predict(model, images.but(x=x.clamp(0, 1)), run=run).argmax(1) != images.y
    return float(wrong.to(torch.float64).mean())
