"""Square for guards that turn scores around: search upwards, or in whichever direction the scores seem to call for.

AAA shows scores that fall where the model comes nearer to an error, with jumps where a cell of the margin ends. An
attacker who suspects it climbs instead (``up``), or starts downwards and turns around for good once a proposal jumps
up by more than a cell's half (``bi``). When climbing, a large fall is kept too: it is the next cell.

Chen et al., "Adversarial Attack on Attackers: Post-Process to Mitigate Black-Box Score-Based Query Attacks", NeurIPS
2022, arXiv:2205.12134, section 4.5 (adaptive attacks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from holdfast.evasion.losses import Aim
from holdfast.evasion.oracle import Oracle
from holdfast.evasion.pool import State
from holdfast.evasion.square import RandomSearch, Square
from holdfast.methods import Paper

__all__ = ["BidirectionalSquare", "Climb"]


@dataclass(frozen=True, kw_only=True)
class BidirectionalSquare(
    Square,
    id="bidirectional-square",
    title="Square, up and down",
    paper=Paper(
        title="Adversarial Attack on Attackers: Post-Process to Mitigate Black-Box Score-Based Query Attacks",
        arxiv="2205.12134",
        venue="NeurIPS",
        year=2022,
    ),
):
    """Square by an attacker who knows that scores may be turned around, but not the guard's numbers.

    Against a model without such a guard it is weaker than `square`.

    Args:
        direction: ``"bi"`` searches down until a proposal raises the margin by more than `jump`, then up; ``"up"``
            searches up from the start.
        jump: changes of the margin larger than this, in logits, count as a step from cell to cell.
    """

    direction: Literal["bi", "up"] = "bi"
    jump: Annotated[float, Field(gt=0)] = 3.0

    def search(self, aim: Aim, seed: int) -> Climb:
        """The random search with these hyperparameters."""
        return Climb(self, aim, seed)


class Climb(RandomSearch):
    """The loop of the attack. Where it stands is not where it was nearest to an error, so both are kept."""

    attack: BidirectionalSquare

    def begin(self, fresh: State) -> None:
        """As Square does; all stand at their image."""
        super().begin(fresh)
        fresh["at"], fresh["at_loss"] = fresh["best"].clone(), fresh["best_loss"].clone()
        up = self.attack.direction == "up"
        fresh["up"] = torch.full_like(fresh["fooled"], up)

    def step(self, oracle: Oracle, state: State) -> None:
        """Propose, query, and go where the direction leads."""
        proposal = self.propose({**state, "best": state["at"]})
        logits = oracle.logits(proposal)
        loss = self.loss(logits, state["y"], state["target"])
        rise = state["at_loss"] - loss  # of the margin
        down, up = rise < 0, (rise > 0) | (rise < -self.attack.jump)
        move = torch.where(state["up"], up, down)
        state["up"].logical_or_(rise > self.attack.jump)
        torch.where(move, loss, state["at_loss"], out=state["at_loss"])
        torch.where(move[:, None, None, None], proposal, state["at"], out=state["at"])
        self.note(state, proposal, logits)
