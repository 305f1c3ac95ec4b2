"""Attacks on models that were made to forget a concept: a few tokens beside a prompt that bring it back.

A model that no longer draws a concept when asked plainly may still know it. These attacks look for tokens that make it
draw the concept again; how often they find some tells how much was erased rather than hidden. Whether a picture shows
the concept is said by a judge that the caller gives, never by the model under attack.

All prompts are attacked side by side, and leave as soon as their picture is judged to show the concept; what becomes
of one does not depend on the others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from holdfast import stats
from holdfast.errors import UserError
from holdfast.generative import DDIM, Denoiser, Diffusion, Tokenizer
from holdfast.generative.text_encoder import EOS
from holdfast.methods import Method
from holdfast.models import frozen
from holdfast.run import Run

__all__ = ["Judged", "PromptAttack", "Recovered", "Siege"]

Judged = Callable[[Tensor], Tensor]
Whole = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Recovered:
    """What an attack got out of a model.

    Args:
        prompts: N texts.
        found: the prompts with the attack's tokens, as last tried; as they were where none were needed.
        tokens: the same as numbers, int64 (N, T).
        before: where the prompt alone shows the concept, bool (N,).
        after: where it shows it at last, with tokens or without, bool (N,).
        rounds: how many pictures were tried for each prompt with tokens, int64 (N,).
        x: the last pictures, (N, C, H, W).
        method: the spec of the attack.
    """

    prompts: tuple[str, ...]
    found: tuple[str, ...]
    tokens: Int64[Tensor, "n t"]
    before: Bool[Tensor, " n"]
    after: Bool[Tensor, " n"]
    rounds: Int64[Tensor, " n"]
    x: Float[Tensor, "n c h w"]
    method: str

    @property
    def rate(self) -> float:
        """The attack success rate, prompts that needed no attack included."""
        return float(self.after.double().mean())

    @property
    def rate_before(self) -> float:
        """The share of prompts that need no attack."""
        return float(self.before.double().mean())

    @property
    def sentence(self) -> str:
        """The finding in words."""
        low, high = stats.wilson(int(self.after.sum()), len(self.after))
        return (
            f"The concept came back for {self.rate:.1%} of {len(self.after)} prompts (95 % interval {low:.1%} to "
            f"{high:.1%}); {self.rate_before:.1%} showed it without an attack."
        )

    def to_json(self) -> dict[str, Any]:
        """All but the pictures as plain values."""
        return {
            "method": self.method,
            "rate": self.rate,
            "rate_before": self.rate_before,
            "prompts": [
                {"prompt": prompt, "found": found, "before": before, "after": after, "rounds": rounds}
                for prompt, found, before, after, rounds in zip(
                    self.prompts,
                    self.found,
                    self.before.tolist(),
                    self.after.tolist(),
                    self.rounds.tolist(),
                    strict=True,
                )
            ],
        }


@dataclass(kw_only=True, eq=False)
class Siege:
    """What a search for tokens works with.

    Args:
        victim: the model under attack, lent frozen.
        original: the model before it forgot, where it is given.
        prompts: tokens, int64 (N, T).
        x0: for each prompt an image that shows the concept, as the denoiser works on it.
        words: tokens that may be used, int64 (V,).
        table: their rows in the text encoder's table, (V, D).
        count: tokens to find for each prompt.
        at: where in each prompt they are put in, int64 (N,).
        open: prompts that still resist, bool (N,).
    """

    victim: Diffusion
    original: Diffusion | None
    prompts: Int64[Tensor, "n t"]
    x0: Float[Tensor, "n c h w"]
    words: Int64[Tensor, " v"]
    table: Float[Tensor, "v d"]
    count: int
    at: Int64[Tensor, " n"]
    open: Bool[Tensor, " n"] = field(init=False)

    def __post_init__(self) -> None:
        self.open = torch.ones(len(self.prompts), dtype=torch.bool, device=self.prompts.device)

    @property
    def rows(self) -> Int64[Tensor, " m"]:
        """The prompts that still resist, by number."""
        return self.open.nonzero().flatten()

    def with_tokens(self, tokens: Int64[Tensor, "m k"], rows: Int64[Tensor, " m"]) -> Int64[Tensor, "m t"]:
        """Prompts with these tokens put in; the padding makes room."""
        return self._put_in(self.prompts[rows], tokens, rows)

    def told(self, embeddings: Float[Tensor, "m k d"], rows: Int64[Tensor, " m"]) -> Float[Tensor, "m t d"]:
        """What the victim is told by prompts with these rows put in where tokens would be."""
        text = self.victim.text
        whole: Tensor = text.encode(self._put_in(text.embed(self.prompts[rows]), embeddings, rows))
        return whole

    def times(self, count: int) -> list[int]:
        """Times at equal distances, each in the middle of its stretch of the schedule."""
        total = self.victim.schedule.steps
        count = min(count, total)
        return [total // count // 2 + 1 + place * (total // count) for place in range(count)]

    def _put_in(self, whole: Tensor, part: Tensor, rows: Tensor) -> Tensor:
        length = whole.shape[1]
        return torch.stack(
            [
                torch.cat([row[:at], middle, row[at : length - self.count]])
                for row, middle, at in zip(whole, part, self.at[rows].tolist(), strict=True)
            ]
        )


@dataclass(frozen=True, kw_only=True)
class PromptAttack(Method, kind="prompt-attack"):
    """Looks for tokens that make a model draw what it was made to forget; subclasses say how.

    Args:
        tokens: to be found for each prompt.
        place: where they stand, before the prompt's words (``"prefix"``) or after them (``"suffix"``).
        times: rounds, each at another time of the schedule, from the image to noise; a picture is tried after each.
        iterations: in each round.
        lr, weight_decay: of Adam.
        guidance, ddim_steps: of the sampler whose pictures are judged.
    """

    tokens: Whole = 5
    place: Literal["prefix", "suffix"] = "prefix"
    times: Whole = 50
    iterations: Whole = 40
    lr: Annotated[float, Field(gt=0)] = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    guidance: Annotated[float, Field(ge=0)] = 7.5
    ddim_steps: Whole = 50

    @abstractmethod
    def search(self, siege: Siege, *, run: Run) -> Iterator[Int64[Tensor, "n k"]]:
        """Tokens to be tried for every prompt, round by round; what is given for those no longer open is not looked at.

        Args:
            siege: what there is to work with; between two rounds `open` changes.
            run: gives the random numbers.
        """

    def __call__(
        self,
        victim: Diffusion,
        prompts: Sequence[str],
        *,
        shows: Judged,
        original: Diffusion | None = None,
        targets: Float[Tensor, "n c h w"] | None = None,
        run: Run,
    ) -> Recovered:
        """Attack a model on prompts that ask for what it is to have forgotten.

        Args:
            victim: told texts; left as it was.
            prompts: N texts.
            shows: says of pictures (N, C, H, W) in [0, 1] which show the concept, bool (N,). It must not be the victim.
            original: the model before it forgot.
            targets: for each prompt a picture that shows the concept; by default the original draws them, beginning
                with the same noise as the victim does.
            run: device, and the seed, which gives each prompt the noise that its pictures begin with.

        Raises:
            UserError: the model is told no texts, a prompt leaves no room, or there is nothing to aim at.
        """
        if victim.text is None:
            raise UserError(f"{self.id}: it attacks models that are told texts.")
        if not prompts:
            raise UserError(f"{self.id}: there is no prompt to attack with.")
        if targets is None and original is None:
            raise UserError(f"{self.id}: give the original model, or for each prompt a picture of the concept.")
        if targets is not None and targets.shape != (len(prompts), *victim.image_shape):
            raise UserError(f"{self.id}: {len(prompts)} prompts need as many pictures of the concept.")
        device = run.torch_device
        with frozen(victim, device=device), frozen(original or victim, device=device):
            ids = victim.context(prompts)
            begin = torch.randn(len(prompts), *victim.latent_shape, generator=run.rng("start")).to(device)
            if targets is None:
                assert original is not None
                targets = self._draw(original, ids, begin, run)
            siege = _siege(self, victim, original, ids, targets.to(device))
            x = self._draw(victim, ids, begin, run)
            before = shows(x).cpu().bool()
            after, tried, rounds = before.clone(), ids.clone(), torch.zeros(len(ids), dtype=torch.int64)
            siege.open = ~before.to(device)
            with run.track(self.times, self.id) as ticker:
                for found in self.search(siege, run=run) if siege.open.any() else ():
                    rows = siege.rows
                    tried[rows] = siege.with_tokens(found[rows], rows)
                    drawn = self._draw(victim, tried[rows], begin[rows], run)
                    shown = shows(drawn).cpu().bool()
                    x[rows.cpu()] = drawn
                    rounds[rows.cpu()] += 1
                    after[rows.cpu()] = shown
                    siege.open[rows] = ~shown.to(device)
                    ticker.advance(1, f"{after.double().mean():.0%} found")
                    if not siege.open.any():
                        break
        names = victim.text.tokenizer
        return Recovered(
            prompts=tuple(prompts),
            found=tuple(names.read(tried.cpu())) if isinstance(names, Tokenizer) else tuple(prompts),
            tokens=tried.cpu(),
            before=before,
            after=after,
            rounds=rounds,
            x=x,
            method=str(self) if self.id else type(self).__name__,
        )

    @torch.no_grad()
    def _draw(self, model: Diffusion, ids: Tensor, begin: Tensor, run: Run) -> Tensor:
        """A picture for each row of tokens, from its own noise, on the CPU."""
        sampler = DDIM(steps=min(self.ddim_steps, model.schedule.steps))
        denoise = Denoiser(model=model, context=ids, guidance=self.guidance, batch_size=run.batch_size)
        return model.decode(sampler(denoise, begin, run=run)).float().cpu()


def _siege(method: PromptAttack, victim: Diffusion, original: Diffusion | None, ids: Tensor, targets: Tensor) -> Siege:
    text = victim.text
    ends = _ends(text.tokenizer, ids)
    room = int((ids.shape[1] - 1 - ends).min())
    if room < method.tokens:
        raise UserError(
            f"{method.id}: a prompt leaves room for {room} tokens of {ids.shape[1]}, and {method.tokens} are wanted."
        )
    words = _words(victim, ids.device)
    return Siege(
        victim=victim,
        original=original,
        prompts=ids,
        x0=victim.encode(targets),
        words=words,
        table=text.embed(words[None])[0],
        count=method.tokens,
        at=ends if method.place == "suffix" else torch.ones_like(ends),
    )


def _ends(tokenizer: Any, ids: Int64[Tensor, "n t"]) -> Int64[Tensor, " n"]:
    """Where the token stands that ends each prompt; elsewhere than here the padding consists of the same."""
    if isinstance(tokenizer, Tokenizer):
        return (ids == EOS).int().argmax(1)
    same = (ids == ids[:, -1:]).flip(1).int().cumprod(1).sum(1)
    return ids.shape[1] - same


def _words(model: Diffusion, device: torch.device) -> Int64[Tensor, " v"]:
    """The tokens that somebody could type: without the special ones, where it is known which they are."""
    tokenizer: Any = model.text.tokenizer
    if isinstance(tokenizer, Tokenizer):
        return torch.arange(len(tokenizer) - len(tokenizer.words), len(tokenizer), device=device)
    table = model.text.encoder.get_input_embeddings()
    return torch.arange(len(table.weight), device=device)
