"""A universal pattern: one perturbation for all images, with what it does to a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast import stats
from holdfast.data.images import Images
from holdfast.errors import UserError
from holdfast.evasion.balls import Norm
from holdfast.evasion.oracle import consult
from holdfast.files import write_bytes
from holdfast.run import Run

__all__ = ["Effect", "Pattern"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Effect:
    """What a pattern does to a model's predictions on N images.

    Args:
        clean: int64 (N,), predicted classes without the pattern.
        attacked: with it.
        y: the labels.
        classes: how many there are.
        alone: the class predicted for the pattern itself, as if it were an image.
        on_mean: the class predicted for the images' mean with the pattern added.
    """

    clean: Int64[Tensor, " n"]
    attacked: Int64[Tensor, " n"]
    y: Int64[Tensor, " n"]
    classes: int
    alone: int
    on_mean: int

    @property
    def fooling_rate(self) -> float:
        """The share of predictions that change, right or wrong before."""
        return float((self.clean != self.attacked).double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the fooling rate (Wilson)."""
        return stats.wilson(int((self.clean != self.attacked).sum()), len(self.clean))

    @property
    def accuracy_drop(self) -> float:
        """Accuracy without the pattern minus accuracy with it."""
        return float((self.clean == self.y).double().mean() - (self.attacked == self.y).double().mean())

    @property
    def success(self) -> float:
        """The share of errors with the pattern among the images predicted rightly without it."""
        right = self.clean == self.y
        return float((self.attacked[right] != self.y[right]).double().mean()) if right.any() else 0.0

    def dominant(self, k: int = 1) -> list[int]:
        """The `k` classes predicted most often with the pattern, the most frequent first."""
        counts = torch.bincount(self.attacked, minlength=self.classes)
        return counts.argsort(descending=True, stable=True)[:k].tolist()

    def dominance(self, k: int = 1) -> float:
        """The share of images that the pattern gathers in the `k` classes predicted most often with it."""
        return float(torch.isin(self.attacked, torch.tensor(self.dominant(k))).double().mean())

    def clean_share(self, k: int = 1) -> float:
        """The share of images in those same classes without the pattern."""
        return float(torch.isin(self.clean, torch.tensor(self.dominant(k))).double().mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class Pattern:
    """One perturbation for all images.

    Args:
        v: float32 (C, H, W), to be added; on the CPU.
        eps, norm: the ball it lies in.
        attack: the spec of the attack that found it.
        curves: what was measured after each pass over the images, by name.
    """

    v: Float[Tensor, "c h w"]
    eps: float
    norm: Norm
    attack: str = ""
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def add_to(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Images in [0, 1] with the pattern added, clipped to [0, 1]; a new tensor like `x`."""
        return (x + self.v.to(x)).clamp_(0, 1)

    def effect(self, model: nn.Module, images: Images, *, run: Run) -> Effect:
        """What the pattern does to a model, in two float32 passes of the user's own model over the images.

        Raises:
            UserError: there are no images, or they are of another shape than the pattern.
        """
        if not len(images) or images.shape != tuple(self.v.shape):
            raise UserError(
                f"{images.name}: {len(images)} images of shape {images.shape} cannot take a pattern of "
                f"shape {tuple(self.v.shape)}."
            )
        clean, attacked, total = [], [], torch.zeros(self.v.shape, dtype=torch.float64)
        with consult(model, next(images.batches(8))[0], run) as oracle:
            for x, _ in images.batches(oracle.limit, oracle.device):
                logits = oracle.verdict(x)
                clean.append(logits.argmax(1).cpu())
                attacked.append(oracle.verdict(self.add_to(x)).argmax(1).cpu())
                total += x.double().sum(0).cpu()
            v, mean = self.v.to(oracle.device), (total / len(images)).float().to(oracle.device)
            alone, on_mean = (int(oracle.verdict(point[None]).argmax(1)) for point in (v, mean + v))
        return Effect(
            clean=torch.cat(clean),
            attacked=torch.cat(attacked),
            y=images.y,
            classes=logits.shape[1],
            alone=alone,
            on_mean=on_mean,
        )

    def fooling_rate(self, model: nn.Module, images: Images, *, run: Run) -> float:
        """The share of a model's predictions that the pattern changes; see `effect` for more."""
        return self.effect(model, images, run=run).fooling_rate

    def save(self, path: Path | str) -> None:
        """Write a safetensors file."""
        about = {
            "eps": repr(self.eps),
            "norm": self.norm,
            "attack": self.attack,
            "curves": json.dumps(dict(self.curves)),
        }
        write_bytes(Path(path), safetensors.torch.save({"v": self.v.contiguous()}, about))

    @classmethod
    def load(cls, path: Path | str) -> Pattern:
        """Read what `save` wrote.

        Raises:
            UserError: there is no such file, or it holds no pattern.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                about, v = file.metadata() or {}, file.get_tensor("v")
                curves = {name: tuple(values) for name, values in json.loads(about["curves"]).items()}
                eps, norm = float(about["eps"]), cast(Norm, about["norm"])
        except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path} is not a universal pattern: {error}") from None
        return cls(v=v, eps=eps, norm=norm, attack=about.get("attack", ""), curves=curves)
