"""The fifteen corruptions by name, each with how it relates to the published one, and the way in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.data.corruptions import blur, digital, noise, weather
from holdfast.data.corruptions.noise_source import Noise
from holdfast.data.images import to_float
from holdfast.errors import UserError, one_of
from holdfast.run import Run, content_keys

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption", "corrupt"]

SEVERITIES = (1, 2, 3, 4, 5)

Batch = Float[Tensor, "n c h w"]

# Values in flight at a time: bounds memory, and keeps what is worked on near the processor.
_CHUNK = 2**22


@dataclass(frozen=True)
class Corruption:
    """A corruption.

    Args:
        name: kebab-case.
        group: ``noise``, ``blur``, ``weather`` or ``digital``.
        apply: takes float images in [0, 1], the severity, and the images' random numbers.
        relation: how it differs from the published one.
    """

    name: str
    group: str
    apply: Callable[[Batch, int, Noise], Batch]
    relation: str


_SAME = "the published operation and constants"

CORRUPTIONS: Mapping[str, Corruption] = {
    c.name: c
    for c in (
        Corruption("gaussian-noise", "noise", noise.gaussian_noise, f"{_SAME}."),
        Corruption(
            "shot-noise",
            "noise",
            noise.shot_noise,
            f"{_SAME}; float images are first rounded to the 256 levels of bytes.",
        ),
        Corruption("impulse-noise", "noise", noise.impulse_noise, f"{_SAME}."),
        Corruption(
            "defocus-blur", "blur", blur.defocus_blur, f"{_SAME}; edges are repeated where the original mirrors them."
        ),
        Corruption(
            "glass-blur",
            "blur",
            blur.glass_blur,
            "each pixel is drawn from its neighbourhood independently, where the original swaps neighbours one by one, "
            "so that single pixels cannot travel far. Constants of ImageNet-C for large images; for small ones "
            "those of CIFAR-10-C in order of their effect, since more blur hides what the scattering did.",
        ),
        Corruption(
            "motion-blur",
            "blur",
            blur.motion_blur,
            "published constants and kernel; the trail is interpolated, where ImageMagick takes the nearest pixel.",
        ),
        Corruption(
            "zoom-blur", "blur", blur.zoom_blur, f"{_SAME}; zooms are centred exactly, not to the nearest whole pixel."
        ),
        Corruption(
            "snow",
            "weather",
            weather.snow,
            f"{_SAME}; the trail is interpolated, and the layer is not rounded to bytes.",
        ),
        Corruption(
            "frost",
            "weather",
            weather.frost,
            "published mixing weights; the frost is drawn (ridged noise in cold tones of like brightness), where the "
            "original pastes crops of six photographs.",
        ),
        Corruption(
            "fog",
            "weather",
            weather.fog,
            f"{_SAME}; the random numbers of the clouds belong to their place in the image.",
        ),
        Corruption("brightness", "weather", weather.brightness, f"{_SAME}, in closed form."),
        Corruption("contrast", "digital", digital.contrast, f"{_SAME}."),
        Corruption(
            "elastic-transform",
            "digital",
            digital.elastic_transform,
            "the published operation with constants of our own, one set for all sizes: the published ones weaken the "
            "affine part as severity rises, so that severity 1 can harm more than severity 3.",
        ),
        Corruption("pixelate", "digital", digital.pixelate, f"{_SAME}."),
        Corruption("jpeg-compression", "digital", digital.jpeg_compression, f"{_SAME} (JPEG quality)."),
    )
}


def corrupt(x: Tensor, name: str, severity: int, *, run: Run) -> Tensor:
    """Corrupt images.

    Args:
        x: uint8 in 0..255 or float in [0, 1], shape (N, 1 or 3, H, W).
        name: one of `CORRUPTIONS`, e.g. ``"gaussian-noise"``.
        severity: 1 to 5.
        run: gives the random stream. An image's result depends on its content and on this stream alone.

    Returns:
        Images of the same shape, type and range.

    Raises:
        UserError: the name or the severity is unknown, or the images are out of range.
    """
    found = CORRUPTIONS.get(name.replace("_", "-"))
    if found is None:
        raise one_of("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES or isinstance(severity, bool):
        raise UserError(f"{found.name}: severity must be 1, 2, 3, 4 or 5, got {severity!r}.")
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UserError(f"{found.name}: images must have shape (N, 1 or 3, H, W), got {tuple(x.shape)}.")
    if min(x.shape[2:]) < 4:
        raise UserError(f"{found.name}: images must be at least 4x4, got {x.shape[2]}x{x.shape[3]}.")
    if x.is_floating_point() and len(x) and not (x.amin() >= 0 and x.amax() <= 1):
        raise UserError(f"{found.name}: float images must lie in [0, 1] without NaN.")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise UserError(f"{found.name}: images must be uint8 or float, got {x.dtype}.")
    seed = run.seed_for("corruption", found.name)
    out = torch.empty_like(x)
    step = max(1, _CHUNK // x[0].numel()) if len(x) else 1
    for start in range(0, len(x), step):
        clean = to_float(x[start : start + step]).contiguous()
        changed = found.apply(clean, severity, Noise(seed, content_keys(clean))).clamp(0, 1)
        out[start : start + step] = changed.mul(255).round_() if x.dtype == torch.uint8 else changed
    return out
