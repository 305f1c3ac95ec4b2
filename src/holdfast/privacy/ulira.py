"""U-LiRA: does anything of an image remain in a model that unlearned it?

Of each image two kinds of model are compared: such as were trained on it and then unlearned it, and such as never saw
it and unlearned other images, as many. If unlearning is as good as never having learnt, the kinds cannot be told
apart, and the AUC of the likelihood ratio attack between them is 0.5. One unlearned model alone cannot answer this: an
image that is forgotten too well stands out as well, and to a single threshold that looks like success.

Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy", 2024,
arXiv:2403.01218.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from holdfast import catalog, stats
from holdfast.data import Images, concat
from holdfast.errors import UserError
from holdfast.methods import Analysis, Paper, Unlearner
from holdfast.privacy.fit_recipe import Trainer, said_in_full
from holdfast.privacy.lira import LiRA
from holdfast.privacy.shadow_models import balanced_halves, depends_on, hashed, kept, novice, shadow_folder
from holdfast.privacy.shadows import Shadows
from holdfast.privacy.views import check_views, observe
from holdfast.run import Run

__all__ = ["ORIGINAL", "Trace", "TraceReport", "ULiRA"]

ORIGINAL = "original"  # the models before they unlearn


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What remains of the images to be forgotten.

    Args:
        auc: chance that the attack ranks a model that unlearned an image above one that never saw it; 0.5 is
            forgotten.
        auc_interval: 95 % interval, over images and models.
        distance: ``|auc - 0.5|``.
        distance_interval: that of the distance which follows from the former.
    """

    auc: float
    auc_interval: tuple[float, float]
    distance: float
    distance_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class TraceReport:
    """What remains after each unlearner, and before any.

    Args:
        traces: by unlearner; ``original`` stands for none.
        scores: of every model and image, float64 (S, N), by unlearner; higher says unlearned rather than never seen.
        members: bool (S, N), which images the models were trained on.
    """

    traces: Mapping[str, Trace]
    scores: Mapping[str, Float[Tensor, "s n"]]
    members: Bool[Tensor, "s n"]

    @property
    def sentence(self) -> str:
        """The finding in words."""
        models, images = self.members.shape
        parts = []
        for name, trace in self.traces.items():
            low, high = trace.auc_interval
            parts.append(f"{name}: AUC {trace.auc:.3f} ({low:.3f} to {high:.3f})")
        return f"Telling unlearned from never seen, {images} images, {models} models (0.5 is forgotten): " + "; ".join(
            parts
        )

    def listing(self) -> list[dict[str, str]]:
        """A row per unlearner."""
        return [
            {
                "unlearner": name,
                "AUC": f"{trace.auc:.3f}",
                "95 %": "{:.3f} to {:.3f}".format(*trace.auc_interval),
                "|AUC - 0.5|": f"{trace.distance:.3f}",
            }
            for name, trace in self.traces.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        models, images = self.members.shape
        return {
            "models": models,
            "images": images,
            "traces": {name: asdict(trace) for name, trace in self.traces.items()},
        }


@dataclass(frozen=True, kw_only=True)
class ULiRA(
    Analysis,
    id="ulira",
    title="Likelihood ratio attack on unlearning",
    paper=Paper(
        title="Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy",
        arxiv="2403.01218",
        year=2024,
    ),
):
    """Audit unlearners by many models that unlearn a random half of the images and never saw the other half.

    It judges the procedure, not one model: every model is attacked in turn with the help of the others, by `lira`.
    Costs as many trainings as there are models, and as many unlearnings for each unlearner; what was done is kept, as
    by `holdfast.privacy.train_shadows`. Retraining must come out at 0.5, which tests the audit itself.

    Args:
        models: their number, even, at least 6; of each image, half of them unlearn it.
        views: what is asked of them; see `holdfast.privacy.observe`.
        shared_below: see `lira`.
        resamples: for the intervals.
    """

    needs = "a recipe, unlearners and images to forget"

    models: Annotated[int, Field(ge=6)] = 64
    views: tuple[str, ...] = ("identity",)
    shared_below: Annotated[int, Field(ge=1)] = 64
    resamples: Annotated[int, Field(ge=1)] = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_views(self.views)

    def __call__(
        self,
        model: nn.Module,
        images: Images,
        retain: Images,
        recipe: Trainer,
        unlearners: Mapping[str, Unlearner] | Sequence[Unlearner | str],
        *,
        run: Run,
    ) -> TraceReport:
        """Train, unlearn, attack.

        Args:
            model: for its architecture alone.
            images: N images to be forgotten or never seen; each model learns one half of them, and unlearns it.
            retain: images that all models learn and keep, of the same kind.
            recipe: trains a model; see `holdfast.privacy.train_shadows`.
            unlearners: by name, or methods and specs of them, such as ``"ft(epochs=5)"``.
            run: device, seed, folder.

        Raises:
            UserError: there are too few images or models, or an unlearner or the recipe refuses.
        """
        named = _named(unlearners)
        if not len(retain):
            raise UserError(f"{self.id}: nothing is retained.")
        members = balanced_halves(len(images), self.models, run)
        answers: dict[str, list[Tensor]] = {name: [] for name in named}
        with run.track(self.models, "models that unlearn") as ticker:
            for k, mask in enumerate(members):
                own = run.child(f"shadow {k}").but(out=None, progress=False)
                found = self._answers(model, images, retain, mask, recipe, named, own, run)
                for name, value in found.items():
                    answers[name].append(value)
                ticker.advance()
        traces, scores = {}, {}
        for name, values in answers.items():
            shadows = Shadows(log_odds=torch.stack(values), members=members)
            scores[name] = self._scores(shadows)
            traces[name] = self._trace(scores[name], members, run.numpy_rng("ulira", name))
        return TraceReport(traces=traces, scores=scores, members=members)

    def _answers(
        self,
        model: nn.Module,
        images: Images,
        retain: Images,
        mask: Tensor,
        recipe: Trainer,
        unlearners: Mapping[str, Unlearner | None],
        own: Run,
        run: Run,
    ) -> dict[str, Tensor]:
        """What one model says of the images, after each unlearner; it is trained when first needed."""
        start, forget = novice(model, own), images.select(mask)
        how = said_in_full(recipe)
        shared = {
            "images": images.fingerprint(),
            "retain": retain.fingerprint(),
            "members": hashed(mask),
            "recipe": how,
            "views": list(self.views),
        }
        identity = depends_on(start, own, **shared)

        @functools.cache
        def trained() -> nn.Module:
            return recipe(start, concat(retain.but(columns={}), forget.but(columns={})), run=own)

        found = {}
        for name, unlearner in unlearners.items():
            said = ORIGINAL if unlearner is None else said_in_full(unlearner)

            def asked(unlearner: Unlearner | None = unlearner) -> dict[str, Tensor]:
                unlearned = trained() if unlearner is None else unlearner(trained(), forget, retain, run=own)
                return {"log_odds": observe(unlearned, images, views=self.views, run=own)}

            folder = None if how is None or said is None else shadow_folder(run)
            found[name] = kept(folder, {**identity, "unlearner": said}, asked)["log_odds"]
        return found

    def _scores(self, shadows: Shadows) -> Tensor:
        """Each model attacked with the help of the others, but for the one that has the other half: (S, N)."""
        lira = LiRA(shared_below=self.shared_below)
        held_out = map(shadows.held_out, range(len(shadows)))
        return torch.stack([lira.score(log_odds, others) for log_odds, _, others in held_out])

    def _trace(self, scores: Tensor, members: Tensor, rng: np.random.Generator) -> Trace:
        """The AUC over all models and images. Both are resampled for its interval, which is wide rather than narrow."""
        values, truth = scores.numpy(), members.numpy()
        pairs, count = len(values) // 2, int(values.shape[1])

        def area(rows: np.ndarray[Any, Any], columns: np.ndarray[Any, Any]) -> float:
            of, seen = values[np.ix_(rows, columns)], truth[np.ix_(rows, columns)]
            return stats.auroc(of[~seen], of[seen])

        auc = area(np.arange(2 * pairs), np.arange(count))
        drawn = []
        for _ in range(self.resamples):
            chosen = 2 * rng.integers(0, pairs, size=pairs)
            drawn.append(area(np.concatenate([chosen, chosen + 1]), rng.integers(0, count, size=count)))
        low, high = (float(bound) for bound in np.quantile(drawn, [0.025, 0.975]))
        off = abs(low - 0.5), abs(high - 0.5)
        return Trace(
            auc=auc,
            auc_interval=(low, high),
            distance=abs(auc - 0.5),
            distance_interval=(0.0 if low <= 0.5 <= high else min(off), max(off)),
        )


def _named(unlearners: Mapping[str, Unlearner] | Sequence[Unlearner | str]) -> dict[str, Unlearner | None]:
    """The unlearners by name, and that there is none by its own."""
    if isinstance(unlearners, Mapping):
        given: dict[str, Any] = dict(unlearners)
    else:
        built: list[Unlearner] = [catalog.build(u, kind=Unlearner) for u in unlearners]
        given = {str(u): u for u in built}
    if ORIGINAL in given:
        raise UserError(f"ulira: {ORIGINAL!r} stands for no unlearner; give this one another name.")
    return {ORIGINAL: None, **given}
