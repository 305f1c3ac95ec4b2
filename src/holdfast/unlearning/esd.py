"""ESD: move what the model predicts for a concept away from the concept, by the model's own knowledge of it.

The direction in which a prompt pulls the prediction is the difference to what is predicted for no prompt. Guidance
goes along it; here the model learns to go the other way when it is told the concept. With eta = 1 that is to say
nothing at all: it predicts what it would predict untold. The noisy images are those that the original model passes
through when it draws the concept, so neither pictures nor texts are needed beside the concept's name.

Gandikota et al., "Erasing Concepts from Diffusion Models", ICCV 2023, arXiv:2303.07345, section 4.
"""
# ruff: noqa: RUF009 - methods are immutable, so they may stand as defaults.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.generative import Diffusion, sample_path
from holdfast.methods import Objective, Paper
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.training import Adam, Optimizer, Step
from holdfast.unlearning.concept_pictures import remembered
from holdfast.unlearning.concept_tuning import ConceptTuning, Weights
from holdfast.unlearning.concepts import Concept

__all__ = ["ESD"]


@dataclass(frozen=True, kw_only=True)
class ESD(
    ConceptTuning,
    id="esd",
    title="ESD: erased diffusion",
    paper=Paper(title="Erasing Concepts from Diffusion Models", arxiv="2303.07345", venue="ICCV", year=2023),
):
    """Train the model to predict, when told the concept, the opposite of what the concept would add.

    The paper's variants differ in `weights`: ``"cross-attention"`` (ESD-x) for styles and persons, which texts name,
    ``"all-but-cross-attention"`` (ESD-u) for what is to vanish whatever the text says.

    Args:
        eta: how far to go the other way; 1 in the paper, 2 in the authors' present code.
        guidance: with which the original model draws the concept on the way to the noisy images.
        ddim_steps: of that drawing.
        per_path: noisy images taken from each drawing; 1 in the paper, more cost less.
        erase_from: another text from which to take the concept out; by default the concept's own prompts.
    """

    steps: Annotated[int, Field(ge=1)] = 1000
    batch_size: Annotated[int, Field(ge=1)] = 1
    optimizer: Optimizer = Adam(lr=1e-5)
    weights: Weights = "cross-attention"
    eta: Annotated[float, Field(ge=0)] = 1.0
    guidance: Annotated[float, Field(ge=0)] = 3.0
    ddim_steps: Annotated[int, Field(ge=1)] = 50
    per_path: Annotated[int, Field(ge=1)] = 1
    erase_from: str = ""

    def __call__(self, model: Diffusion, concept: Concept | str, *, run: Run) -> Diffusion:
        """Return a copy that has forgotten, in evaluation mode.

        Raises:
            UserError: the model does not know a word, or is told nothing.
        """
        original, concept = self.begin(model, concept, run=run)
        erased = concept.asked(original)
        told = (self.erase_from,) * len(erased) if self.erase_from else erased
        states = self._on_the_way(original, erased, run.child(f"{self.id} states"))
        objective = _Away(self, original, original.context(erased), original.context(told))
        return self.tuned(model, states, objective, run=run)

    def _on_the_way(self, original: Diffusion, prompts: tuple[str, ...], run: Run) -> Images:
        """What the original passes through when it draws the concept, in the columns ``x_t`` and ``t``."""
        steps = min(self.ddim_steps, original.schedule.steps)
        each = min(self.per_path, steps)
        count = math.ceil(self.steps * self.batch_size / each)
        of = torch.arange(count) % len(prompts)
        taken = torch.rand(count, steps, generator=run.rng("places")).argsort(1)[:, :each]

        def make() -> dict[str, Tensor]:
            wanted = [prompts[place] for place in of.tolist()]
            path = sample_path(original, of=wanted, sampler=f"ddim(steps={steps})", guidance=self.guidance, run=run)
            found: list[tuple[Tensor, Tensor, Tensor]] = []
            for place, (t, x_t) in enumerate(path):
                rows = (taken == place).any(1).nonzero().flatten()
                found.append((x_t[rows.to(x_t.device)], torch.full((len(rows),), t), of[rows]))
            names = ("x_t", "t", "y")
            return {name: torch.cat(parts) for name, parts in zip(names, zip(*found, strict=True), strict=True)}

        identity = (weights_hash(original), prompts, count, each, steps, self.guidance)
        states = {name: value.cpu() for name, value in remembered(run, "states", identity, make).items()}
        y = states.pop("y")
        # The training looks at the columns alone.
        nothing = torch.zeros(1, dtype=torch.uint8).expand(len(y), *original.image_shape)
        return Images(x=nothing, y=y, classes=prompts, columns=states, name="drawings on their way")


class _Away(Objective):
    """The squared distance to the prediction that the concept was taken out of."""

    logits = False
    columns = ("x_t", "t")

    def __init__(self, method: ESD, original: Diffusion, erased: Tensor, told: Tensor):
        self.method, self.original, self.erased, self.told = method, original, erased, told

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        x_t, t = step.columns["x_t"], step.columns["t"]
        told = self.told[y]
        target = self.target(x_t, t, self.erased[y], told)
        return (model(x_t, t, told) - target).square().mean()

    @torch.no_grad()
    def target(self, x_t: Tensor, t: Tensor, erased: Tensor, told: Tensor) -> Tensor:
        """What the original predicts when told, less the concept's share in what it predicts."""
        with_, without = self.original(x_t, t, erased), self.original(x_t, t, self.original.nothing(len(x_t)))
        base = with_ if torch.equal(erased, told) else self.original(x_t, t, told)
        return base - self.method.eta * (with_ - without)

    def __str__(self) -> str:
        return str(self.method)
