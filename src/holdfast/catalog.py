"""Find, list, describe and build methods by id.

A method `a-b` of family `f` stands in ``holdfast/f/a_b.py``; looking it up imports that one file. Other packages join
through the entry-point group ``holdfast.methods``: each entry names a module that defines methods, or a method.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib
import importlib.metadata
import pkgutil
import warnings
from pathlib import Path
from typing import Any, TypeVar

from holdfast import specs
from holdfast.errors import UserError, one_of
from holdfast.methods import Card, Method

__all__ = ["FAMILIES", "build", "cards", "describe", "find", "load_all"]

FAMILIES: dict[str, str] = {
    "evasion": "Attacks at test time",
    "hardening": "Training that resists them",
    "ood": "Out-of-distribution detection",
    "calibration": "Honest confidence",
    "privacy": "What a model gives away about its training data",
    "unlearning": "Removing data from a model",
    "continual": "Learning and forgetting, request by request",
    "compression": "Smaller and faster models",
    "generative": "Models that make images",
    "optim": "Optimisation",
    "training": "Losses, optimizers, schedules, augmentation",
    "data": "Changes of data sets",
}

M = TypeVar("M", bound=Method)


def find(id: str, kind: type[M] | None = None) -> type[M]:
    """The method class of an id.

    Raises:
        UserError: there is no such method, or it is of another kind.
    """
    if id not in Method.registry:
        _import_by_name(id)
    if id not in Method.registry:
        load_all()
    if id not in Method.registry:
        wanted = [i for i, m in Method.registry.items() if kind is None or issubclass(m, kind)]
        raise one_of(kind.kind if kind is not None and kind.kind else "method", id, wanted)
    method = Method.registry[id]
    if kind is not None and not issubclass(method, kind):
        options = ", ".join(sorted(i for i, m in Method.registry.items() if issubclass(m, kind)))
        raise UserError(f"{id!r} is of kind {method.kind}, but a method of kind {kind.kind} is needed: {options}.")
    return method  # type: ignore[return-value]


def build(spec: str | specs.Spec | Method, kind: type[M] | None = None) -> M:
    """Build a method from ``"pgd(eps=8/255, steps=20)"``; a method passes through.

    Raises:
        UserError: the text cannot be read, or the method or a hyperparameter does not exist or fit.
    """
    if isinstance(spec, Method):
        if kind is not None and not isinstance(spec, kind):
            raise UserError(f"{spec} is of kind {spec.kind}, but a method of kind {kind.kind} is needed.")
        return spec  # type: ignore[return-value]
    if not isinstance(spec, specs.Spec):
        spec = specs.parse(spec)
    method: Any = find(spec.id, kind)
    built: M = method.build(spec.fields)
    return built


def cards(*, kind: str | None = None, family: str | None = None, pattern: str = "*") -> list[Card]:
    """The cards of all methods of a kind, a family, and an id pattern such as ``"*pgd*"``, ordered by family and id."""
    load_all()
    found = [method.card() for method in Method.registry.values()]
    for what, given, known in (("kind", kind, {c.kind for c in found}), ("family", family, {c.family for c in found})):
        if given is not None and given not in known:
            raise one_of(what, given, known)
    order = {name: place for place, name in enumerate(FAMILIES)}
    chosen = (
        c for c in found if kind in (None, c.kind) and family in (None, c.family) and fnmatch.fnmatch(c.id, pattern)
    )
    return sorted(chosen, key=lambda c: (order.get(c.family, len(order)), c.family, c.id))


def describe(id: str) -> Card:
    """The card of one method."""
    return find(id, Method).card()


@functools.cache
def load_all() -> None:
    """Import every family and every plugin, so that all methods are registered. A broken plugin only warns."""
    for family in _families():
        package = importlib.import_module(f"holdfast.{family}")
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"holdfast.{family}.{module.name}")
    for entry in importlib.metadata.entry_points(group="holdfast.methods"):
        try:
            entry.load()
        except Exception as error:  # a stranger's package: whatever it raises, the rest must go on working
            warnings.warn(f"the plugin {entry.name!r} ({entry.value}) cannot be loaded: {error}", stacklevel=2)


def _import_by_name(id: str) -> None:
    name = id.replace("-", "_")
    root = Path(__file__).parent
    for family in _families():
        if name.isidentifier() and (root / family / f"{name}.py").is_file():
            importlib.import_module(f"holdfast.{family}.{name}")


def _families() -> list[str]:
    root = Path(__file__).parent
    return [family for family in FAMILIES if (root / family / "__init__.py").is_file()]
