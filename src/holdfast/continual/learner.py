"""The kind of method that serves requests to learn and to forget, and the code around each of them.

A learner changes the model; what the memory keeps and what it gives up is no learner's business, but done here, the
same for all: what is to be forgotten leaves the memory first, and what was learnt is shown to it last.
"""

from __future__ import annotations

import functools
from abc import abstractmethod

from torch import nn

from holdfast.continual.memory import Memory, ids_of
from holdfast.continual.request import Request
from holdfast.errors import UserError
from holdfast.methods import Method
from holdfast.models import predict
from holdfast.run import Run

__all__ = ["ContinualLearner", "serve"]


class ContinualLearner(Method, kind="continual-learner"):
    """Serves requests that come one after the other: to learn images, to forget images, or both.

    A kind of its own: unlike an unlearner, it has a memory in place of the retained images, and unlike an objective, it
    may be asked to forget.
    """

    @abstractmethod
    def __call__(self, model: nn.Module, request: Request, memory: Memory, *, run: Run) -> nn.Module:
        """Serve one request.

        Args:
            model: with logits for every class that will ever come; left as it was.
            request: what to learn and what to forget.
            memory: of what was learnt before, without what is to be forgotten.
            run: device, precision, seed, folder.

        Returns:
            The new model, in evaluation mode.
        """


def serve(
    learner: ContinualLearner, model: nn.Module, request: Request, memory: Memory, *, run: Run
) -> tuple[nn.Module, Memory]:
    """Let a learner serve a request, and bring the memory up to date: the new model and the new memory.

    The logits that the memory keeps are those of the new model, in evaluation mode, of the images as they are.

    Args:
        learner: that serves it.
        model, memory: left as they were.
        request: what to learn and what to forget.
        run: device, precision, seed, folder.

    Raises:
        UserError: images are to be forgotten, and the memory holds nothing that would say what to retain.
    """
    if request.forget is not None:
        memory = memory.remove(ids_of(request.forget))
        if not len(memory):
            raise UserError(
                f"{learner.id}: the memory holds no image beside those to be forgotten, so nothing says what is to be "
                "retained; give it room for some, or start from a new model."
            )
    model = learner(model, request, memory, run=run)
    if request.learn is not None:
        memory = memory.insert(request.learn, functools.partial(predict, model, run=run), rng=run.rng("reservoir"))
    return model, memory
