"""An attack on a whole split, in parts that survive a kill, with the tables that come out of it.

Parts have fixed borders and a sample's result does not depend on its neighbours, so a run that was killed and started
again ends with the same files as one that was not. An attack to which the neighbours matter has one part: all of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
from holdfast.evasion.balls import distance
from holdfast.evasion.oracle import consult
from holdfast.evasion.outcome import Outcome, StagedOutcome
from holdfast.files import atomic_path, write_bytes
from holdfast.methods import Attack
from holdfast.models import QueriesSpent, forget, queryables, weights_hash
from holdfast.run import Run
from holdfast.training.devices import first_process, gathered, launch, processes

__all__ = ["Campaign", "campaign"]

UNCOUNTED = -1  # queries of an attack that does not report them
_PART = 512  # images; a fixed number, so that resumed and uninterrupted runs are cut alike
_ASKED_PART = 64  # of a model whose every answer costs: less is lost by a kill, and by the end of a budget


@dataclass(frozen=True, kw_only=True, eq=False)
class Campaign:
    """An attack's outcome on a split.

    Args:
        attack: its spec.
        images: the name of the split.
        y: the true labels.
        index: where each image stands in the split.
        outcome: sample by sample.
        left: images of the split that the budget of queries did not suffice for; the last ones, `y`, `index` and
            `outcome` are without them.
    """

    attack: str
    images: str
    y: Tensor
    index: Tensor
    outcome: Outcome
    left: int = 0

    @property
    def sentence(self) -> str:
        """The result in words."""
        left = f" The budget of queries was spent before the other {self.left} images." if self.left else ""
        notes = self.outcome.notes if isinstance(self.outcome, StagedOutcome) else ()
        return self._sentence() + left + "".join(f" Note: {note}" for note in notes)

    def _sentence(self) -> str:
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
        staged = {}
        if isinstance(o, StagedOutcome):
            staged = {"stages": [asdict(stage) for stage in o.stages], "notes": list(o.notes)}
        return {
            "attack": self.attack,
            "norm": o.norm,
            "eps": o.eps if math.isfinite(o.eps) else None,
            "n": n,
            "left_by_the_budget": self.left,
            "clean_accuracy": _rate(int(o.correct.sum()), n),
            "robust_accuracy": _rate(n - int(o.success.sum()), n),
            "queries_per_image": float(o.queries.double().mean()) if counted else None,
            "gradients_per_image": float(o.gradients.double().mean()) if counted else None,
            "median_queries_of_successes": float(o.queries[newly].double().median()) if counted & newly.any() else None,
            "largest_distance": float(o.distance.max()),
            "median_distance_of_successes": float(o.distance[newly].double().median()) if newly.any() else None,
            **staged,
        }

    def table(self) -> pa.Table:
        """One row per image: index, label, predictions, success, distance, queries, gradients.

        Where attacks were run one after the other, also ``stage``, the one that succeeded.
        """
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
        arrays: dict[str, Any] = {name: values.numpy() for name, values in columns.items()}
        if isinstance(o, StagedOutcome):
            arrays["stage"] = [o.names[i] if i >= 0 else None for i in o.fell.tolist()]
        return pa.table(arrays)


def campaign(attack: Attack, model: nn.Module, images: Images, *, run: Run) -> Campaign:
    """Attack every image of a split.

    With ``run.out``, finished parts are kept under ``state``, and at the end ``samples.parquet`` (see
    `Campaign.table`) and ``adversarial.safetensors`` (``x_adv``, float32) are written.

    Where the budget of queries of a `Queryable` is spent on the way, the images finished by then are the result; with
    ``run.out``, the same call with a larger budget goes on with the others.

    In several processes, started by a launcher such as ``torchrun``, each on a device of its own, the parts are shared
    out; every process returns the whole result, which is that of one process alone.

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
    size = _ASKED_PART if queryables(model) else _PART
    size = len(images) if isinstance(attack, Evasion) and attack.joint else size
    starts = list(range(0, len(images), size))

    def part_at(start: int, run: Run) -> Outcome:
        path = None if run.out is None else run.out / "state" / f"{attack.id}-{key}-{start}.safetensors"
        part = None if path is None else _read(path)
        if part is None:
            rows = images.select(slice(start, start + size))
            forget(model)  # or a resumed part, which starts without known answers, would be asked in other batches
            part = _attack(attack, model, to_float(rows.x), rows.y, run)
            if path is not None:
                _write(path, part)
        return part

    parts = (
        _shared(model, part_at, starts, run)
        if processes() > 1
        else _one_by_one(part_at, starts, min(size, len(images)), run)
    )
    outcome = _join(parts)
    n, index = len(outcome), torch.as_tensor(images.columns.get("index", torch.arange(len(images))))
    whole = Campaign(
        attack=str(attack), images=images.name, y=images.y[:n], index=index[:n], outcome=outcome, left=len(images) - n
    )
    if run.out is not None and first_process():
        with atomic_path(run.out / "samples.parquet") as temporary:
            pq.write_table(whole.table(), temporary)
        content = {"x_adv": whole.outcome.x_adv.contiguous()}
        write_bytes(run.out / "adversarial.safetensors", safetensors.torch.save(content))
    return whole


def _one_by_one(part_at: Callable[[int, Run], Outcome], starts: list[int], size: int, run: Run) -> list[Outcome]:
    """The parts in order, as far as the budget of queries goes."""
    parts: list[Outcome] = []
    for start in starts:
        try:
            parts.append(part_at(start, run))
        except QueriesSpent as error:
            if not parts:
                raise QueriesSpent(f"{error} Not one of the {size} images of the first part is done.") from None
            break
    return parts


def _shared(model: nn.Module, part_at: Callable[[int, Run], Outcome], starts: list[int], run: Run) -> list[Outcome]:
    """The parts, taken in turn by the processes that a launcher has started; each gets them all."""
    if queryables(model):
        raise UserError("campaign: a model that is asked has one budget; attack it in one process, without a launcher.")
    fabric = launch(run)
    own = run.but(device=str(fabric.device), progress=run.progress and fabric.global_rank == 0)
    done = {start: part_at(start, own) for start in starts[fabric.global_rank :: fabric.world_size]}
    everyone: dict[int, Outcome] = {}
    for theirs in gathered(fabric, done):
        everyone |= theirs
    return [everyone[start] for start in starts]


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
    told = [attack.id, fields, weights_hash(model), repr(model), images.fingerprint(), run.seed, run.scope]
    told += [run.precision, holdfast.__version__, torch.__version__]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


_TENSORS = ("x_adv", "success", "correct", "queries", "gradients", "distance", "logits", "clean_logits")
_STAGED = ("names", "specs", "seconds", "notes")


def _write(path: Path, part: Outcome) -> None:
    tensors = {name: getattr(part, name).cpu().contiguous() for name in _TENSORS}
    told = {"norm": part.norm, "eps": repr(part.eps)}
    if isinstance(part, StagedOutcome):
        tensors["fell"] = part.fell.cpu()
        told["stages"] = json.dumps({name: getattr(part, name) for name in _STAGED})
    write_bytes(path, safetensors.torch.save(tensors, told))


def _read(path: Path) -> Outcome | None:
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            told = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except safetensors.SafetensorError:
        return None  # a damaged disk: what cannot be read is worked out again
    ball: dict[str, Any] = {"norm": told["norm"], "eps": float(told["eps"])}
    if "stages" not in told:
        return Outcome(**tensors, **ball)
    stages: dict[str, Any] = {name: tuple(values) for name, values in json.loads(told["stages"]).items()}
    return StagedOutcome(**tensors, **ball, **stages)


def _join(parts: list[Outcome]) -> Outcome:
    whole: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS}
    whole |= {"norm": parts[0].norm, "eps": max(part.eps for part in parts)}
    staged = [part for part in parts if isinstance(part, StagedOutcome)]
    if not staged:
        return Outcome(**whole)
    return StagedOutcome(
        **whole,
        fell=torch.cat([part.fell for part in staged]),
        names=staged[0].names,
        specs=staged[0].specs,
        seconds=tuple(map(sum, zip(*(part.seconds for part in staged), strict=True))),
        notes=tuple(dict.fromkeys(note for part in staged for note in part.notes)),
    )
