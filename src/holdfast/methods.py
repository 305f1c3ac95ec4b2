"""The kinds of method, and the card each method carries.

A method is a published technique: a frozen dataclass whose fields are its hyperparameters, with the paper's values as
defaults, and whose ``__call__`` does the work. It inherits the kind that fits and gives its id and paper in the class
line; thereby it is in the catalogue, on the command line and in the documentation:

    @dataclass(frozen=True, kw_only=True)
    class PGD(Attack, id="pgd", paper=Paper(arxiv="1706.06083", year=2018)):
        \"\"\"Projected gradient descent.\"\"\"

        eps: Annotated[float, Field(gt=0, le=1)] = 8 / 255
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor, nn

from holdfast import specs
from holdfast.errors import UserError, did_you_mean
from holdfast.run import Run

__all__ = [
    "Attack",
    "BatchTransform",
    "Calibrator",
    "Callback",
    "Card",
    "Certificates",
    "Certifier",
    "Compressor",
    "Detector",
    "FieldCard",
    "Method",
    "Objective",
    "OptimizerWrapper",
    "Paper",
    "Scanner",
    "Surgery",
    "Transform",
    "Unlearner",
]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a method was published."""

    title: str = ""
    arxiv: str | None = None
    doi: str | None = None
    venue: str = ""
    year: int | None = None

    @property
    def url(self) -> str | None:
        """A link to the paper."""
        if self.arxiv:
            return f"https://arxiv.org/abs/{self.arxiv}"
        return f"https://doi.org/{self.doi}" if self.doi else None

    def __str__(self) -> str:
        where = ", ".join(str(part) for part in (self.title, self.venue, self.year) if part)
        return f"{where} ({self.url})" if self.url else where


@dataclass(frozen=True)
class FieldCard:
    """One hyperparameter: its name, type, default, what it accepts, and what it means."""

    name: str
    type: str
    default: Any
    accepts: str
    doc: str


@dataclass(frozen=True)
class Card:
    """What is known of a method without running it."""

    id: str
    kind: str
    family: str
    title: str
    paper: Paper | None
    summary: str
    doc: str
    fields: tuple[FieldCard, ...]

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        value = dataclasses.asdict(self)
        value["paper"] = None if self.paper is None else {**dataclasses.asdict(self.paper), "url": self.paper.url}
        for field in value["fields"]:
            field["default"] = _plain(field["default"])
        return value


class Method(ABC):  # noqa: B024 - each kind names what must be there
    """Base of every kind. Subclasses that give an ``id`` are catalogued; see the module's example."""

    kind: ClassVar[str] = "method"
    id: ClassVar[str] = ""
    title: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None

    registry: ClassVar[dict[str, type[Method]]] = {}

    def __init_subclass__(
        cls,
        *,
        id: str = "",
        title: str = "",
        paper: Paper | None = None,
        kind: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if kind:
            cls.kind = kind
        if not id:
            return
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", id):
            raise TypeError(f"{cls.__qualname__}: a method's id is kebab-case, got {id!r}")
        taken = Method.registry.get(id)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"the id {id!r} of {cls.__qualname__} is taken by {taken.__module__}.{taken.__qualname__}")
        cls.id, cls.title, cls.paper = id, title or id, paper
        # @dataclass(slots=True) and the like make the class anew, hence a later one of the same name replaces it.
        Method.registry[id] = cls

    def __post_init__(self) -> None:
        for name, value in _validated(type(self), {f.name: getattr(self, f.name) for f in _fields(type(self))}).items():
            object.__setattr__(self, name, value)

    @property
    def spec(self) -> specs.Spec:
        """The spec that builds this method again: its id and the fields that differ from their defaults."""
        changed = {
            f.name: _spec_value(getattr(self, f.name))
            for f in _fields(type(self))
            if getattr(self, f.name) != _default(f)
        }
        return specs.Spec(self.id, changed)

    def __str__(self) -> str:
        return str(self.spec)

    @classmethod
    def card(cls) -> Card:
        """The method's card."""
        return _card(cls)

    @classmethod
    def build(cls, fields: Mapping[str, Any]) -> typing.Self:
        """Make the method from named values.

        Raises:
            UserError: a name is unknown, or a value is not accepted.
        """
        known = [f.name for f in _fields(cls)]
        for name in fields:
            if name not in known:
                takes = f" It takes: {', '.join(known)}." if known else " It takes no hyperparameters."
                raise UserError(f"{cls.id}: {name!r} is not a hyperparameter.{did_you_mean(name, known) or takes}")
        return cls(**fields)


class Attack(Method, kind="attack"):
    """Changes inputs, within a norm ball and the box [0, 1], so that the model errs."""

    @abstractmethod
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, run: Run) -> Tensor:
        """Attack `x` (float in [0, 1], shape (N, C, H, W)) with labels `y` (int64, (N,)); returns `x_adv` like `x`."""


class Objective(Method, kind="objective"):
    """A training loss."""

    @abstractmethod
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Any) -> Tensor:
        """The mean loss of a batch; `step` is the `holdfast.training.Step` (epoch, index, run, logits to report)."""


class Surgery(Method, kind="surgery"):
    """Changes a model's architecture, or wraps it."""

    @abstractmethod
    def __call__(self, model: nn.Module) -> nn.Module:
        """Return the changed copy; the given model is left as it was."""


class Transform(Method, kind="transform"):
    """Changes a data set."""

    @abstractmethod
    def __call__(self, images: Any, *, run: Run) -> Any:
        """Return new `holdfast.data.Images`; the given ones are left as they were."""


class BatchTransform(Method, kind="batch-transform"):
    """Changes a training batch: augmentation on tensors.

    Where `on_bytes` is true it takes uint8 images (0..255) as well, which is four times as fast.
    """

    on_bytes: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the changed batch; `x` is float (N, C, H, W) in [0, 1]; random numbers come from `rng` alone."""


class OptimizerWrapper(Method, kind="optimizer-wrapper"):
    """Changes how an optimizer steps."""

    @abstractmethod
    def __call__(self, optimizer: torch.optim.Optimizer) -> Any:
        """Return a wrapper whose ``step(closure)`` replaces the optimizer's."""


class Callback(Method, kind="callback"):
    """Hooks of `fit`; override those needed."""

    def on_start(self, state: Any) -> None:
        """Before the first step."""

    def on_step(self, state: Any) -> None:
        """After every optimizer step."""

    def on_epoch(self, state: Any) -> None:
        """After every epoch, before its metrics are written."""

    def on_end(self, state: Any) -> None:
        """After the last epoch."""


class Detector(Method, kind="detector"):
    """Scores how anomalous an input is; higher is more anomalous.

    A detector reads features, not images, so that any number of detectors share one pass of the model.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"logits"})
    needs_fit: ClassVar[bool] = False

    def fit_features(self, features: Any, head: nn.Linear | None) -> dict[str, Tensor]:
        """Learn the detector's state from the features of in-distribution training images. Stateless by default."""
        return {}

    @abstractmethod
    def score(self, features: Any, state: Mapping[str, Tensor]) -> Tensor:
        """Anomaly scores (N,), float64 or float32, from `holdfast.models.Features`."""


@dataclass(frozen=True)
class Certificates:
    """What a certifier proved, per sample.

    Args:
        prediction: int64 (N,), the certified class.
        radius: float64 (N,), no perturbation up to this norm changes the prediction; 0 where it abstained.
        abstained: bool (N,).
        norm: of the radius.
        failure_probability: chance that a radius is wrong; 0 for deterministic certifiers.
    """

    prediction: Tensor
    radius: Tensor
    abstained: Tensor
    norm: str
    failure_probability: float


class Certifier(Method, kind="certifier"):
    """Proves that no perturbation within a radius changes the prediction."""

    @abstractmethod
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, run: Run) -> Certificates:
        """Certify each sample."""


class Calibrator(Method, kind="calibrator"):
    """Learns, from held-out logits, a map that makes confidences honest without changing predictions' ranking."""

    @abstractmethod
    def fit(self, logits: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the map from logits (N, K) to calibrated logits (N, K)."""


class Unlearner(Method, kind="unlearner"):
    """Removes the influence of part of the training data from a model."""

    @abstractmethod
    def __call__(self, model: nn.Module, forget: Any, retain: Any, *, run: Run) -> nn.Module:
        """Return a new model that has forgotten `forget` and kept `retain`; the given one is left as it was."""


class Compressor(Method, kind="compressor"):
    """Makes a model smaller or faster."""

    @abstractmethod
    def __call__(self, model: nn.Module, data: Any, *, run: Run) -> nn.Module:
        """Return the compressed copy; the given model is left as it was."""


class Scanner(Method, kind="scanner"):
    """Asks whether a model or its data were tampered with."""

    @abstractmethod
    def __call__(self, model: nn.Module, images: Any, *, run: Run) -> Any:
        """Return the verdict."""


# --- validation and cards ---------------------------------------------------------------------------------------------


def _fields(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


@functools.cache
def _model_of(cls: type[Method]) -> type[pydantic.BaseModel]:
    """A pydantic model with the dataclass's fields; nested methods may be given as specs or text."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {}
    for field in _fields(cls):
        hint = hints[field.name]
        kinds = [k for k in (hint, *typing.get_args(hint)) if isinstance(k, type) and issubclass(k, Method)]
        if kinds:
            hint = typing.Annotated[hint, pydantic.BeforeValidator(functools.partial(_nested, kinds[0]))]
        fields[field.name] = (hint, ...)
    config = pydantic.ConfigDict(arbitrary_types_allowed=True, extra="forbid", allow_inf_nan=False)
    return pydantic.create_model(cls.__name__, __config__=config, **fields)


def _nested(kind: type[Method], value: Any) -> Any:
    if isinstance(value, str | specs.Spec):
        from holdfast import catalog  # the catalogue finds methods by importing them, hence not at the top

        return catalog.build(value, kind=kind)
    return value


def _validated(cls: type[Method], values: dict[str, Any]) -> dict[str, Any]:
    try:
        model = _model_of(cls)(**values)
    except pydantic.ValidationError as error:
        raise UserError(_sentence(cls, error.errors()[0])) from None
    return {name: getattr(model, name) for name in values}


def _sentence(cls: type[Method], problem: Any) -> str:
    name = str(problem["loc"][0])
    got = problem["input"]
    field = next(f for f in cls.card().fields if f.name == name)
    message = f"{cls.id}: {name} must be {field.accepts}, got {specs.format_value(got)}."
    if name in ("eps", "step") and isinstance(got, int | float) and not isinstance(got, bool) and 1 < got <= 255:
        message += f" Did you mean {got:g}/255?"
    return message


@functools.cache
def _card(cls: type[Method]) -> Card:
    doc = inspect.cleandoc(cls.__doc__ or "")
    described = argument_docs(doc)
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = tuple(
        FieldCard(f.name, _type_name(hints[f.name]), _default(f), _accepts(hints[f.name]), described.get(f.name, ""))
        for f in _fields(cls)
    )
    parts = cls.__module__.split(".")
    family = parts[1] if parts[0] == "holdfast" and len(parts) > 2 else parts[0]
    title = cls.title if cls.title != cls.id else doc.split("\n", 1)[0].rstrip(".") or cls.id
    return Card(cls.id, cls.kind, family, title, cls.paper, doc.split("\n\n", 1)[0].replace("\n", " "), doc, fields)


def argument_docs(doc: str) -> dict[str, str]:
    """Read the ``Args:`` section of a Google-style docstring; ``a, b: text`` describes both."""
    match = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", doc, re.MULTILINE)
    described: dict[str, str] = {}
    if match:
        for entry in re.split(r"\n(?= {4}\S)", match.group(1).rstrip()):
            names, _, text = entry.strip().partition(":")
            for name in names.split(","):
                described[name.strip()] = " ".join(text.split())
    return described


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(hint)))
    args = typing.get_args(hint)
    if args and type(None) in args:
        return " | ".join(_type_name(a) for a in args)
    if hint is type(None):
        return "none"
    name = getattr(typing.get_origin(hint) or hint, "__name__", str(hint))
    return f"{name}[{', '.join('...' if a is ... else _type_name(a) for a in args)}]" if args else name


_NOUNS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}


def _accepts(hint: Any) -> str:
    """The type and bounds of a field in words, e.g. ``a number in (0, 1]``."""
    bounds: dict[str, Any] = {}
    while typing.get_origin(hint) is typing.Annotated:
        hint, *extras = typing.get_args(hint)
        for extra in extras:
            for item in [extra, *getattr(extra, "metadata", ())]:
                bounds |= {k: getattr(item, k) for k in ("gt", "ge", "lt", "le") if getattr(item, k, None) is not None}
    args = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(repr, args))
    if args and type(None) in args:
        return " or ".join([_accepts(a) for a in args if a is not type(None)] + ["none"])
    if typing.get_origin(hint) is tuple and args[1:] == (...,):
        return f"a list, each of it {_accepts(args[0])}"
    if isinstance(hint, type) and issubclass(hint, Method):
        return f"{'an' if hint.kind[0] in 'aeiou' else 'a'} {hint.kind}"
    noun = _NOUNS.get(getattr(hint, "__name__", ""), f"of type {_type_name(hint)}")
    low = f"[{_number(bounds['ge'])}" if "ge" in bounds else f"({_number(bounds['gt'])}" if "gt" in bounds else None
    high = f"{_number(bounds['le'])}]" if "le" in bounds else f"{_number(bounds['lt'])})" if "lt" in bounds else None
    if low and high:
        return f"{noun} in {low}, {high}"
    if low:
        return f"{noun} {'of at least' if 'ge' in bounds else 'above'} {_number(bounds.get('ge', bounds.get('gt')))}"
    if high:
        return f"{noun} {'of at most' if 'le' in bounds else 'below'} {_number(bounds.get('le', bounds.get('lt')))}"
    return noun


def _number(value: Any) -> str:
    fraction = Fraction(value).limit_denominator(255)
    if fraction.denominator == 255 and float(fraction) == value:
        return f"{fraction.numerator}/255"
    return f"{value:g}"


def _plain(value: Any) -> Any:
    if value is dataclasses.MISSING:
        return None
    if isinstance(value, Method | specs.Spec):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _spec_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_spec_value(v) for v in value]  # what the grammar reads back
    return value.spec if isinstance(value, Method) else value
