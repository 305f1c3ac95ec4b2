"""From captions to tokens to vectors: a vocabulary of the words that tell captions apart, and a small Transformer.

A caption is BOS, its words, EOS, and padding to a fixed length. Words that stand in every caption ("a painting of
...") tell nothing and are passed over. Where the length leaves room, training captions stand anywhere in it, so that a
word means the same at every place. "Nothing" is a caption of null tokens, which the model learns beside the others.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.models.vit import EncoderBlock

__all__ = ["BOS", "EOS", "NULL", "PAD", "TextEncoder", "Tokenizer"]

PAD, BOS, EOS, NULL = range(4)
_SPECIAL = ("<pad>", "<bos>", "<eos>", "<null>")


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Turns captions into tokens.

    Args:
        words: of the vocabulary; the first has the number 4.
        length: tokens per caption, BOS and EOS included.
        silent: words that are passed over.
    """

    words: tuple[str, ...]
    length: int
    silent: tuple[str, ...] = ()

    @classmethod
    def learn(cls, captions: Sequence[str], length: int | None = None) -> Tokenizer:
        """The vocabulary of captions, in the order of the alphabet.

        Args:
            captions: of the training images.
            length: tokens per caption; by default as many as the longest needs.

        Raises:
            UserError: there is not a word in them, or one is longer.
        """
        split = [_words(caption) for caption in dict.fromkeys(map(str, captions))]
        common = set.intersection(*map(set, split)) if len(split) > 1 else set()
        told = sorted({word for words in split for word in words} - common)
        if not told:
            raise UserError("captions: there is no word in them that tells one image from another.")
        longest = max(len([w for w in words if w not in common]) for words in split) + 2
        if length is not None and longest > length:
            raise UserError(f"captions: the longest takes {longest} tokens, and {length} are allowed.")
        return cls(words=tuple(told), length=length or longest, silent=tuple(sorted(common)))

    def __len__(self) -> int:
        """Tokens that there are, special ones included."""
        return len(_SPECIAL) + len(self.words)

    def __call__(self, captions: Sequence[str], *, rng: torch.Generator | None = None) -> Int64[Tensor, "n t"]:
        """The tokens of captions; an empty caption means nothing.

        Args:
            captions: N of them.
            rng: place each anywhere in the room there is, instead of at the beginning.

        Raises:
            UserError: a word is unknown, or there are too many.
        """
        ids = torch.full((len(captions), self.length), PAD)
        for row, caption in zip(ids, captions, strict=True):
            found = self._ids(str(caption))
            if not found:
                row.fill_(NULL)
                continue
            room = self.length - len(found) - 2
            begin = 0 if rng is None else int(torch.randint(room + 1, (), generator=rng))
            row[0] = BOS
            row[begin + 1 : begin + 1 + len(found)] = torch.tensor(found)
            row[begin + 1 + len(found)] = EOS
        return ids

    def nothing(self, count: int) -> Int64[Tensor, "n t"]:
        """The tokens of `count` captions that mean nothing."""
        return torch.full((count, self.length), NULL)

    def token(self, word: str) -> int:
        """The number of a word.

        Raises:
            UserError: it is unknown.
        """
        if word not in self.words:
            (nearest,) = difflib.get_close_matches(word, self.words, n=1, cutoff=0)
            raise UserError(
                f"the word {word!r} is unknown to this model, which knows {len(self.words)}; "
                f"the nearest of them is {nearest!r}."
            )
        return len(_SPECIAL) + self.words.index(word)

    def places(self, caption: str, word: str) -> list[int]:
        """Where in the tokens of a caption a word stands.

        Raises:
            UserError: one of the words is unknown.
        """
        number = self.token(word)
        return (self([caption])[0] == number).nonzero().flatten().tolist()

    def read(self, ids: Int64[Tensor, "n t"]) -> list[str]:
        """Tokens as text, with padding, BOS and EOS left out."""
        names = (*_SPECIAL, *self.words)
        return [" ".join(names[i] for i in row if i not in (PAD, BOS, EOS)) for row in ids.tolist()]

    def to_json(self) -> dict[str, Any]:
        """All there is to it, as plain values."""
        return {"words": list(self.words), "length": self.length, "silent": list(self.silent)}

    def _ids(self, caption: str) -> list[int]:
        found = [self.token(word) for word in _words(caption) if word not in self.silent]
        if len(found) + 2 > self.length:
            raise UserError(
                f"{caption!r} has {len(found)} words that this model must read, and it reads at most {self.length - 2}."
            )
        return found


class TextEncoder(nn.Module):
    """Tokens as vectors: a table, places, and Transformer blocks in which words see each other.

    Args:
        tokenizer: gives the tokens.
        dim: numbers per token.
        layers: Transformer blocks; 0 leaves each word by itself.
        heads: of each block; divides `dim`.
    """

    def __init__(self, tokenizer: Tokenizer, *, dim: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        if dim % heads:
            raise UserError(f"text encoder: {heads} heads do not divide {dim} numbers per token.")
        self.tokenizer, self.dim = tokenizer, dim
        self.tokens = nn.Embedding(len(tokenizer), dim)
        self.positions = nn.Parameter(torch.empty(tokenizer.length, dim).normal_(std=0.02))
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids: Int64[Tensor, "n t"]) -> Float[Tensor, "n t d"]:
        """The vectors of tokens, which cross-attention reads."""
        return self.encode(self.embed(ids))

    def embed(self, ids: Int64[Tensor, "n t"]) -> Float[Tensor, "n t d"]:
        """The rows of the table: a token's meaning before places and neighbours."""
        return self.tokens(ids)

    def encode(self, embeddings: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """The vectors of rows that need be none of the table's, such as an attack's or mixtures.

        Raises:
            UserError: there are more than the tokenizer's length.
        """
        count, most = embeddings.shape[1], len(self.positions)
        if count > most:
            raise UserError(f"text encoder: it reads {most} tokens, got {count}.")
        return self.norm(self.blocks(embeddings + self.positions[:count]))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:-\w+)*", text.lower())
