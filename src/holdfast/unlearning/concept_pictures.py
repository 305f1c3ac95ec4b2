"""Pictures of a concept and of what is to be kept: the user's, or drawn by the very model that is to forget.

A model that has learnt a concept can draw it, so nothing need be collected (generative replay: Shin et al., "Continual
Learning with Deep Generative Replay", NeurIPS 2017, arXiv:1705.08690). What is drawn is kept in the run's folder, for
on large models it takes longer than the unlearning itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from holdfast import files
from holdfast.data import Images
from holdfast.generative import Diffusion, sample
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.unlearning.concept_tuning import ConceptTuning
from holdfast.unlearning.concepts import Concept, as_told
from holdfast.unlearning.gradients import Gradients

__all__ = ["OwnPictures", "remembered"]


@dataclass(frozen=True, kw_only=True)
class OwnPictures(ConceptTuning):
    """A method that needs pictures, and draws those that it is not given.

    Args:
        samples: pictures to draw of the concept, and as many of what is to be kept, where that is needed.
        ddim_steps: of the sampler that draws them.
        guidance: how much they insist on what they are to show.
    """

    samples: Annotated[int, Field(ge=1)] = 800
    ddim_steps: Annotated[int, Field(ge=1)] = 50
    guidance: Annotated[float, Field(ge=0)] = 2.0

    def of_concept(self, model: Diffusion, concept: Concept, *, run: Run) -> Images:
        """Pictures of the concept; their classes are what the model is told of them."""
        prompts = concept.asked(model)
        if concept.images is not None:
            return as_told(model, concept.images, prompts)
        return self.drawn(model, prompts, name="forget", run=run)

    def to_keep(self, model: Diffusion, concept: Concept, *, run: Run) -> Images:
        """Pictures of what is to be kept, likewise."""
        if concept.retained is not None:
            return as_told(model, concept.retained)
        return self.drawn(model, concept.kept(model), name="retain", run=run)

    def drawn(
        self, model: Diffusion, prompts: tuple[str, ...], *, name: str, count: int | None = None, run: Run
    ) -> Images:
        """Pictures by the model itself, `samples` of them unless it is said how many, the prompts in turn; uint8."""
        total = count or self.samples
        y = torch.arange(total) % len(prompts)
        child = run.child(name)

        def make() -> dict[str, Tensor]:
            steps = min(self.ddim_steps, model.schedule.steps)
            wanted = [prompts[place] for place in y.tolist()]
            pixels = sample(model, of=wanted, sampler=f"ddim(steps={steps})", guidance=self.guidance, run=child)
            return {"x": (255 * pixels).round().to(torch.uint8)}

        identity = (weights_hash(model), prompts, total, self.ddim_steps, self.guidance)
        x = remembered(run, name, identity, make)["x"]
        return Images(x=x, y=y, classes=prompts, name=f"drawn pictures to {name}")


def remembered(run: Run, name: str, identity: tuple[Any, ...], make: Callable[[], dict[str, Tensor]]) -> Gradients:
    """What `make` gives, or gave before, from the run's folder, where there is one.

    Args:
        run: its seed and scope belong to the identity.
        name: of the file.
        identity: all else that the result depends on, as plain values.
        make: gives tensors by name.
    """
    if run.out is None:
        return make()
    path = run.out / f"{name}.safetensors"
    digest = hashlib.sha256(json.dumps([*identity, run.seed_for(name)]).encode()).hexdigest()
    if path.is_file():
        try:
            with safe_open(path, framework="pt", device=str(run.torch_device)) as kept:
                if (kept.metadata() or {}).get("identity") == digest:
                    return {key: kept.get_tensor(key) for key in kept.keys()}  # noqa: SIM118 - it is no mapping
        except SafetensorError:
            pass  # cut short or not ours: it is made again
    found = make()
    files.make_dir(path.parent)
    with files.atomic_path(path) as temporary:
        save_file({key: value.contiguous() for key, value in found.items()}, temporary, {"identity": digest})
    return found
