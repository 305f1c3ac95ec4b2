"""A stream of requests, served one after the other, and the record of what each of them did.

With a folder, a stream that was stopped goes on where it was, also within a request. Of each request that was served
only the record stays: a folder from which the images and the models of earlier requests could be taken would not have
forgotten.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from holdfast import catalog, files
from holdfast.continual.learner import ContinualLearner, serve
from holdfast.continual.memory import Memory, ids_of
from holdfast.continual.record import Account, Record
from holdfast.continual.request import Request, check_stream
from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.models import load_weights, save_weights, weights_hash
from holdfast.run import Run

__all__ = ["Served", "serve_stream"]

_FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Served:
    """What a stream leaves.

    Args:
        model: in evaluation mode.
        memory: of what it learnt and did not forget.
        records: one for each request.
    """

    model: nn.Module
    memory: Memory
    records: tuple[Record, ...]


def serve_stream(
    learner: ContinualLearner | str,
    model: nn.Module,
    requests: Sequence[Request],
    memory: Memory,
    *,
    test: Images,
    told: Callable[[Record], None] | None = None,
    run: Run,
) -> Served:
    """Serve requests one after the other.

    With ``run.out`` set, a stream that was stopped, even killed, goes on where it was when it is called again with the
    same arguments, and ends as if it had never stopped.

    Args:
        learner: a method, or its spec.
        model: with logits for every class that will ever come; left as it was.
        requests: in their order.
        memory: what it begins with; see `Memory.empty`.
        test: images of all classes, to measure what is known after each request.
        told: is called with the record of each request, also of those that were served in an earlier session.
        run: device, precision, seed, folder.

    Raises:
        UserError: the requests do not fit together, the memory has no room where something is to be forgotten, or the
            folder holds another stream.
    """
    learner = catalog.build(learner, kind=ContinualLearner)
    _check(requests, memory, test)
    account, progress = Account(test), _Progress(run.out)
    records: list[Record] = []
    known = {"learner": str(learner), "seed": str(run.seed), "precision": run.precision, "test": test.fingerprint()}
    before = {"weights": weights_hash(model), "memory": memory.fingerprint()}
    for number, request in enumerate(requests):
        identity = {**known, **before, **_identity(request)}
        account.note(request)
        if number < len(progress.entries):
            record, before = progress.take_up(number, identity)
            account.recall(record)
            if number + 1 == min(len(progress.entries), len(requests)):
                model, memory = progress.restore(number, model, run)
        else:
            began = time.perf_counter()
            model, memory = serve(learner, model, request, memory, run=run.child(_folder(number)))
            model = _placed(model, run)
            record = account.measure(model, request, memory, time.perf_counter() - began, run=run)
            before = {"weights": weights_hash(model), "memory": memory.fingerprint()}
            progress.add(number, identity, record, before, model, memory)
        records.append(record)
        if told is not None:
            told(record)
    return Served(model=model, memory=memory, records=tuple(records))


def _check(requests: Sequence[Request], memory: Memory, test: Images) -> None:
    """See `serve_stream`."""
    if not requests:
        raise UserError("stream: there are no requests to serve.")
    check_stream(list(requests), known=None if memory.seen else torch.zeros(0, dtype=torch.int64))
    for number, request in enumerate(requests, 1):
        if request.forget is not None and not memory.capacity:
            raise UserError(
                f"request {number}: with no room in the memory, nothing would say what is to be retained when images "
                "are forgotten; give it room for some."
            )
        for part in (request.learn, request.forget):
            if part is not None and (part.shape, part.classes) != (test.shape, test.classes):
                raise UserError(f"request {number}: its images differ from the test images in shape or classes.")


def _placed(model: nn.Module, run: Run) -> nn.Module:
    """The model where and as trainings leave it, so that one read back gives the same answers to the last bit."""
    return model.to(run.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _folder(number: int) -> str:
    return f"request-{number + 1}"


def _identity(request: Request) -> dict[str, str]:
    """The images of a request, by what is to become of them."""
    found = {}
    for verb, part in (("learn", request.learn), ("forget", request.forget)):
        ids = "" if part is None else hashlib.sha256(ids_of(part).numpy().tobytes()).hexdigest()[:16]
        found[verb] = "nothing" if part is None else f"{len(part)} images ({part.fingerprint()}, ids {ids})"
    return found


class _Progress:
    """How far a stream is, in ``progress.json``, with the model and the memory after the last request that was served.

    The entry of a request is written after its files, and what was there before is removed after that; so whenever it
    is killed, what the last entry says is there.
    """

    def __init__(self, out: Path | None):
        self.out = out
        self.entries: list[dict[str, Any]] = []
        if out is not None and (out / "progress.json").is_file():
            content = files.read_json(out / "progress.json")
            if not isinstance(content, dict) or content.get("format") != _FORMAT:
                raise UserError(f"{out} was written by another version of holdfast; choose another output folder.")
            self.entries = content["requests"]

    def take_up(self, number: int, identity: dict[str, str]) -> tuple[Record, dict[str, str]]:
        """The record of a request that was served, and what it left, as hashes.

        Raises:
            UserError: it was another request.
        """
        entry = self.entries[number]
        for name, now in identity.items():
            if (was := entry["identity"].get(name)) != now:
                raise UserError(
                    f"{self.out} holds a stream whose request {number + 1} had {name} {was}, and this one has {now}; "
                    "choose another output folder, or delete that one to start anew."
                )
        return Record.from_json(entry["record"]), entry["after"]

    def restore(self, number: int, model: nn.Module, run: Run) -> tuple[nn.Module, Memory]:
        """The model and the memory after a request.

        Raises:
            UserError: it is not the last one that was served.
        """
        assert self.out is not None
        if number + 1 != len(self.entries):
            raise UserError(
                f"{self.out} holds a stream of {len(self.entries)} requests, and this one has {number + 1}; what was "
                "known in between is not kept. Choose another output folder."
            )
        self._tidy(number)
        model = copy.deepcopy(model)
        load_weights(model, self._weights(number))
        return _placed(model.eval(), run), Memory.load(self._memory(number))

    def add(
        self,
        number: int,
        identity: dict[str, str],
        record: Record,
        after: dict[str, str],
        model: nn.Module,
        memory: Memory,
    ) -> None:
        """Note that a request was served."""
        if self.out is None:
            return
        files.make_dir(self.out)
        save_weights(model, self._weights(number))
        memory.save(self._memory(number))
        self.entries.append({"identity": identity, "record": record.to_json(), "after": after})
        files.write_json(self.out / "progress.json", {"format": _FORMAT, "requests": self.entries})
        self._tidy(number)

    def _tidy(self, number: int) -> None:
        """Remove all that stems from before the end of a request, except the records."""
        assert self.out is not None
        shutil.rmtree(self.out / _folder(number), ignore_errors=True)
        for path in (self._weights(number - 1), self._memory(number - 1)):
            path.unlink(missing_ok=True)

    def _weights(self, number: int) -> Path:
        assert self.out is not None
        return self.out / f"weights-{number + 1}.safetensors"

    def _memory(self, number: int) -> Path:
        assert self.out is not None
        return self.out / f"memory-{number + 1}.safetensors"
