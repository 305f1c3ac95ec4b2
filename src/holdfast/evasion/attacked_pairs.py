"""Pairs of an image and its attacked copy: making them, transforming both alike, and judging what undoes the attack.

They are what a denoiser learns from that is to recover the clean image from the attacked one; see
`holdfast.evasion.cdd_red`.

Gong et al., "Reverse Engineering of Imperceptible Adversarial Image Perturbations", ICLR 2022, arXiv:2203.14145.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from holdfast import catalog, stats
from holdfast.data.images import Images, concat, to_float
from holdfast.errors import UserError
from holdfast.methods import Attack
from holdfast.models import frozen, full_precision
from holdfast.models.features import logits_of
from holdfast.run import Run

__all__ = ["COLUMN", "Recovery", "attacked_pairs", "crop_and_pad", "cut_mix", "recovery"]

#: The column's name: what the attack added, (N, C, H, W). Half precision keeps it to a hundredth of a grey level, where
#: rounding the attacked image to 8 bits would lose what is smaller than one.
COLUMN = "perturbation"

_LEAST_CROP = 180 / 224  # share of the side up to which the least size of a crop is drawn, as for ImageNet in the paper


def attacked_pairs(
    images: Images, victims: Sequence[nn.Module], attacks: Sequence[Attack | str], *, run: Run
) -> Images:
    """The images, once for each victim and attack, with the perturbation in the column ``perturbation``.

    Images that an attack does not change are kept: they show what to leave alone.

    Args:
        images: with their true labels.
        victims: models to attack.
        attacks: or their specs. Those that take all their steps, such as `i-fgsm`, show an attack's pattern best.
        run: device, precision of gradients, seed.

    Raises:
        UserError: there are no images, victims or attacks, or an attack cannot be carried out.
    """
    if not len(images):
        raise UserError(f"{images.name}: there are no images to attack.")
    for what, given in (("victim", victims), ("attack", attacks)):
        if not given:
            raise UserError(f"attacked_pairs: at least one {what} is needed, got none.")
    clean = to_float(images.x)
    parts = []
    for place, victim in enumerate(victims):
        here = run.child(f"victim-{place}")
        for spec in attacks:
            method = catalog.build(spec, kind=Attack)
            x_adv = method(victim, clean, images.y, run=here)
            parts.append(images.with_column(COLUMN, (x_adv - clean).half()))
    return concat(*parts)


def crop_and_pad(
    x: Float[Tensor, "n c h w"], x_adv: Float[Tensor, "n c h w"], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Keep one region of each pair, the same in both, and set the rest to zero.

    For each pair a least size is drawn, up to four fifths of the side, then a size from there up to the whole side, and
    a centre anywhere, so that regions may stick out.
    """
    count, _, height, width = x.shape
    u = torch.rand(4, count, generator=rng)
    inside = []
    for centre, side in ((u[2], height), (u[3], width)):
        least = 1 + (u[0] * max(1, round(_LEAST_CROP * side))).long()
        length = least + (u[1] * (side - least + 1)).long()
        inside.append(_between((centre * side).long() - length // 2, length, side))
    mask = (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(x)
    return x * mask, x_adv * mask


def cut_mix(
    x: Float[Tensor, "n c h w"], x_adv: Float[Tensor, "n c h w"], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace one box of each pair, the same in both, by that of another pair of the batch.

    The box's share of the area is uniform before it is cut off at the border; centres lie anywhere. Yun et al.,
    "CutMix", ICCV 2019, arXiv:1905.04899, with Beta(1, 1).
    """
    count, _, height, width = x.shape
    other = torch.randperm(count, generator=rng).to(x.device)
    u = torch.rand(3, count, generator=rng)
    inside = []
    for centre, side in ((u[1], height), (u[2], width)):
        half = side * u[0].sqrt() / 2
        first = (centre * side - half).round().long()
        inside.append(_between(first, (centre * side + half).round().long() - first, side))
    box = (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(x.device)
    return torch.where(box, x[other], x), torch.where(box, x_adv[other], x_adv)


def _between(first: Tensor, length: Tensor, side: int) -> Bool[Tensor, "n side"]:
    """Whether each position of a side lies in the stretch that begins at `first`, row by row."""
    at = torch.arange(side)
    return (at >= first[:, None]) & (at < (first + length)[:, None])


@dataclass(frozen=True, kw_only=True, eq=False)
class Recovery:
    """How well clean images were recovered from attacked ones, image by image, (N,) each.

    Args:
        error: root mean square of the recovered less the clean image, in pixel units of [0, 1].
        before: the same of the attacked less the clean image.
        benign: whether the classifier says the same of the recovered as of the clean image.
        adversarial: whether it says the same of the clean image with the recovered perturbation as of the attacked one.
        angle: between recovered and true perturbation in pixels, in degrees; NaN where one of them is zero.
        logit_angle: the same between the changes of the logits that they make.
    """

    error: Float[Tensor, " n"]
    before: Float[Tensor, " n"]
    benign: Bool[Tensor, " n"]
    adversarial: Bool[Tensor, " n"]
    angle: Float[Tensor, " n"]
    logit_angle: Float[Tensor, " n"]

    @property
    def rmse(self) -> float:
        """Of all pixels of all images together."""
        return float(self.error.square().mean().sqrt())

    @property
    def rmse_before(self) -> float:
        """Of the attacked images."""
        return float(self.before.square().mean().sqrt())

    @property
    def pa_benign(self) -> float:
        """Prediction alignment of the recovered images, a share."""
        return float(self.benign.double().mean())

    @property
    def pa_adv(self) -> float:
        """Prediction alignment of the clean images with the recovered perturbations, a share."""
        return float(self.adversarial.double().mean())

    @property
    def sentence(self) -> str:
        """The result in words."""
        return (
            f"Of {len(self.error)} attacked images, {self.pa_benign:.1%} get the clean image's label back, and "
            f"{self.pa_adv:.1%} of the recovered perturbations fool like the true ones; pixels are off by "
            f"{self.rmse:.4f}, {self.rmse_before:.4f} before."
        )

    def to_json(self) -> dict[str, Any]:
        """The figures, with 95 % intervals of shares, as plain values."""
        count = len(self.error)
        shares = {}
        for name, hits in (("pa_benign", self.benign), ("pa_adv", self.adversarial)):
            low, high = stats.wilson(int(hits.sum()), count)
            shares[name] = {"value": float(hits.double().mean()), "low": low, "high": high}
        angles = {
            name: float(values.nanmean()) if bool((~values.isnan()).any()) else None
            for name, values in (("angle", self.angle), ("logit_angle", self.logit_angle))
        }
        return {"n": count, "rmse": self.rmse, "rmse_before": self.rmse_before, **shares, **angles}

    def join(self, *others: Recovery) -> Recovery:
        """This and others together."""
        names = ("error", "before", "benign", "adversarial", "angle", "logit_angle")
        return Recovery(**{name: torch.cat([getattr(r, name) for r in (self, *others)]) for name in names})


def recovery(
    denoiser: nn.Module,
    classifier: nn.Module,
    x: Float[Tensor, "n c h w"],
    x_adv: Float[Tensor, "n c h w"],
    *,
    run: Run,
) -> Recovery:
    """Judge a denoiser on pairs whose clean half is known.

    Args:
        denoiser: attacked images to recovered ones, such as ``guarded.denoiser``.
        classifier: whose predictions count; the paper takes the model that the images were attacked on.
        x, x_adv: clean and attacked images in [0, 1].
        run: device, batch size.

    Raises:
        UserError: there are no images, or the two differ in shape.
    """
    if not len(x) or x.shape != x_adv.shape:
        raise UserError(
            f"recovery: clean and attacked images must be as many and of one shape, at least one, got {tuple(x.shape)} "
            f"and {tuple(x_adv.shape)}."
        )
    device, rows = run.torch_device, []
    with frozen(denoiser, device=device), frozen(classifier, device=device), torch.no_grad(), full_precision():
        for first in range(0, len(x), run.batch_size):
            clean, attacked = (t[first : first + run.batch_size].float().to(device) for t in (x, x_adv))
            x_hat = denoiser(attacked)
            z, z_adv, z_hat, z_again = (
                logits_of(classifier, t).float() for t in (clean, attacked, x_hat, attacked - x_hat + clean)
            )
            rows.append(
                Recovery(
                    error=_rms(x_hat - clean),
                    before=_rms(attacked - clean),
                    benign=(z_hat.argmax(1) == z.argmax(1)).cpu(),
                    adversarial=(z_again.argmax(1) == z_adv.argmax(1)).cpu(),
                    angle=_angle(attacked - clean, attacked - x_hat),
                    logit_angle=_angle(z_adv - z, z_adv - z_hat),
                )
            )
    return rows[0].join(*rows[1:])


def _rms(difference: Tensor) -> Float[Tensor, " n"]:
    return difference.flatten(1).square().mean(1).sqrt().cpu()


def _angle(a: Tensor, b: Tensor) -> Float[Tensor, " n"]:
    """In degrees; NaN where one of them is zero."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return cosine.clamp(-1, 1).arccos().rad2deg().float().cpu()
