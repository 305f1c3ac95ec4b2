"""The user's own code, run by explicit request: ``package.module:factory`` or ``path/my.py:make``."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from holdfast.errors import UserError, did_you_mean

__all__ = ["build_from_code"]


def build_from_code(spec: str, offered: Mapping[str, Any]) -> nn.Module:
    """Import the code that `spec` names, and get a model from it.

    Args:
        spec: ``WHERE:WHAT``. WHERE is a module (the current folder is searched too) or a Python file; WHAT is a
            function or class that gives the model, or a model.
        offered: arguments by name; those that WHAT takes by that name are given to it.

    Raises:
        UserError: there is no such code, it fails (the message says with what, and where), or it gives no `nn.Module`.
    """
    where, _, what = spec.rpartition(":")
    path = Path(where)
    folder = path.resolve().parent if path.suffix == ".py" else Path.cwd()
    with _importable(folder):
        module = _import_file(path, spec) if path.suffix == ".py" else _import_module(where, spec)
        found: Any = module
        for part in what.split("."):
            if not hasattr(found, part):
                names = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
                raise UserError(f"{spec}: {where} has no {part!r}.{did_you_mean(part, names)}")
            found = getattr(found, part)
        if isinstance(found, nn.Module):
            return found
        if not callable(found):
            raise UserError(f"{spec} is a {type(found).__name__}; a function that returns a model is needed.")
        arguments = _arguments(spec, found, offered)
        with _reported(spec, f"{what}() failed"):
            model = found(**arguments)
    if not isinstance(model, nn.Module):
        raise UserError(f"{spec}: {what}() must return an nn.Module, got {_a(type(model).__name__)}.")
    return model


def _import_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"{spec}: {path} is no file.")
    # A name of its own, so that the user's `torch.py` or two files called `model.py` cannot shadow anything.
    name = f"holdfast_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    location = importlib.util.spec_from_file_location(name, path)
    assert location is not None  # never None for a .py file
    assert location.loader is not None
    module = importlib.util.module_from_spec(location)
    sys.modules[name] = module  # dataclasses and pickles look their module up there
    try:
        with _reported(spec, f"{path} cannot be imported"):
            location.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str, spec: str) -> ModuleType:
    try:
        with _reported(spec, f"{name} cannot be imported"):
            return importlib.import_module(name)
    except UserError as error:
        cause = error.__cause__
        if (
            isinstance(cause, ModuleNotFoundError)
            and cause.name is not None
            and f"{name}.".startswith(f"{cause.name}.")
        ):
            raise UserError(
                f"{spec}: there is no module {name!r} here; for a file give its path, my.py:make."
            ) from None
        raise


def _arguments(spec: str, found: Any, offered: Mapping[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # compiled callables have none
        return {}
    arguments = {p.name: offered[p.name] for p in parameters if p.name in offered and p.kind != p.POSITIONAL_ONLY}
    for p in parameters:
        needed = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if needed and p.name not in arguments:
            takes = ", ".join(offered) or "none here"
            raise UserError(f"{spec}: its argument {p.name!r} has no default; the arguments given are: {takes}.")
    return arguments


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have taken it out itself
            sys.path.remove(str(folder))


@contextlib.contextmanager
def _reported(spec: str, what: str) -> Iterator[None]:
    """Say what the user's code raised, and at which of its lines, in one sentence; the cause is kept."""
    try:
        yield
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything, and scripts like to exit
        if isinstance(error, UserError):
            raise
        message = str(error).strip().partition("\n")[0]
        raise UserError(f"{spec}: {what}: {type(error).__name__}: {message}{_place(error)}.") from error


def _place(error: BaseException) -> str:
    """The last line of the traceback that is not in an installed package or in holdfast."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})"
    own = str(Path(__file__).parents[1])
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((own, "<frozen")) and f"{os.sep}site-packages{os.sep}" not in frame.filename
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _a(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
