"""Attention between the pixels of a map, and from pixels to the tokens of a text; the latter can be watched.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762, section 3.2; for text to image as
in Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, arXiv:2112.10752.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Attention", "Watched", "cross_attention", "group_norm", "watch_attention"]


@dataclass(frozen=True)
class Watched:
    """What a layer of cross-attention did in one pass.

    Args:
        name: of the layer in the model.
        probabilities: how much each pixel attends to each token, in each head; sums to 1 over tokens. Part of the
            graph, so a loss may be made of it.
    """

    name: str
    probabilities: Float[Tensor, "n heads pixels tokens"]


class Attention(nn.Module):
    """Multi-head attention on a normalised map, added to it; between its pixels, or from them to tokens.

    Args:
        channels: of the map.
        context: numbers per token; 0 attends to the map's own pixels.
        heads: divides the channels.
        explicit: compute the probabilities as such, instead of PyTorch's fused kernel. The result is the same but for
            rounding; whoever watches gets them in any case.
    """

    def __init__(self, channels: int, *, context: int = 0, heads: int = 4, explicit: bool = False):
        super().__init__()
        self.heads, self.context, self.explicit = heads, context, explicit
        self.norm = group_norm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(context or channels, channels, bias=False)
        self.value = nn.Linear(context or channels, channels, bias=False)
        self.out = nn.Linear(channels, channels)
        self.watchers: list[Callable[[Tensor], None]] = []

    def forward(
        self, x: Float[Tensor, "n c h w"], context: Float[Tensor, "n t d"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """The map with what it attends to; `context` are the tokens where the layer was made for them."""
        n, c, h, w = x.shape
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        tokens = pixels if context is None else context
        q, k, v = self._split(self.query(pixels)), self._split(self.key(tokens)), self._split(self.value(tokens))
        if self.explicit or self.watchers:
            probabilities = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
            for watch in self.watchers:
                watch(probabilities)
            mixed = probabilities @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = self.out(mixed.transpose(1, 2).reshape(n, h * w, c))
        return x + mixed.transpose(1, 2).reshape(n, c, h, w)

    def _split(self, x: Float[Tensor, "n t c"]) -> Float[Tensor, "n heads t d"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def cross_attention(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model that attend to a text, by name; of a U-Net of diffusers, those that it calls ``attn2``."""
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, Attention) and module.context) or name.rpartition(".")[2] == "attn2"
    }


@contextlib.contextmanager
def watch_attention(model: nn.Module) -> Iterator[list[Watched]]:
    """While the block runs, every pass of the model adds what its layers of cross-attention did to the list."""
    seen: list[Watched] = []
    with contextlib.ExitStack() as stack:
        for name, layer in cross_attention(model).items():

            def note(probabilities: Tensor, name: str = name) -> None:
                seen.append(Watched(name, probabilities))

            if isinstance(layer, Attention):
                layer.watchers.append(note)
                stack.callback(layer.watchers.remove, note)
            else:
                _watch_foreign(layer, note, stack)
        yield seen


def _watch_foreign(layer: Any, note: Callable[[Tensor], None], stack: contextlib.ExitStack) -> None:
    """A layer of diffusers, whatever kernel it uses: its queries and keys are overheard, and multiplied once more."""
    queries: list[Tensor] = []

    def multiply(keys: Tensor) -> None:
        q, k = (x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (queries.pop(), keys))
        note((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1))

    for part, use in ((layer.to_q, queries.append), (layer.to_k, multiply)):
        handle = part.register_forward_hook(lambda module, inputs, output, use=use: use(output))
        stack.callback(handle.remove)


def group_norm(channels: int, groups: int = 8) -> nn.GroupNorm:
    """Group normalisation in the largest number of groups, up to `groups`, that divides the channels."""
    return nn.GroupNorm(next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0), channels)
