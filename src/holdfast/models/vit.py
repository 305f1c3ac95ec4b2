"""A small vision transformer: patches as words, attention between them.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929, section 3.1: learned positions, a
class token, layer norm before each part. The patch side follows the image so that its shorter side has about eight
patches (4x4 pixels on 32x32 images); images that the patches do not tile are padded with the mean pixel. With ten
classes and 32x32 images the default has 2,693,578 parameters.
"""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.errors import UserError

__all__ = ["EncoderBlock", "ViT"]


class EncoderBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each on normalised tokens and added to its input (equations 2, 3)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """Tokens in, tokens out."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def attention(self, x: Tensor) -> Tensor:
        """Multi-head self-attention (appendix A of the paper)."""
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, t, d))


class ViT(nn.Module):
    """Patches, class token, positions, encoder blocks, head on the class token.

    Args:
        num_classes, image_shape, normalize: see `build_model`.
        dim: width of a token.
        depth: encoder blocks.
        heads: attention heads; divides `dim`.
        patch: side of a patch in pixels; 0 chooses it from the image size.

    Raises:
        UserError: the heads do not divide the width.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        dim: Annotated[int, Field(ge=1)] = 192,
        depth: Annotated[int, Field(ge=1)] = 6,
        heads: Annotated[int, Field(ge=1)] = 3,
        patch: Annotated[int, Field(ge=0)] = 0,
    ):
        super().__init__()
        if dim % heads:
            raise UserError(f"vit: heads must divide dim, got heads={heads} and dim={dim}.")
        channels, height, width = image_shape
        side = patch or max(1, round(min(height, width) / 8))
        self.normalize = normalize
        self.pixels = image_shape
        self.padding = (0, -width % side, 0, -height % side)
        self.patches = nn.Conv2d(channels, dim, side, side)
        tokens = 1 + (-(-height // side)) * (-(-width // side))
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, tokens, dim))
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        for weight in (self.token, self.position, *(m.weight for m in self.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1].

        Raises:
            UserError: the images have another shape than the model was built for.
        """
        if x.shape[1:] != self.pixels:
            raise UserError(f"this vit was built for images of shape {self.pixels}, got {tuple(x.shape[1:])}.")
        patches = self.patches(F.pad(self.normalize(x), self.padding)).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])
