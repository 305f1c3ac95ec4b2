"""Weights on disk: written as safetensors, read from safetensors or from pickles that hold tensors only.

A pickle can run any code when it is read. Only PyTorch's restricted reader is used, which builds tensors and plain
containers and refuses everything else before it runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from holdfast.errors import UserError
from holdfast.files import atomic_path

__all__ = ["WeightsFile", "load_weights", "read_weights", "save_tensors", "save_weights", "weights_hash"]

_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_NESTED = ("state_dict", "model_state_dict", "model", "net", "module", "weights")
_PREFIXES = ("module.", "model.", "_orig_mod.", "net.")


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What a weights file holds: tensors by name, and what its writer said about the model."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def head_classes(self) -> int | None:
        """Rows of the final linear layer ``fc`` or ``head``, if there is one."""
        tensors = strip_prefixes(self.tensors)
        heads = [tensors[name] for name in ("fc.weight", "head.weight") if name in tensors]
        return heads[0].shape[0] if heads and heads[0].ndim == 2 else None


def save_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model's parameters and buffers to a safetensors file, whole or not at all.

    Args:
        model: any module.
        path: ends in ``.safetensors``.
        metadata: JSON values by name, e.g. ``classes``. What `build_model` knows of the model (``architecture``,
            ``num_classes``, ``image_shape``) is added.
        dtype: to store floating-point numbers in, e.g. `torch.float16`; by default as they are.

    Raises:
        UserError: the path has another ending or cannot be written, or `dtype` cannot hold a value.
    """
    known = {key: getattr(model, key, None) for key in ("architecture", "num_classes", "image_shape", "classes")}
    merged = {key: value for key, value in known.items() if value is not None} | dict(metadata or {})
    save_tensors(model.state_dict(), path, merged, dtype)


def save_tensors(
    tensors: Mapping[str, Any],
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors by name as `save_weights` does, for what is learned but is no model."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are written as .safetensors.")
    kept = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{name} of the model is a {type(tensor).__name__}, and safetensors hold tensors only.")
        stored = tensor.detach().cpu()
        if dtype is not None and stored.is_floating_point():
            stored = stored.to(dtype)
            if not torch.isfinite(stored).all() and torch.isfinite(tensor).all():
                raise UserError(f"{name} holds values that {str(dtype).removeprefix('torch.')} cannot.")
        # A copy of its own for each: safetensors refuses tensors that share memory.
        kept[name] = stored.clone(memory_format=torch.contiguous_format)
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(_ordered(safetensors.torch.save(kept, metadata={"format": "pt"} | text)))


def _ordered(content: bytes) -> bytes:
    """The same file with its metadata sorted, as safetensors writes them in an order that changes from run to run."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read a weights file into `model`, in the precision the model has.

    Args:
        model: changed in place, only when everything fits.
        path: see `read_weights`.

    Returns:
        The file's metadata.

    Raises:
        UserError: the file cannot be read, or does not fit the model.
    """
    file = read_weights(path)
    fit_weights(model, file)
    return file.metadata


def read_weights(path: str | os.PathLike[str]) -> WeightsFile:
    """Read a weights file on the CPU without running anything it may contain.

    Args:
        path: ``.safetensors``, or a state dict written by `torch.save` (``.pt``, ``.pth``, ``.bin``, ``.ckpt``), bare
            or under a usual key such as ``state_dict``.

    Raises:
        UserError: the file is missing, damaged, of another kind, or a pickle of more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'this is a folder, not a file' if path.is_dir() else 'no such file'}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".pt2":
        raise UserError(refusal_of_programs(path))
    if path.suffix in _PICKLED:
        return _read_state_dict(path)
    raise UserError(f"{path}: weights are read from .safetensors, {', '.join(_PICKLED)} files, got {path.suffix!r}.")


def fit_weights(model: nn.Module, file: WeightsFile) -> None:
    """Copy a file's tensors into `model`, if their names and shapes are the model's.

    Raises:
        UserError: a tensor is missing, superfluous or of another shape; the model is left as it was.
    """
    wanted = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    given = file.tensors if set(file.tensors) == set(wanted) else strip_prefixes(file.tensors, set(wanted))
    # Files older than batch norm's batch counter lack it; evaluation does not use it.
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name} has shape {tuple(given[name].shape)} where the model has {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    problems = [
        *([f"it lacks {_few(missing)}"] if missing else []),
        *([f"the model has no {_few(unexpected)}"] if unexpected else []),
        *([_few(shapes)] if shapes else []),
    ]
    if problems:
        name = getattr(model, "architecture", type(model).__name__)
        hint = ""
        if missing and all(key.startswith("normalize.") for key in missing):
            hint = " Weights trained elsewhere lack the normalisation: set it in a factory of your own."
        raise UserError(f"{file.path} does not fit {name}: {'; '.join(problems)}.{hint}")
    model.load_state_dict(dict(given), strict=False)


def weights_hash(model: nn.Module) -> str:
    """A hash of the names, shapes, types and bits of all parameters and buffers: 16 hex digits.

    It does not depend on the device, the memory layout, or whether gradients are required.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name}\0{tuple(value.shape)}\0{value.dtype}\0".encode())
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name}\0{value!r}\0".encode())
    return digest.hexdigest()[:16]


def strip_prefixes(tensors: Mapping[str, Tensor], wanted: set[str] | None = None) -> Mapping[str, Tensor]:
    """Take away what data-parallel, compiled and Lightning models put before every name, while all names have it."""
    while tensors and not (wanted and wanted & set(tensors)):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def refusal_of_programs(path: Path) -> str:
    """Why exported programs are not read, and what to do."""
    # torch.export.load (seen in 2.13) falls back to full unpickling for constants and example inputs, and hands shape
    # expressions to sympy.sympify, which evaluates them: a crafted file runs code.
    return (
        f"{path} is a torch.export program, and reading one can run code that it contains, so it is refused. If you "
        f"trust it, load it in a file of your own, `def make(): return torch.export.load('{path.name}').module()`, and "
        "give that as my.py:make."
    )


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
            text = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({_first_line(error)}).") from error
    return WeightsFile(path=path, tensors=tensors, metadata=_parse_metadata(path, text))


def _parse_metadata(path: Path, text: Mapping[str, str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {key: value for key, value in text.items() if key != "format"}
    accepts = {
        "num_classes": lambda v: isinstance(v, int) and v >= 1,
        "image_shape": lambda v: isinstance(v, list) and len(v) == 3 and all(isinstance(n, int) and n >= 1 for n in v),
        "classes": lambda v: isinstance(v, list) and all(isinstance(n, str) for n in v),
    }
    for key, fits in accepts.items():
        if key not in parsed:
            continue
        try:
            value = json.loads(parsed[key])
        except ValueError:
            value = None
        if not fits(value):
            raise UserError(f"{path}: its metadata gives {key} as {parsed[key]!r}, which cannot be.")
        parsed[key] = tuple(value) if isinstance(value, list) else value
    return parsed


def _read_state_dict(path: Path) -> WeightsFile:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats; what matters is said below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises a dozen types for damaged and for refused files
        raise UserError(_refusal(path, str(error))) from error
    for _ in range(2):  # {"state_dict": {...}}, perhaps once more inside
        if isinstance(content, Mapping) and not _all_tensors(content):
            content = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content or not _all_tensors(content):
        got = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            got = f"a dictionary of {_few(list(map(str, content)))}" if content else "an empty dictionary"
        raise UserError(f"{path} holds no state dict of tensors by name, but {got}.")
    return WeightsFile(path=path, tensors=dict(content))


def _refusal(path: Path, message: str) -> str:
    """One sentence for what the restricted reader says at length."""
    if "TorchScript" in message:
        return (
            f"{path} is a TorchScript program, not weights: load it in a file of your own, `def make(): return "
            f"torch.jit.load('{path.name}')`, and give that as my.py:make."
        )
    with open(path, "rb") as file:
        pickled = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # a zip, or a bare pickle
    if pickled and "Weights only load failed" in message:
        return (
            f"{path} is a pickle of more than tensors; reading it could run code, so it is refused and nothing was "
            f"run. Convert it where you trust it: safetensors.torch.save_model(torch.load('{path.name}', "
            f"weights_only=False), '{path.stem}.safetensors')."
        )
    return f"{path} is damaged or not a file of torch.save."


def _all_tensors(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def _few(items: list[str], count: int = 3) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
