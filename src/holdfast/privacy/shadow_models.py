"""Shadow models: many models like the attacked one, each trained on a random half of a pool of images.

They come in pairs, the second of which is trained on what the first is not, so that every image is in exactly half of
them (Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022, arXiv:2112.03570, section IV).

Of each, what attacks need is kept in a file named by a hash of all it depends on. A run that was interrupted goes on
with the models that are missing, and a larger number of them builds on the smaller.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

import holdfast
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.files import cache_dir
from holdfast.models import only_answers, read_weights, reinitialised, save_tensors, weights_hash
from holdfast.privacy.fit_recipe import Trainer, said_in_full, views_of
from holdfast.privacy.shadows import Shadows
from holdfast.privacy.views import check_views, observe
from holdfast.run import Run

__all__ = ["balanced_halves", "depends_on", "hashed", "kept", "novice", "shadow_folder", "train_shadows"]


def train_shadows(
    model: nn.Module,
    pool: Images,
    recipe: Trainer,
    *,
    shadows: int = 64,
    views: Sequence[str] | None = None,
    run: Run,
) -> Shadows:
    """Train shadow models, or take up those that were trained before.

    Args:
        model: for its architecture alone; it is left as it was.
        pool: the images to be attacked, and others of the kind, if need be. Half of them should be as many as the
            attacked model was trained on.
        recipe: trains a model as the attacked one was trained: a `FitRecipe`, or a function of the model, the images
            and the run. Of a function that is no dataclass nobody knows when it changes, so nothing is kept.
        shadows: their number, even.
        views: what is asked of them, see `observe`; by default what the recipe makes worth asking, see `views_of`.
        run: device, seed, progress. Files go to ``shadows`` in its folder, or, where it has none, to the cache.

    Raises:
        UserError: the number is not even and positive, the pool has fewer than two images, a view is unknown, or the
            model's weights cannot be drawn anew.
    """
    views = views_of(recipe) if views is None else views
    check_views(views)
    members = balanced_halves(len(pool), shadows, run)
    folder = shadow_folder(run)
    data, how = pool.fingerprint(), said_in_full(recipe)
    answers = []
    with run.track(shadows, "shadow models") as ticker:
        for k, mask in enumerate(members):
            own = run.child(f"shadow {k}").but(out=None, progress=False)
            start = novice(model, own)
            identity = depends_on(start, own, pool=data, members=hashed(mask), recipe=how, views=list(views))

            def asked(start: nn.Module = start, mask: Tensor = mask, own: Run = own) -> dict[str, Tensor]:
                trained = recipe(start, pool.select(mask), run=own)
                return {"log_odds": observe(trained, pool, views=views, run=own)}

            answers.append(kept(None if how is None else folder, identity, asked)["log_odds"])
            ticker.advance()
    return Shadows(log_odds=torch.stack(answers), members=members)


def balanced_halves(count: int, models: int, run: Run) -> Bool[Tensor, "s n"]:
    """Which of `count` images each model is trained on, bool (models, count): every image is in half of the models.

    The halves of a pair depend on its number and the run's seed alone.

    Raises:
        UserError: the number of models is not even and positive, or there are fewer than two images.
    """
    if not isinstance(models, int) or isinstance(models, bool) or models < 2 or models % 2:
        raise UserError(f"shadow models come in pairs; their number must be even and at least 2, got {models!r}.")
    if count < 2:
        raise UserError(f"shadow models need a pool of at least two images, got {count}.")
    members = torch.zeros(models, count, dtype=torch.bool)
    for pair in range(models // 2):
        members[2 * pair, torch.randperm(count, generator=run.rng("shadow halves", pair))[: count // 2]] = True
        members[2 * pair + 1] = ~members[2 * pair]
    return members


def novice(model: nn.Module, run: Run) -> nn.Module:
    """A model of the same architecture that has learnt nothing.

    Raises:
        UserError: its weights cannot be drawn anew.
    """
    if only_answers(model):
        raise UserError("shadow models need the model's architecture, but this one only answers queries.")
    return reinitialised(model, run=run)


def depends_on(start: nn.Module, run: Run, **more: Any) -> dict[str, Any]:
    """What a training depends on: where it starts, what it draws, how it runs, and `more`."""
    return {
        "network": repr(start),
        "weights": weights_hash(start),
        "stream": run.seed_for("shadow"),
        "precision": run.precision,
        "device": run.torch_device.type,
        "versions": [holdfast.__version__, torch.__version__],
        **more,
    }


def kept(
    folder: Path | None, identity: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]
) -> Mapping[str, Tensor]:
    """What `make` gives, from the file of that identity if there is one, else made and written there at once.

    Args:
        folder: ``None`` keeps nothing.
        identity: all that the result depends on, as plain values.
        make: gives tensors by name.
    """
    if folder is None:
        return make()
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
    path = folder / f"{key}.safetensors"
    if not path.is_file():
        save_tensors(make(), path)
    return read_weights(path).tensors


def hashed(mask: Tensor) -> str:
    """A hash of a mask."""
    return hashlib.sha256(mask.numpy().tobytes()).hexdigest()[:16]


def shadow_folder(run: Run) -> Path:
    """Where what is known of shadow models is kept: ``shadows`` in the run's folder, or in the cache."""
    return cache_dir("shadows") if run.out is None else run.out / "shadows"
