"""What an audit has worked out so far, kept so that a killed audit goes on where it stopped.

Everything expensive (features, predictions on corrupted images, attacks chunk by chunk) and every finding is one
safetensors file under ``out/state``, written atomically and named by a hash of all it depends on: the model, the data,
holdfast's own code, the seed, and the settings. A changed setting therefore never meets a stale result, and what did
not change is not computed again. The folder may be deleted once the audit is done.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import holdfast
from holdfast.errors import UserError
from holdfast.files import read_json, write_bytes, write_json

__all__ = ["Store", "code_hash", "digest"]

_JSON = "json"


def digest(value: Any) -> str:
    """A hash of plain values, 16 hex digits."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def code_hash() -> str:
    """A hash of holdfast's own source, so that results of another version, or of edited code, are not taken up."""
    root = Path(inspect.getfile(holdfast)).parent
    content = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".yaml") and path.is_file():
            content.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return content.hexdigest()[:16]


class Store:
    """Results by name and settings, in memory and, when there is a folder, on disk.

    Args:
        folder: where to keep them; ``None`` keeps them in memory only.
        identity: of what is audited, as plain values; part of every key.
        seed: of the run; part of every key. A model that draws random numbers of its own (it should not) draws them
            from this seed too, so that even its audit can go on where it stopped.
        between: called at the borders of every result. What a model remembers of the queries of one must not reach the
            next, or an audit that goes on, and starts without memories, would come to another result.
    """

    def __init__(
        self,
        folder: Path | None,
        identity: Mapping[str, Any],
        seed: int = 0,
        between: Callable[[], None] = lambda: None,
    ):
        self._between = between
        self.folder = None if folder is None else folder / "state"
        self.identity, self.seed = dict(identity), seed
        self.code = code_hash()
        self._kept: dict[str, dict[str, Tensor]] = {}
        if self.folder is not None:
            self._claim(self.folder)

    def tensors(
        self, name: str, settings: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]], *, keep: bool = True
    ) -> dict[str, Tensor]:
        """The tensors that `compute` gives for these settings, computed at most once.

        Args:
            name: what they are; letters, digits and dashes.
            settings: all they depend on beside the identity.
            compute: makes them.
            keep: hold them in memory too, for those who ask again.
        """
        self._between()
        key = self._key(name, settings)
        if key in self._kept:
            return self._kept[key]
        content, _ = self._read(key)
        if content is None:
            with self._own_randomness(key):
                content = {k: v.detach().cpu().contiguous() for k, v in compute().items()}
            self._between()
            self._write(key, content, None)
        if keep:
            self._kept[key] = content
        return content

    def record(
        self, name: str, settings: Mapping[str, Any], compute: Callable[[], tuple[Any, dict[str, Tensor]]]
    ) -> tuple[Any, dict[str, Tensor]]:
        """Plain values together with tensors, that `compute` gives for these settings; computed at most once."""
        self._between()
        key = self._key(name, settings)
        tensors, value = self._read(key)
        if tensors is not None:
            return value, tensors
        with self._own_randomness(key):
            value, tensors = compute()
        self._between()
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        self._write(key, tensors, value)
        return value, tensors

    def _key(self, name: str, settings: Mapping[str, Any]) -> str:
        return f"{name}-{digest([self.identity, self.code, torch.__version__, self.seed, name, dict(settings)])}"

    @contextlib.contextmanager
    def _own_randomness(self, key: str) -> Iterator[None]:
        with torch.random.fork_rng():
            torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little"))
            yield

    def _read(self, key: str) -> tuple[dict[str, Tensor] | None, Any]:
        if self.folder is None or not (self.folder / f"{key}.safetensors").is_file():
            return None, None
        try:
            with safetensors.safe_open(self.folder / f"{key}.safetensors", framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                return tensors, json.loads((file.metadata() or {}).get(_JSON, "null"))
        except (safetensors.SafetensorError, ValueError):
            return None, None  # a damaged disk: what cannot be read is worked out again

    def _write(self, key: str, tensors: dict[str, Tensor], value: Any) -> None:
        if self.folder is not None:
            metadata = {_JSON: json.dumps(value, allow_nan=False)}
            write_bytes(self.folder / f"{key}.safetensors", safetensors.torch.save(tensors, metadata))

    def _claim(self, folder: Path) -> None:
        """Refuse a folder that holds the audit of something else."""
        mark = folder / "identity.json"
        if mark.is_file():
            before = read_json(mark)
            for what, value in self.identity.items():
                if isinstance(before, dict) and before.get(what) != value:
                    raise UserError(
                        f"{folder.parent} holds the audit of another {what} ({before.get(what)}, now {value}); "
                        "give another output folder, or delete this one."
                    )
        else:
            write_json(mark, self.identity)
