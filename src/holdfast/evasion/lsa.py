"""Layer sustainability analysis: which layers of a network are carried away most by a perturbation of its input?

Clean and perturbed images pass through the network, and for every layer the distance between its two representations is
taken relative to the clean one's size. Layers above the average make the list of most vulnerable layers, on which
`at-lr` trains. Noise of the attack's own norm shows what a perturbation does that was not made to harm.

Khalooei et al., "Layer-wise Regularized Adversarial Training using Layers Sustainability Analysis framework",
Neurocomputing 2023, arXiv:2202.02626, section 3. Where the list is cut, at the mean, is our own choice, and
so is that attacks climb away from the class the model predicts: images that it has wrong are perturbed as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from holdfast import catalog
from holdfast.data.images import Images, to_float
from holdfast.errors import UserError
from holdfast.evasion.balls import distance, normals
from holdfast.evasion.layer_errors import MEASURES, Measure, Moved, layer_errors, most_vulnerable
from holdfast.evasion.rescaling import Rescaling
from holdfast.methods import Analysis, Attack, Paper
from holdfast.models import only_answers, predict
from holdfast.models.activations import Watched
from holdfast.run import Run, content_keys, uniform_at

__all__ = ["LSA", "LSAByModel", "LSAReport"]

_NOISES = ("gaussian", "salt-and-pepper", "uniform")
_SLIGHT = 1e-3  # a perturbation that leaves the box nowhere but at its faces; it is then stretched


@dataclass(frozen=True, kw_only=True)
class LSAReport:
    """What the analysis of one model found.

    Args:
        images: name of the split.
        n: how many of them.
        measure: by which layers are ranked.
        found: perturbation by perturbation; the first one is the attack that decides.
        vulnerable: the most vulnerable layers under it, in the order of computation.
    """

    images: str
    n: int
    measure: Measure
    found: tuple[Moved, ...]
    vulnerable: tuple[str, ...]

    def errors(self, perturbation: str) -> Mapping[str, float]:
        """The chosen measure of each layer, in the order of computation."""
        return next(m for m in self.found if m.perturbation == perturbation).errors[self.measure]

    @property
    def sentence(self) -> str:
        """The finding in words."""
        first = self.found[0]
        errors = first.errors[self.measure]
        worst = max(errors, key=lambda name: errors[name])
        said = (
            f"Under {first.perturbation} on {self.n} images of {self.images}, {worst} moves most "
            f"({errors[worst]:.3f}); the most vulnerable of {len(errors)} layers: {', '.join(self.vulnerable)}."
        )
        noises = {m.perturbation: m.errors[self.measure] for m in self.found if m.perturbation in _NOISES}
        if noises:
            harder = sum(all(errors[name] > noise[name] for noise in noises.values()) for name in errors)
            said += f" It moves {harder} of {len(errors)} layers more than noise of its norm does."
        return said

    def listing(self) -> list[dict[str, str]]:
        """A row per layer, a column per perturbation, in words."""
        ids = [m.perturbation.partition("(")[0] for m in self.found]
        titles = [id if ids.count(id) == 1 else m.perturbation for id, m in zip(ids, self.found, strict=True)]
        return [
            {"layer": name}
            | {title: f"{m.errors[self.measure][name]:.3f}" for title, m in zip(titles, self.found, strict=True)}
            | {"vulnerable": "yes" if name in self.vulnerable else ""}
            for name in self.found[0].errors[self.measure]
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {
            "images": self.images,
            "n": self.n,
            "measure": self.measure,
            "vulnerable": list(self.vulnerable),
            "perturbations": [
                {
                    "perturbation": m.perturbation,
                    "l2": m.l2,
                    "changed": m.changed,
                    "layers": [
                        {"layer": name, **{measure: m.errors[measure][name] for measure in MEASURES}}
                        for name in m.errors[self.measure]
                    ],
                }
                for m in self.found
            ],
        }


@dataclass(frozen=True, kw_only=True)
class LSAByModel:
    """The reports on several models, by name."""

    reports: Mapping[str, LSAReport]

    @property
    def sentence(self) -> str:
        """One sentence or two about each model."""
        return "\n".join(f"{name}: {report.sentence}" for name, report in self.reports.items())

    def listing(self) -> list[dict[str, str]]:
        """The rows of all models."""
        if len(self.reports) == 1:
            return next(iter(self.reports.values())).listing()
        return [{"model": name} | row for name, report in self.reports.items() for row in report.listing()]

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {"models": {name: report.to_json() for name, report in self.reports.items()}}


@dataclass(frozen=True, kw_only=True)
class LSA(
    Analysis,
    id="lsa",
    title="Layer sustainability analysis",
    paper=Paper(
        title="Layer-wise Regularized Adversarial Training using Layers Sustainability Analysis framework",
        arxiv="2202.02626",
        venue="Neurocomputing",
        year=2023,
    ),
):
    """Which layers a perturbation of the input carries away most, and by how much.

    For seeing where in the network an attack gains its ground, and for choosing the layers of `at-lr`. Costs the
    attacks and a pass per perturbation. Activations are seen whether they are modules or function calls; in a residual
    network the last one of a block is that after the addition.

    Take attacks that take all their steps: one that stops at the first success, as `pgd` does, perturbs a weak model
    little, and shows its layers better than they are.

    Args:
        attacks: what perturbs the images: specs of attacks, and ``gaussian``, ``salt-and-pepper`` or ``uniform`` noise.
            The first is an attack, by default PGD to its last step. It decides which layers are vulnerable, and noise
            is scaled, image by image, to the l_2 norm of what it added.
        measure: ``"relative"``, the distance over the whole set; ``"per-sample"``, the mean of each image's;
            ``"cosine"``, one minus the cosine. All are reported; this one ranks.
        outputs: those of ``"activations"``, of layers with ``"weights"``, or ``"both"``.
        spread: layers count as most vulnerable above the mean over layers plus so many standard deviations.
        top: take so many layers instead.
    """

    attacks: tuple[str, ...] = (
        "i-fgsm(random_start=true, steps=20, step=2/255)",
        *("fgsm", *_NOISES),
    )
    measure: Measure = "relative"
    outputs: Watched = "activations"
    spread: float = 0.0
    top: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.attacks)) != len(self.attacks) or not self.attacks or self.attacks[0] in _NOISES:
            raise UserError(
                f"{self.id}: attacks must be different perturbations, the first of them an attack, "
                f"got {list(self.attacks)}."
            )
        for spec in self.attacks:
            if spec not in _NOISES:
                catalog.build(spec, kind=Attack)

    def __call__(self, model: nn.Module, images: Images, *, run: Run) -> LSAReport:
        """Analyse a model.

        Args:
            model: in any mode, left as it was.
            images: at least one; their labels are not read.
            run: device, seed, batch size.

        Raises:
            UserError: as the attacks do, or no layer can be seen: the model only answers queries, is compiled, or uses
                none of the functions that are watched.
        """
        if only_answers(model):
            raise UserError(f"{self.id}: it looks inside the model, but this one only answers queries.")
        model = getattr(model, "_orig_mod", model)  # inside what torch.compile returns
        said = predict(model, images, run=run).argmax(1)
        x = to_float(images.x)
        first = catalog.build(self.attacks[0], kind=Attack)(model, x, said, run=run)
        norm, perturbed = distance(first, x, "l2"), {self.attacks[0]: first}
        for spec in self.attacks[1:]:
            if spec in _NOISES:
                perturbed[spec] = _noisy(spec, x, norm, run.seed_for(f"{self.id} {spec}"))
            else:
                perturbed[spec] = catalog.build(spec, kind=Attack)(model, x, said, run=run)
        found = layer_errors(model, x, perturbed, outputs=self.outputs, run=run)
        chosen = most_vulnerable(found[0].errors[self.measure], spread=self.spread, top=self.top)
        return LSAReport(images=images.name, n=len(images), measure=self.measure, found=tuple(found), vulnerable=chosen)

    def of_models(self, models: Mapping[str, nn.Module], images: Images, *, run: Run) -> LSAByModel:
        """Analyse each model."""
        return LSAByModel(reports={name: self(model, images, run=run) for name, model in models.items()})


def _noisy(kind: str, x: Float[Tensor, "n c h w"], norm: Float[Tensor, " n"], seed: int) -> Float[Tensor, "n c h w"]:
    """The images with noise of the given l_2 norms, or as near as the box allows."""
    pixels = x[0].numel()
    uniforms = uniform_at(seed, content_keys(x), 2 * pixels)
    first, second = (part.view(x.shape) for part in uniforms.split(pixels, dim=1))
    if kind == "salt-and-pepper":
        # In random order, values turn black or white until there are enough; then all together fit the norm.
        whole = (second < 0.5).float() - x
        order = first.flatten(1).argsort(1)
        size = whole.flatten(1).double().square().gather(1, order)
        earlier = torch.zeros_like(size).scatter(1, order, size.cumsum(1) - size)
        added = whole * (earlier < norm.double()[:, None] ** 2).view(x.shape)
    else:
        direction = normals(first) if kind == "gaussian" else 2 * first - 1
        added = (x + _SLIGHT * direction).clamp(0, 1) - x
    return (x + Rescaling(x, added, 1.0).to_norm(norm)).clamp(0, 1)
