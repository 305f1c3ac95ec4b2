"""Checkpoints: everything a training needs to go on as if it had never stopped.

Tensors, numbers and text only, so that reading one back (`torch.load` with ``weights_only=True``) can run no code. The
file is replaced in one step; a killed process leaves the old one.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast import files
from holdfast.errors import UserError
from holdfast.training.state import State

__all__ = ["interrupts", "load_checkpoint", "remove_leftovers", "save_checkpoint"]

_FORMAT = 1


def save_checkpoint(path: Path, state: State, stepper: Any, sums: Tensor, seconds: float) -> None:
    """Write the training's state to `path`.

    Args:
        path: the file.
        state: of the training.
        stepper: the optimizer, or its wrapper.
        sums: what the current epoch's metrics are computed from, so far.
        seconds: spent on the training so far.
    """
    content = {
        "format": _FORMAT,
        "settings": state.settings,
        "seconds": seconds,
        "epoch": state.epoch,
        "index": state.index,
        "stop": state.stop,
        "sums": sums,
        "model": state.model.state_dict(),
        "average": None if state.average is None else state.average.state_dict(),
        "optimizer": stepper.state_dict(),
        "history": state.history,
        "memory": state.memory,
    }
    with files.atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path, state: State, stepper: Any, sums: Tensor) -> float:
    """Bring `state`, `stepper` and `sums` to where the checkpoint at `path` stands; returns the seconds spent so far.

    Raises:
        UserError: the file cannot be read, or belongs to a training with other settings.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content["settings"] if content["format"] == _FORMAT else None
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}); delete it to start this training anew."
        ) from None
    if found is None:
        raise UserError(f"{path} was written by another version of holdfast; choose another output folder.")
    for name in dict.fromkeys([*state.settings, *found]):
        was, now = found.get(name, "absent"), state.settings.get(name, "absent")
        if was != now:
            raise UserError(
                f"{path.parent} holds a training with {name} {was}, and this one has {now}; choose another output "
                "folder, or delete that one to start anew."
            )
    state.model.load_state_dict(content["model"])
    if state.average is not None:
        state.average.load_state_dict(content["average"])
    stepper.load_state_dict(content["optimizer"])
    state.epoch, state.index, state.stop = content["epoch"], content["index"], content["stop"]
    state.history, state.memory = content["history"], content["memory"]
    sums.copy_(content["sums"])
    return float(content["seconds"])


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writes that a kill has cut short."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """While the block runs, the first Ctrl-C is noted for the loop to act on between steps; the second is immediate.

    Yields:
        A function that says whether Ctrl-C was pressed.
    """
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield pressed.is_set
        return

    def note(number: int, frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
