"""Digital: contrast, elastic deformation, pixelation, JPEG."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from holdfast.data.corruptions.filters import along_axes, gaussian_blur, pixelation, warp
from holdfast.data.corruptions.noise_source import Noise
from holdfast.data.corruptions.strength import published, side_of

__all__ = ["contrast", "elastic_transform", "jpeg_compression", "pixelate"]

Batch = Float[Tensor, "n c h w"]


def contrast(x: Batch, severity: int, noise: Noise) -> Batch:
    """Every channel drawn towards its mean."""
    keep = published(x, severity, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
    mean = x.double().mean((2, 3), keepdim=True).float()
    return mean + keep * (x - mean)


def elastic_transform(x: Batch, severity: int, noise: Noise) -> Batch:
    """A random affine map, and on top of it a smooth random displacement that grows stronger and finer.

    Constants are shares of the side: the affine map moves three points by up to `jitter`; the displacement is uniform
    noise blurred by `sigma` and multiplied by `amount`.
    """
    jitter, amount, sigma = (
        (0.030, 0.05, 0.20),
        (0.040, 0.06, 0.08),
        (0.045, 0.08, 0.06),
        (0.050, 0.10, 0.04),
        (0.050, 0.10, 0.03),
    )[severity - 1]
    side = side_of(x)
    h, w = x.shape[2:]
    # The affine map that moves (third, third), (third, -third) and (-third, -third) off the centre by `moves`.
    third = side / 3
    moves = (2 * noise.uniform(3, 2) - 1) * (jitter * side)
    y = torch.arange(h, device=x.device).view(1, h, 1) - (h - 1) / 2
    z = torch.arange(w, device=x.device).view(1, 1, w) - (w - 1) / 2
    down = (moves[:, 0] - moves[:, 1]) / (2 * third)
    right = (moves[:, 1] - moves[:, 2]) / (2 * third)
    centre = (moves[:, 0] + moves[:, 2]) / 2
    rows = [
        centre[:, i].view(-1, 1, 1) + right[:, i].view(-1, 1, 1) * y + down[:, i].view(-1, 1, 1) * z for i in (0, 1)
    ]
    bend = gaussian_blur(2 * noise.uniform(2, h, w) - 1, sigma * side) * (amount * side)
    return warp(x, rows[0] + bend[:, 0], rows[1] + bend[:, 1])


def pixelate(x: Batch, severity: int, noise: Noise) -> Batch:
    """Shrunk by averaging and enlarged by repetition."""
    share = published(x, severity, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))
    h, w = x.shape[2:]
    return along_axes(x, pixelation(h, max(1, int(h * share))), pixelation(w, max(1, int(w * share))))


def jpeg_compression(x: Batch, severity: int, noise: Noise) -> Batch:
    """Through a real JPEG encoder and back."""
    quality = published(x, severity, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7))
    pixels = x.mul(255).round_().to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()

    def through(
        picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        buffer = io.BytesIO()
        Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, "JPEG", quality=quality)
        return np.array(Image.open(buffer)).reshape(picture.shape)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = np.stack(list(pool.map(through, pixels, chunksize=64)))
    return torch.from_numpy(done).to(x.device).permute(0, 3, 1, 2).float().div_(255)
