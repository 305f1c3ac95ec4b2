"""Small networks that learn a model's answers from the very queries an attack has paid for, and the book of these.

Inputs are booked as bytes: whoever queries a deployed model sends 8-bit images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from holdfast.evasion.losses import Loss
from holdfast.models import build_model
from holdfast.run import Run

__all__ = ["Answers", "Surrogate"]

_AT_ONCE = 2**24  # numbers in the largest intermediate tensor
_PIXELS = 2**20  # of the images in one pass
_FLOOR = 20.0  # an answer so far below the best is the same as any lower one


class Answers:
    """What a model has answered: for each of N images the points queried, the scores, and how near they came.

    Args:
        x: the images, (N, C, H, W) in [0, 1].
        classes: scores per answer.
        memory: answers kept for an image: the first, which is to be that on the image, and the latest.
    """

    def __init__(self, x: Float[Tensor, "n c h w"], classes: int, memory: int):
        count, device = len(x), x.device
        self.memory = memory
        self.bytes = torch.zeros(count, memory, *x.shape[1:], dtype=torch.uint8, device=device)
        self.scores = torch.zeros(count, memory, classes, device=device)
        self.nearness = torch.zeros(count, memory, device=device)
        self.count = torch.zeros(count, dtype=torch.int64, device=device)
        #: Per image, the steepest slope of the nearness between two of its points, and the highest nearness.
        self.steepest = torch.zeros(count, device=device)
        self.nearest = torch.full((count,), -float("inf"), device=device)

    def add(
        self,
        rows: Int64[Tensor, " m"],
        points: Float[Tensor, "m c h w"],
        scores: Float[Tensor, "m k"],
        nearness: Float[Tensor, " m"],
    ) -> None:
        """Note one answer for each of some images; `nearness` is higher the nearer the attack is to its goal."""
        for part in self._parts(rows):
            far, known = self._distances(rows[part], points[part])
            rise = (self.nearness[rows[part], : far.shape[1]] - nearness[part, None]).abs()
            slope = torch.where(known & (far > 0), rise / far, 0)
            if slope.shape[1]:
                self.steepest[rows[part]] = torch.maximum(self.steepest[rows[part]], slope.amax(1))
        count = self.count[rows]
        place = torch.where(count < self.memory, count, 1 + (count - 1) % (self.memory - 1))
        self.bytes[rows, place] = _bytes(points)
        self.scores[rows, place] = scores
        self.nearness[rows, place] = nearness
        self.nearest[rows] = torch.maximum(self.nearest[rows], nearness)
        self.count[rows] += 1

    def promising(
        self, rows: Int64[Tensor, " m"], points: Float[Tensor, "m c h w"], ambition: float
    ) -> Bool[Tensor, " m"]:
        """Whether points may come near the goal, if the nearness is nowhere steeper than was seen.

        Each answer bounds what a point can reach: its nearness, plus the distance times the steepest slope. All bounds
        must be at least `ambition` times the highest nearness, which is negative as long as the goal is not reached:
        less than 1 demands an improvement.
        """
        verdicts = []
        for part in self._parts(rows):
            far, known = self._distances(rows[part], points[part])
            bound = self.nearness[rows[part], : far.shape[1]] + self.steepest[rows[part], None] * far
            verdicts.append((~known | (bound >= ambition * self.nearest[rows[part], None])).all(1))
        return torch.cat(verdicts)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
        """Random answers: of images drawn evenly, one of each; the inputs and the scores."""
        row = torch.randint(len(self.count), (size,), generator=generator).to(self.count.device)
        held = self.count[row].clamp_max(self.memory)
        place = (torch.rand(size, generator=generator).to(held.device) * held).long()
        return self.bytes[row, place].float() / 255, self.scores[row, place]

    def _parts(self, rows: Tensor) -> list[slice]:
        size = max(1, _AT_ONCE // self.bytes[0].numel())
        return [slice(i, i + size) for i in range(0, len(rows), size)]

    def _distances(self, rows: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """From points to the known ones of their images, l_2; and which of the columns are known."""
        held = int(self.count[rows].max().clamp_max(self.memory))
        known = torch.arange(held, device=rows.device) < self.count[rows, None]
        past = self.bytes[rows, :held].flatten(2).float()
        # Measured from the image, the numbers are small and whole, so that this way of computing distances is exact.
        centre = self.bytes[rows, :1].flatten(2).float()
        past, here = past - centre, _bytes(points).flatten(1).float() - centre.squeeze(1)
        product = torch.bmm(past, here[:, :, None]).squeeze(2)
        squares = past.square().sum(2) + here.square().sum(1, keepdim=True) - 2 * product
        return squares.clamp_min(0).sqrt() / 255, known


class Surrogate:
    """A small network that learns the answers.

    Scores are compared without what the softmax does not see, their mean, and in units of their own spread.

    Args:
        architecture: of `holdfast.models.build_model`.
        answers: to learn from; some must be there already.
        run: gives the starting weights and the batches.
    """

    def __init__(self, architecture: str, answers: Answers, run: Run):
        shape, classes = answers.bytes.shape[2:], answers.scores.shape[2]
        self.answers, self.rng = answers, run.rng("batches", architecture)
        model = build_model(architecture, num_classes=classes, image_shape=(shape[0], shape[1], shape[2]), run=run)
        self.model = model.to(answers.bytes.device).eval()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-3)
        self.spread = float(_centred(answers.scores[answers.count > 0, 0]).std().clamp_min(1e-3))

    def fit(self, batches: int, batch_size: int, stop: float) -> None:
        """Train on at most so many batches; ends early when the mean squared error falls below `stop`."""
        self.model.train()
        with torch.enable_grad():
            for _ in range(batches):
                x, scores = self.answers.batch(batch_size, self.rng)
                x = x.contiguous(memory_format=torch.channels_last)
                loss = F.mse_loss(self.model(x), _centred(scores) / self.spread)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                if loss.item() < stop:
                    break
        self.model.eval()

    def scores(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """What it takes the model's answers to be, up to their mean."""
        with torch.no_grad():
            return torch.cat([self.model(part) * self.spread for part in x.split(_rows_at_once(x))])

    def gradient(
        self, x: Float[Tensor, "n c h w"], loss: Loss, y: Int64[Tensor, " n"], target: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """Of each image's loss, if the model answered like this."""
        gradients, size = [], _rows_at_once(x)
        for points, labels, goals in zip(x.split(size), y.split(size), target.split(size), strict=True):
            points = points.detach().clone().requires_grad_()
            with torch.enable_grad():
                losses = loss(self.model(points) * self.spread, labels, goals)
            gradients += torch.autograd.grad(losses.sum(), points)
        return torch.cat(gradients)


def _rows_at_once(x: Tensor) -> int:
    """Not the run's batch size, which must not show in the results: a proposal hangs on the sign of tiny numbers."""
    return max(1, _PIXELS // x[0].numel())


def _bytes(points: Tensor) -> Tensor:
    return (points * 255).round().to(torch.uint8)


def _centred(scores: Tensor) -> Tensor:
    scores = torch.maximum(scores, scores.amax(1, keepdim=True) - _FLOOR)
    return scores - scores.mean(1, keepdim=True)
