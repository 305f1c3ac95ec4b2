"""What an attacker sees of a model: the log odds of the label, in several views of each image.

A model trained with mirrored images has learnt those as well, so that asking for both views tells more than asking for
one. Log odds hold everything that attacks with shadow models need: the label's probability is their sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.data import Images
from holdfast.errors import UserError, one_of
from holdfast.models import predict
from holdfast.privacy.log_odds import log_odds
from holdfast.run import Run

__all__ = ["VIEWS", "check_views", "observe"]

VIEWS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "flip": lambda x: x.flip(-1),
}


def observe(
    model: nn.Module, images: Images, *, views: Sequence[str] = ("identity",), run: Run
) -> Float[Tensor, "v n"]:
    """The log odds of the labels, float64 (V, N), for each view of the images.

    Args:
        model: in any mode; it is lent through `holdfast.models.frozen`.
        images: N of them, with labels.
        views: of `VIEWS`: ``identity``, ``flip`` (left to right).
        run: device, batch size.

    Raises:
        UserError: there are no images, a view is unknown, or the model's logits are not finite or of a single class.
    """
    check_views(views)
    seen = (images.but(x=VIEWS[view](images.x)) for view in views)
    return torch.stack([log_odds(predict(model, view, run=run), images.y) for view in seen])


def check_views(views: Sequence[str]) -> None:
    """Verify that there are views, all known and different.

    Raises:
        UserError: it is not so.
    """
    for view in views:
        if view not in VIEWS:
            raise one_of("view", view, VIEWS)
    if not views or len(set(views)) != len(views):
        raise UserError(f"views must be different ones, at least one, got {list(views)}.")
