"""Sets that do not belong to a task, made to fit its images: near ones, which look alike, and far ones.

A model can only be asked about images of its own shape, so every set is cropped, resized and recoloured to that of the
test images, and has their type (bytes or floats).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.data.cifar import CIFAR10_CLASSES, cifar, is_here
from holdfast.data.corruptions.noise_source import Noise
from holdfast.data.digits import Digits
from holdfast.data.images import Data, Images, to_float
from holdfast.data.resize import fitted
from holdfast.data.shapes32 import Shapes32
from holdfast.run import Run, content_keys

__all__ = ["Distance", "ood_sets", "phase_scrambled"]

Distance = Literal["near", "far"]

_TEN_DIGITS = tuple("0123456789")


def ood_sets(data: Data, run: Run, *, count: int = 2000) -> dict[str, tuple[Images, Distance]]:
    """Out-of-distribution sets for `data`, near ones first.

    The user's own sets come whole; they are far unless their name begins with ``near``. CIFAR-100's test split is near
    to CIFAR-10, and the other way round; it is used when it is on this machine. Far are drawn shapes, handwritten
    digits, phase-scrambled test images, and uniform and normal noise, the latter with the mean and deviation of each
    channel of the test images.

    Args:
        data: the task.
        run: gives the random streams.
        count: images of each set that is made here, at most.
    """
    test = data.test
    # For the digits, or MNIST, digits would belong to the task; so would shapes for the shapes.
    sets: dict[str, tuple[Tensor, Distance]] = {}
    if test.classes == CIFAR10_CLASSES and is_here("cifar100"):
        sets["cifar100"] = (cifar("cifar100", run=run).test.x[:count], "near")
    if data.name == "cifar100" and is_here("cifar10"):
        sets["cifar10"] = (cifar("cifar10", run=run).test.x[:count], "near")
    if data.name != "shapes32":
        seed = run.seed_for("ood", "shapes32") % 2**31
        sets["shapes32"] = (Shapes32(seed=seed).draw("test", count).x, "far")
    if test.classes != _TEN_DIGITS:
        digits = Digits()(run=run)
        parts = [part.x for part in (digits.train, digits.val, digits.test) if part is not None]
        sets["digits"] = (torch.cat(parts)[:count], "far")
    sets["phase-scrambled"] = (phase_scrambled(to_float(test.x[:count]), run), "far")
    shape = (min(count, max(len(test), 100)), *test.shape)
    sets["uniform-noise"] = (torch.rand(shape, generator=run.rng("ood", "uniform-noise")), "far")
    sample = to_float(test.x[:count])
    mean, deviation = sample.mean((0, 2, 3), keepdim=True), sample.std((0, 2, 3), keepdim=True)
    normal = torch.randn(shape, generator=run.rng("ood", "gaussian-noise"))
    sets["gaussian-noise"] = ((mean + deviation * normal).clamp(0, 1), "far")

    own: dict[str, tuple[Images, Distance]] = {
        name: (images.but(x=_like(images.x, test)), "near" if name.lower().startswith("near") else "far")
        for name, images in data.ood.items()
    }
    made = {name: (_unknown(_like(x, test), name), distance) for name, (x, distance) in sets.items() if name not in own}
    return dict(sorted({**own, **made}.items(), key=lambda item: item[1][1] == "far"))


def phase_scrambled(x: Float[Tensor, "n c h w"], run: Run) -> Float[Tensor, "n c h w"]:
    """Images with the amplitude spectrum of `x` and random phases: the same texture statistics, nothing recognisable.

    The phases are those of white noise, which belongs to each image's content, and are added to all channels alike.
    Values are clipped to [0, 1], which changes the spectrum a little.
    """
    noise = Noise(run.seed_for("phase-scrambled"), content_keys(x)).uniform(1, *x.shape[2:])
    phase = torch.fft.rfft2(noise).angle()
    phase[..., 0, 0] = 0  # the mean is kept
    turned = torch.fft.rfft2(x) * torch.polar(torch.ones_like(phase), phase)
    return torch.fft.irfft2(turned, s=x.shape[2:]).clamp(0, 1)


def _like(x: Tensor, test: Images) -> Tensor:
    """`x` in the shape and type of the test images."""
    channels, height, width = test.shape
    x = fitted(x, (height, width), channels)
    if x.dtype == torch.uint8 and test.x.dtype != torch.uint8:
        return to_float(x).to(test.x.dtype)
    if x.dtype != torch.uint8 and test.x.dtype == torch.uint8:
        return x.mul(255).round().to(torch.uint8)
    return x


def _unknown(x: Tensor, name: str) -> Images:
    return Images(x=x, y=torch.zeros(len(x), dtype=torch.int64), classes=("unknown",), name=name)
