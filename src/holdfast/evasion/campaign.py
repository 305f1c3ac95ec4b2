"""An attack on a whole split, in parts that survive a kill, with the tables that come out of it.

Parts have fixed borders and a sample's result does not depend on its neighbours, so a run that was killed and started
again ends with the same files as one that was not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import holdfast
from holdfast import stats
from holdfast.data.images import Images, to_float
from holdfast.errors import UserError
from holdfast.evasion.attack import Evasion
from holdfast.evasion.balls import Norm, distance
from holdfast.evasion.oracle import consult
from holdfast.evasion.outcome import Outcome
from holdfast.files import atomic_path, write_bytes
from holdfast.methods import Attack
from holdfast.models import weights_hash
from holdfast.run import Run

__all__ = ["Campaign", "campaign"]

UNCOUNTED = -1  # queries of an attack that does not report them
_PART = 512  # images; a fixed number, so that resumed and uninterrupted runs are cut alike


@dataclass(frozen=True, kw_only=True, eq=False)
class Campaign:
    """An attack's outcome on a split.

    Args:
        attack: its spec.
        images: the name of the split.
        y: the true labels.
        index: where each image stands in the split.
        outcome: sample by sample.
    """

    attack: str
    images: str
    y: Tensor
    index: Tensor
    outcome: Outcome

    @property
    def sentence(self) -> str:
        """The result in words."""
        values = self.to_json()
        clean, robust = values["clean_accuracy"], values["robust_accuracy"]
        if values["eps"] is None and values["median_distance_of_successes"] is not None:
            return (
                f"{self.attack} on {values['n']} images: {1 - robust['value']:.2%} end up misclassified, at a median "
                f"distance of {values['median_distance_of_successes']:.4g} ({values['norm']}); "
                f"clean accuracy {clean['value']:.2%}."
            )
        return (
            f"{self.attack} on {values['n']} images: robust accuracy {robust['value']:.2%} "
            f"(95 % interval {robust['low']:.2%} to {robust['high']:.2%}), clean accuracy {clean['value']:.2%}."
        )

    def to_json(self) -> dict[str, Any]:
        """Rates with their 95 % intervals, and what the attack spent, as plain values."""
        o, n = self.outcome, len(self.outcome)
        newly, counted = o.success & o.correct, bool((o.queries != UNCOUNTED).all())
        return {
            "attack": self.attack,
            "norm": o.norm,
            "eps": o.eps if math.isfinite(o.eps) else None,
            "n": n,
            "clean_accuracy": _rate(int(o.correct.sum()), n),
            "robust_accuracy": _rate(n - int(o.success.sum()), n),
            "queries_per_image": float(o.queries.double().mean()) if counted else None,
            "gradients_per_image": float(o.gradients.double().mean()) if counted else None,
            "median_queries_of_successes": float(o.queries[newly].double().median()) if counted & newly.any() else None,
            "largest_distance": float(o.distance.max()),
            "median_distance_of_successes": float(o.distance[newly].double().median()) if newly.any() else None,
        }

    def table(self) -> pa.Table:
        """One row per image: index, label, predictions, success, distance, queries, gradients."""
        o = self.outcome
        columns = {
            "index": self.index,
            "label": self.y,
            "prediction": o.clean_logits.argmax(1),
            "prediction_attacked": o.predictions,
            "correct": o.correct,
            "success": o.success,
            "distance": o.distance,
            "queries": o.queries,
            "gradients": o.gradients,
        }
        return pa.table({name: values.numpy() for name, values in columns.items()})


def campaign(attack: Attack, model: nn.Module, images: Images, *, run: Run) -> Campaign:
    """Attack every image of a split.

    With ``run.out``, finished parts are kept under ``state``, and at the end ``samples.parquet`` (see
    `Campaign.table`) and ``adversarial.safetensors`` (``x_adv``, float32) are written.

    Args:
        attack: to run.
        model: in any mode, left as it was.
        images: at least one. A column ``index`` says where each stands in the split.
        run: device, seed, output folder.

    Raises:
        UserError: as the attack does, or it returns something else than images, or the folder cannot be written.
    """
    if not len(images):
        raise UserError(f"{images.name}: there are no images to attack.")
    key = _key(attack, model, images, run)
    parts = []
    for start in range(0, len(images), _PART):
        path = None if run.out is None else run.out / "state" / f"{attack.id}-{key}-{start}.safetensors"
        part = None if path is None else _read(path)
        if part is None:
            rows = images.select(slice(start, start + _PART))
            part = _attack(attack, model, to_float(rows.x), rows.y, run)
            if path is not None:
                _write(path, part)
        parts.append(part)
    index = torch.as_tensor(images.columns.get("index", torch.arange(len(images))))
    whole = Campaign(attack=str(attack), images=images.name, y=images.y, index=index, outcome=_join(parts))
    if run.out is not None:
        with atomic_path(run.out / "samples.parquet") as temporary:
            pq.write_table(whole.table(), temporary)
        content = {"x_adv": whole.outcome.x_adv.contiguous()}
        write_bytes(run.out / "adversarial.safetensors", safetensors.torch.save(content))
    return whole


def _attack(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, run: Run) -> Outcome:
    """The outcome that the attack reports, or, of one that returns images alone, what the model says of them."""
    if isinstance(attack, Evasion):
        return attack.run(model, x, y, run=run)
    x_adv = attack(model, x, y, run=run).detach()
    if x_adv.shape != x.shape:
        raise UserError(f"{attack.id} returned images of shape {tuple(x_adv.shape)} for {tuple(x.shape)}.")
    with consult(model, x[:32], run) as oracle:
        clean, logits = oracle.verdicts(x), oracle.verdicts(x_adv)
    moved = distance(x_adv, x, "linf")
    uncounted = torch.full((len(x),), UNCOUNTED)
    return Outcome(
        x_adv=x_adv,
        success=logits.argmax(1) != y,
        correct=clean.argmax(1) == y,
        queries=uncounted,
        gradients=uncounted.clone(),
        distance=moved,
        logits=logits,
        clean_logits=clean,
        norm="linf",
        eps=float(moved.max()),
    )


def _rate(k: int, n: int) -> dict[str, float]:
    low, high = stats.wilson(k, n)
    return {"value": k / n, "low": low, "high": high}


def _key(attack: Attack, model: nn.Module, images: Images, run: Run) -> str:
    """A hash of all that the outcome depends on."""
    fields = {f.name: str(getattr(attack, f.name)) for f in dataclasses.fields(cast(Any, attack))}
    told = [attack.id, fields, weights_hash(model), type(model).__qualname__, images.fingerprint(), run.seed, run.scope]
    told += [run.precision, holdfast.__version__, torch.__version__]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


_TENSORS = ("x_adv", "success", "correct", "queries", "gradients", "distance", "logits", "clean_logits")


def _write(path: Path, part: Outcome) -> None:
    tensors = {name: getattr(part, name).cpu().contiguous() for name in _TENSORS}
    write_bytes(path, safetensors.torch.save(tensors, {"norm": part.norm, "eps": repr(part.eps)}))


def _read(path: Path) -> Outcome | None:
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            ball = file.metadata()
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
    except safetensors.SafetensorError:
        return None  # a damaged disk: what cannot be read is worked out again
    return Outcome(**tensors, norm=cast(Norm, ball["norm"]), eps=float(ball["eps"]))


def _join(parts: list[Outcome]) -> Outcome:
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
    return Outcome(**tensors, norm=parts[0].norm, eps=max(part.eps for part in parts))
