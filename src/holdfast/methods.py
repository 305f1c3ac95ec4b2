"""The kinds of method.

A method is a published technique: a frozen dataclass whose fields are its hyperparameters, with the paper's values as
defaults, and whose ``__call__`` does the work. It inherits the kind that fits and gives its id and paper in the class
line; thereby it is in the catalogue, on the command line and in the documentation:

    @dataclass(frozen=True, kw_only=True)
    class PGD(Attack, id="pgd", paper=Paper(arxiv="1706.06083", year=2018)):
        \"\"\"Projected gradient descent.\"\"\"

        eps: Annotated[float, Field(gt=0, le=1)] = 8 / 255
"""

from __future__ import annotations

import functools
import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor, nn

from holdfast import specs
from holdfast.cards import Card, FieldCard, Paper, card_of, default_of, hyperparameters
from holdfast.errors import UserError, did_you_mean
from holdfast.run import Run

__all__ = [
    "Analysis",
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
    "Generator",
    "Method",
    "Objective",
    "OptimizerWrapper",
    "Paper",
    "Report",
    "Sampler",
    "Scanner",
    "Surgery",
    "Transform",
    "Unlearner",
]


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
        for name, value in _validated(
            type(self), {f.name: getattr(self, f.name) for f in hyperparameters(type(self))}
        ).items():
            object.__setattr__(self, name, value)

    @property
    def spec(self) -> specs.Spec:
        """The spec that builds this method again: its id and the fields that differ from their defaults."""
        changed = {
            f.name: _spec_value(getattr(self, f.name))
            for f in hyperparameters(type(self))
            if getattr(self, f.name) != default_of(f)
        }
        return specs.Spec(self.id, changed)

    def __str__(self) -> str:
        return str(self.spec)

    @classmethod
    def card(cls) -> Card:
        """The method's card."""
        return card_of(cls)

    @classmethod
    def build(cls, fields: Mapping[str, Any]) -> typing.Self:
        """Make the method from named values.

        Raises:
            UserError: a name is unknown, or a value is not accepted.
        """
        known = [f.name for f in hyperparameters(cls)]
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
    """A training loss. What it needs beside a batch it says, and finds in the step that `fit` hands it.

    `columns` of the training set come in ``step.columns``. With `views` above 1, every image comes as often, changed by
    its own draw of the training's transforms: first as the batch, then in ``step.views``. `companions` are further sets
    of images, outliers or images to be forgotten, that the user gives by these names; a batch of each comes in
    ``step.companions``, changed by the transforms as well but for those in `unchanged`. What it must learn beside the
    model is in `heads`. Where `logits` is false, the model is no classifier: `fit` does not ask it for logits, counts
    no right predictions, and validates by the objective's own loss.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    views: ClassVar[int] = 1
    companions: ClassVar[tuple[str, ...]] = ()
    unchanged: ClassVar[tuple[str, ...]] = ()
    logits: ClassVar[bool] = True

    def companion_size(self, name: str, count: int) -> int:
        """How many images of a companion come with `count` training images; as many, unless the objective says so."""
        return count

    def heads(self, model: nn.Module, x: Tensor) -> Mapping[str, nn.Module]:
        """Modules that learn with the model and are dropped after the training; they come in ``step.heads``.

        Args:
            model: before its first step, on its device.
            x: two training images there.
        """
        return {}

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

    def on_gradient(self, state: Any) -> None:
        """After every gradient, before the optimizer uses it; a wrapper may ask for several in a step."""

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


class Generator(Method, kind="generator"):
    """Learns to make images like those it is shown."""

    @abstractmethod
    def __call__(self, images: Any, *, run: Run) -> nn.Module:
        """Train on `holdfast.data.Images`; returns the model that makes such images."""


class Sampler(Method, kind="sampler"):
    """Makes images of noise, with a model that takes it away bit by bit."""

    @abstractmethod
    def path(self, denoise: Any, x: Tensor, *, run: Run) -> Iterator[tuple[int, Tensor]]:
        """Go from noise `x` (N, C, H, W), at time T, to images, at time 0.

        Args:
            denoise: a `holdfast.generative.Denoiser`: gives image and noise of ``(x_t, t)``, and knows the schedule.
            x: standard normal noise.
            run: for the random numbers.

        Yields:
            A time and ``x_t``, after each step.
        """

    def __call__(self, denoise: Any, x: Tensor, *, run: Run) -> Tensor:
        """The end of the path: images in [-1, 1], or latents."""
        for _, x_t in self.path(denoise, x, run=run):
            x = x_t
        return x


class Report(typing.Protocol):
    """What an analysis found."""

    @property
    def sentence(self) -> str:
        """The finding in words."""

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""


class Analysis(Method, kind="analysis"):
    """Answers a question about models and data with a report."""

    #: What it works on besides models and labelled images, where that is needed: the command line has no more to give.
    needs: ClassVar[str] = ""

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        """Analyse the models and images given, as each analysis says for itself, with the `Run` in ``run``."""

    def of_models(self, models: Mapping[str, nn.Module], images: Any, *, run: Run) -> Report:
        """Analyse models, by name, on one set of labelled images, as ``holdfast analyse`` does.

        Raises:
            UserError: this analysis needs more than that.
        """
        why = f": it needs {self.needs}" if self.needs else ""
        raise UserError(f"{self.id} cannot be run from the command line{why}. Its page says how to call it in Python.")


# --- validation ---------------------------------------------------------------------------------------------


@functools.cache
def _model_of(cls: type[Method]) -> type[pydantic.BaseModel]:
    """A pydantic model with the dataclass's fields; nested methods may be given as specs or text."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, Any] = {}
    for field in hyperparameters(cls):
        hint = hints[field.name]
        kinds = [k for k in (hint, *typing.get_args(hint)) if isinstance(k, type) and issubclass(k, Method)]
        if kinds:
            hint = typing.Annotated[hint, pydantic.BeforeValidator(functools.partial(_nested, kinds[0]))]
        elif str in (hint, *typing.get_args(hint)):
            hint = typing.Annotated[hint, pydantic.BeforeValidator(_worded)]
        fields[field.name] = (hint, ...)
    config = pydantic.ConfigDict(arbitrary_types_allowed=True, extra="forbid", allow_inf_nan=False)
    return pydantic.create_model(cls.__name__, __config__=config, **fields)


def _nested(kind: type[Method], value: Any) -> Any:
    if isinstance(value, str | specs.Spec):
        from holdfast import catalog  # the catalogue finds methods by importing them, hence not at the top

        return catalog.build(value, kind=kind)
    return value


def _worded(value: Any) -> Any:
    """Where text is wanted, a spec without quotation marks is taken at its word."""
    if isinstance(value, list):
        return [_worded(part) for part in value]
    return str(value) if isinstance(value, specs.Spec) else value


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


def _spec_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_spec_value(v) for v in value]  # what the grammar reads back
    if isinstance(value, Method):
        return value.spec if value.spec.fields else value.id  # as it is read back: a bare word is text
    return value
