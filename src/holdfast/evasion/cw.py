"""C&W: the smallest perturbation as an optimisation problem, with the box removed by a change of variables.

Over w, with the image ``1/2 + a tanh(w)``, Adam minimises the perturbation's size plus c times the amount by which the
prediction still holds. For l_2 the size is the squared norm, and c is found by bisection: the smallest with which the
attack succeeds. For l_inf it is what exceeds a threshold tau, pixel by pixel, and tau is lowered as long as it can be.

Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, arXiv:1608.04644, section VI.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from holdfast.evasion.losses import loss_for
from holdfast.evasion.minimal import MinimalAttack, Task
from holdfast.evasion.pgd import check_eps
from holdfast.evasion.pool import State
from holdfast.methods import Paper

__all__ = ["CW", "Descent"]

#: The tanh reaches a little beyond the box, whose edges thus lie at finite w, and w is clamped there. With the paper's
#: own scale a pixel at 0 or 1 starts where the tanh is flat, and a few hundred steps do not move it.
_STRETCH = 0.02
#: Where the linearised boundary is near, Adam's first step is shortened to this share of the way. Undefended networks
#: fall to changes far below the 0.005 per pixel of the usual first step, and then the search only rattles about them.
_FIRST_STEP = 0.1
_SLOWEST = 0.001  # of the learning rate
_CHECKS = 10  # per round: a sample whose objective has not fallen since the last one ends its round
_PROGRESS = 0.9999
_WINDOW = 5  # steps between checks, at least
_LARGEST_C = 1e10
_SLOWED = 0.5  # l_inf: after a failure, so that in the end pixels do not swing about tau
_LOWERED = 0.9  # l_inf: the next threshold, as a share of the largest change that was enough
_CLOSE = (
    0.99  # l_inf: where a failure lies this near below a success, it is blamed on the search, and tried again lower
)


@dataclass(frozen=True, kw_only=True)
class CW(
    MinimalAttack,
    id="cw",
    title="Carlini & Wagner attack",
    paper=Paper(
        title="Towards Evaluating the Robustness of Neural Networks",
        arxiv="1608.04644",
        venue="S&P",
        year=2017,
    ),
):
    """Carlini & Wagner's attack (l_2 and l_inf).

    It finds perturbations about as small as any attack's, and its loss, a difference of logits, does not vanish where
    a softmax saturates: the paper used it to show that defensive distillation only hid gradients. Take it to measure
    distances, or, with `confidence`, to make examples that carry over to other models. DeepFool is coarser and about a
    hundred times cheaper; for robust accuracy within a known radius PGD or AutoAttack say more for less.

    A sample costs up to ``binary_steps * steps`` gradients. The defaults are a fiftieth of the paper's 9 * 10,000.
    Success in the sense of the search asks for the `confidence`; the outcome's success, as ever, only for the
    prediction.

    Args:
        norm: ``"l2"`` or ``"linf"``.
        eps: only perturbations up to this norm count; a sample is left alone once it has one. None takes the smallest.
        binary_steps: values of c tried per sample; the first ones rise tenfold until one succeeds.
        steps: of Adam, per value of c. In l_inf, where a round ends as soon as it succeeds, only the product of
            `binary_steps` and `steps` matters as the budget, and `steps` is how long one threshold is tried.
        lr: of Adam, in units of w; a step of 0.01 moves a pixel of middle grey by 0.005. It is lowered for samples so
            near to the boundary that the first step would leap a tenth of the way.
        c: the first weight of the prediction against the perturbation.
        confidence: by how much the wrong logit must lead (kappa); 20 to 40 for transfer.
    """

    norm: Literal["linf", "l2"] = "l2"
    eps: Annotated[float, Field(ge=0)] | None = None
    binary_steps: Annotated[int, Field(ge=1)] = 9
    steps: Annotated[int, Field(ge=1)] = 200
    lr: Annotated[float, Field(gt=0)] = 0.01
    c: Annotated[float, Field(gt=0)] = 0.1
    confidence: Annotated[float, Field(ge=0)] = 0.0

    passes = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eps(self)

    def descend(self, task: Task) -> None:
        """Optimise every sample, each at its own c and its own pace."""
        descent: Descent = Squares(self, task) if self.norm == "l2" else Excess(self, task)
        task.sweep(descent.begin, descent.step)


class Descent(ABC):
    """Adam on w for samples that are each in a round of their own; subclasses say what a round is about.

    Args:
        attack: the hyperparameters.
        task: the samples.
    """

    def __init__(self, attack: CW, task: Task):
        self.attack, self.task = attack, task
        self.loss = loss_for(task.aim, "margin")
        self.scale = 0.5 * (1 + _STRETCH)
        self.edge = float(torch.atanh(torch.tensor(0.5 / self.scale, dtype=torch.float64)))

    def begin(self, rows: Tensor) -> State:
        """The state of samples at the start of their first round."""
        x0 = self.task.x0[rows]
        column = torch.zeros(len(rows), device=x0.device)
        return {
            "x0": x0,
            "y": self.task.y[rows],
            "target": self.task.target[rows],
            "w": self.unfold(x0),
            "mean": torch.zeros_like(x0),  # Adam's moments
            "square": torch.zeros_like(x0),
            "step": torch.zeros_like(rows),
            "rate": torch.zeros_like(column),
            "c": torch.full_like(column, self.attack.c),
            "lowest": torch.full_like(
                column, float("inf"), dtype=torch.float64
            ),  # objective in this round, so far and at the last check
            "checked": torch.full_like(column, float("inf"), dtype=torch.float64),
        }

    def step(self, state: State) -> Bool[Tensor, " n"]:
        """One step of Adam; says which samples are done."""
        a, task = self.attack, self.task
        # By way of float64: in float32 the last bit of a tanh depends on where in the batch a pixel stands.
        curve = state["w"].double().tanh_().float()
        x = (self.scale * curve).add_(0.5).clamp_(0, 1)  # the clamp is for rounding
        logits, lead, slope = task.oracle.gradient(x, self.loss, state["y"], state["target"])
        task.queries[state["row"]] += 1
        task.gradients[state["row"]] += 1
        hit = task.fooled(logits, state["row"]) & (lead >= a.confidence)
        task.offer(x, hit, state["row"])
        self.set_pace(lead, slope, state)
        lack = (a.confidence - lead).clamp_min_(0)
        size, gradient = self.size(x.sub_(state["x0"]), state)
        # The paper's f is a hinge: a lead that suffices pulls no more.
        gradient.sub_(torch.nan_to_num_(slope, nan=0.0, posinf=0.0, neginf=0.0).mul_(_column(state["c"] * (lack > 0))))
        gradient.mul_(curve.square_().neg_().add_(1).mul_(self.scale))
        self.adam(gradient, state)
        state["step"].add_(1)
        torch.minimum(state["lowest"], size + state["c"] * lack, out=state["lowest"])
        checks = state["step"] % max(_WINDOW, -(-a.steps // _CHECKS)) == 0
        stuck = checks & ~(state["lowest"] <= _PROGRESS * state["checked"])
        state["checked"].copy_(torch.where(checks, state["lowest"], state["checked"]))
        over = self.turn(hit, stuck | (state["step"] >= a.steps), state)
        task.ticker.advance(len(hit) / (a.binary_steps * a.steps))
        return over | ~task.open[state["row"]]

    @abstractmethod
    def size(self, offset: Float[Tensor, "n c h w"], state: State) -> tuple[Float[Tensor, " n"], Tensor]:
        """How large the perturbation is, and the gradient of that; overwrites `offset`."""

    @abstractmethod
    def turn(self, hit: Tensor, over: Tensor, state: State) -> Bool[Tensor, " n"]:
        """Take the samples that are to into their next round; says which have none."""

    def adam(self, gradient: Float[Tensor, "n c h w"], state: State) -> None:
        """Move w against the gradient; every sample counts its own steps. Overwrites `gradient`."""
        mean, square, done = state["mean"], state["square"], (state["step"] + 1).float()
        mean.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        # Both corrections for the moments' start at zero are numbers per sample: (m / a) / (sqrt(v / b) + e).
        root = torch.sqrt(square, out=gradient).div_(_column((1 - 0.999**done).sqrt())).add_(1e-8)
        state["w"].sub_(torch.div(mean, root, out=root).mul_(_column(state["rate"] / (1 - 0.9**done))))
        state["w"].clamp_(-self.edge, self.edge)

    def set_pace(self, lead: Float[Tensor, " n"], slope: Float[Tensor, "n c h w"], state: State) -> None:
        """Choose the learning rate of samples that start: `lr`, or less where the boundary is near."""
        rows = (state["rate"] == 0).nonzero().squeeze(1)
        if len(rows):
            slope, norm = slope[rows].flatten(1), self.attack.norm
            order = 1 if norm == "linf" else 2
            # In float64 here and below: what decisions hang on must not depend on the size of the batch.
            dual = torch.linalg.vector_norm(slope, order, dim=1, dtype=torch.float64)
            away = (self.attack.confidence - lead[rows]) / dual
            longest = self.scale * (1 if norm == "linf" else slope.shape[1] ** 0.5)  # a step of Adam, per unit of lr
            share = max(_FIRST_STEP, 3 / self.attack.steps)
            rate = (share * away / longest).nan_to_num_(self.attack.lr)
            state["rate"][rows] = rate.clamp_(_SLOWEST * self.attack.lr, self.attack.lr).float()

    def restart(self, rows: Int64[Tensor, " m"], state: State) -> None:
        """Begin a round: Adam forgets, and progress is counted afresh."""
        state["mean"][rows] = 0
        state["square"][rows] = 0
        state["step"][rows] = 0
        state["lowest"][rows] = float("inf")
        state["checked"][rows] = float("inf")

    def unfold(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The w of images."""
        return ((x.double() - 0.5) / self.scale).atanh_().clamp_(-self.edge, self.edge).float()


class Squares(Descent):
    """l_2: the squared norm, and a bisection of c; every round starts at the image."""

    def begin(self, rows: Tensor) -> State:
        """Nothing is known of c."""
        state = super().begin(rows)
        state["found"] = torch.zeros_like(rows, dtype=torch.bool)
        state["low"] = torch.zeros_like(state["c"])
        state["high"] = torch.full_like(state["c"], float("inf"))
        state["round"] = torch.zeros_like(rows)
        return state

    def size(self, offset: Float[Tensor, "n c h w"], state: State) -> tuple[Float[Tensor, " n"], Tensor]:
        """The squared norm."""
        return offset.flatten(1).square().sum(1, dtype=torch.float64), offset.mul_(2)

    def turn(self, hit: Tensor, over: Tensor, state: State) -> Bool[Tensor, " n"]:
        """After a success try a smaller c, after a failure a larger one."""
        state["found"].logical_or_(hit)
        rows = over.nonzero().squeeze(1)
        if not len(rows):
            return over
        c, low, high, found = (state[name][rows] for name in ("c", "low", "high", "found"))
        low, high = torch.where(found, low, c), torch.where(found, c, high)
        state["low"][rows], state["high"][rows] = low, high
        state["c"][rows] = torch.where(high.isinf(), 10 * c, (low + high) / 2).clamp_max_(_LARGEST_C)
        state["found"][rows] = False
        state["round"][rows] += 1
        state["w"][rows] = self.unfold(state["x0"][rows])
        self.restart(rows, state)
        return over & (state["round"] >= self.attack.binary_steps)


class Excess(Descent):
    """l_inf: what exceeds tau; every round starts where the last one ended."""

    def begin(self, rows: Tensor) -> State:
        """At first any perturbation will do."""
        state = super().begin(rows)
        state["tau"] = torch.ones_like(state["c"])
        state["low"] = torch.zeros_like(state["c"])
        state["largest"] = torch.zeros_like(state["c"])
        state["spent"] = torch.zeros_like(rows)
        return state

    def size(self, offset: Float[Tensor, "n c h w"], state: State) -> tuple[Float[Tensor, " n"], Tensor]:
        """The sum of what exceeds tau."""
        sign, length = offset.sign(), offset.abs_()
        state["largest"].copy_(length.flatten(1).amax(1))
        excess = length.sub_(_column(state["tau"])).clamp_min_(0)
        return excess.flatten(1).sum(1, dtype=torch.float64), sign.mul_(excess > 0)

    def turn(self, hit: Tensor, over: Tensor, state: State) -> Bool[Tensor, " n"]:
        """After a success try a lower tau, after a failure a higher one, with twice the weight on the prediction."""
        state["spent"].add_(1)
        enough = hit & (state["largest"] <= state["tau"])
        rows = (over | enough).nonzero().squeeze(1)
        if len(rows):
            won, tau, best = enough[rows], state["tau"][rows], self.task.best_distance[state["row"][rows]]
            low = torch.where(won, state["low"][rows], tau)
            low = torch.where((low >= _CLOSE * best) | best.isinf(), 0, low)  # so near: the failure was the search's
            state["low"][rows] = low
            state["tau"][rows] = torch.maximum(_LOWERED * best, (low + best) / 2).clamp_max_(1)
            state["c"][rows] *= torch.where(won, 1.0, 2.0)
            slower = (_SLOWED * state["rate"][rows]).clamp_min_(_SLOWEST * self.attack.lr)
            state["rate"][rows] = torch.where(won, state["rate"][rows], slower)
            self.restart(rows, state)
        return state["spent"] >= self.attack.binary_steps * self.attack.steps


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
