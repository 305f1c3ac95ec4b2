"""Laws that every method in the catalogue keeps, whatever its kind."""

import dataclasses
import importlib
import inspect
import json
import math
import typing
from pathlib import Path

import pytest

from holdfast import catalog, specs
from holdfast.errors import UserError
from holdfast.methods import Method

catalog.load_all()
METHODS = sorted(
    (method for method in Method.registry.values() if method.__module__.startswith("holdfast.")), key=lambda m: m.id
)
FIELDS = [pytest.param(m, f, id=f"{m.id}.{f.name}") for m in METHODS for f in dataclasses.fields(m)]

# Tools rather than techniques: nobody published them. Everything else cites its paper.
WITHOUT_A_PAPER = {"constant", "multi-step", "subset", "relabel", "label-noise", "long-tail", "track"}
WITHOUT_A_PAPER |= {"random-noise", "random-sign", "random-pairs"}

# What cannot be left out, because the method cannot guess it.
NEEDED = {"subset": {"fraction": 0.5}}

# Of these every field must take one that is not its default.
TRIED = [
    *(1, 2, 3, 7, 50, 0, 0.3, 0.05, 0.9, 1.5, 12.5, True, False, None, -30.0),
    *([0.25, 0.5], [1, 2, 3]),
    *("http://localhost:5000", ["cat->animal"], ["pgd"], ["flip"], ["jigsaw"]),
    *("sgd(lr=0.5)", "cosine(warmup=0.25)", "crop(padding=2)", "flip(p=0.25)", "pgd(steps=3)", "energy"),
    *("global-magnitude(sparsity=0.5)", "ft(epochs=3)"),
]
NONSENSE = [math.nan, math.inf, -math.inf, object(), {"a": 1}, "no such thing", [[["x"]]]]


@pytest.fixture(params=METHODS, ids=lambda method: method.id)
def method(request):
    return request.param


def example(method):
    """The method with its defaults."""
    return method(**NEEDED.get(method.id, {}))


def accepted(method, field):
    """The method with one field changed, in every way of `TRIED` (and of a field's choices) that it takes."""
    hint = typing.get_type_hints(method)[field.name]
    choices = [
        c for h in (hint, *typing.get_args(hint)) if typing.get_origin(h) is typing.Literal for c in typing.get_args(h)
    ]
    for value in [*TRIED, *choices]:
        for others in ({}, NEEDED.get(method.id, {})):
            try:
                built = method(**{**others, field.name: value})
            except UserError:
                continue
            if getattr(built, field.name) != field.default:
                yield built


def test_the_catalogue_holds_the_methods_of_the_foundation():
    assert {m.id for m in METHODS} >= {
        *("fgsm", "pgd", "square", "pgd-at", "sam"),
        *("msp", "max-logit", "energy", "knn"),
        *("temperature-scaling", "confidence-mia", "loss-mia"),
        *("retrain", "ft", "global-magnitude"),
    }


def test_a_method_stands_alone_in_the_file_of_its_name(method):
    module = importlib.import_module(method.__module__)
    path = Path(module.__file__)
    assert len(path.read_text().splitlines()) <= 350
    same_file = [m for m in METHODS if m.__module__ == method.__module__]
    if method.kind in ("optimizer", "schedule"):  # parts of `fit`, a few lines each, kept together
        return
    assert path.stem == method.id.replace("-", "_")
    assert len({m.id for m in same_file}) == 1


def test_the_card_is_complete(method):
    card = method.card()
    assert card.id == method.id
    assert card.kind == method.kind != "method"
    assert card.family in catalog.FAMILIES
    assert card.title.strip()
    assert card.title[0].isupper()
    assert len(card.summary) >= 15
    assert card.summary.endswith((".", ":"))
    assert inspect.getdoc(importlib.import_module(method.__module__))
    assert not {f.name for f in card.fields if not f.doc}, "fields without a word in the docstring's Args"


def test_the_paper_can_be_found(method):
    paper = method.paper
    if paper is None:
        assert method.id in WITHOUT_A_PAPER
        return
    assert paper.arxiv or paper.doi or paper.title
    assert 1847 <= paper.year <= 2026  # Cauchy's gradient descent
    if paper.arxiv:
        year = 2000 + int(paper.arxiv[:2])
        assert year <= paper.year + 1
        assert paper.url == f"https://arxiv.org/abs/{paper.arxiv}"


def test_the_card_is_plain_json(method):
    value = json.loads(json.dumps(method.card().to_json(), allow_nan=False))
    assert value["id"] == method.id
    assert [f["name"] for f in value["fields"]] == [f.name for f in dataclasses.fields(method)]


def test_defaults_stand_and_are_valid(method):
    built = catalog.build(str(example(method)))
    assert type(built) is method
    assert built == example(method)
    assert hash(built) == hash(example(method))
    for field in dataclasses.fields(method):
        if field.name in NEEDED.get(method.id, {}):
            continue
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        value = getattr(built, field.name)
        assert value == default
        assert type(value) is type(default), "a default is written in the field's own type"


def test_a_method_is_frozen_and_takes_names_only(method):
    built = example(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.anything = 1
    for field in dataclasses.fields(method):
        assert field.kw_only


def test_the_spec_of_the_defaults_is_the_bare_id(method):
    needed = ", ".join(f"{name}={value}" for name, value in NEEDED.get(method.id, {}).items())
    assert str(example(method)) == (f"{method.id}({needed})" if needed else method.id)


@pytest.mark.parametrize(("method", "field"), FIELDS)
def test_a_changed_field_survives_its_spec(method, field):
    changed = list(accepted(method, field))
    assert changed, "nothing that is tried here fits this field: try more"
    for built in changed:
        text = str(built)
        assert f"{field.name}=" in text
        assert specs.parse(text) == built.spec
        assert catalog.build(text) == built


def test_a_misspelt_hyperparameter_is_recognised(method):
    for field in dataclasses.fields(method):
        wrong = f"{field.name}x"
        with pytest.raises(UserError) as caught:
            catalog.build(f"{method.id}({wrong}=1)")
        assert str(caught.value).startswith(f"{method.id}: {wrong!r} is not a hyperparameter. Did you mean")
        assert "\n" not in str(caught.value)


def test_a_strange_hyperparameter_gets_the_list(method):
    with pytest.raises(UserError, match="'zzzzzzzz' is not a hyperparameter") as caught:
        catalog.build(f"{method.id}(zzzzzzzz=1)")
    for field in dataclasses.fields(method):
        assert field.name in str(caught.value)


@pytest.mark.parametrize(("method", "field"), FIELDS)
def test_nonsense_is_refused_in_one_sentence(method, field):
    hint = typing.get_type_hints(method)[field.name]
    takes_text = str in (hint, *typing.get_args(hint))
    for value in NONSENSE:
        if isinstance(value, str) and takes_text:
            continue
        with pytest.raises(UserError) as caught:
            method(**{field.name: value})
        message = str(caught.value)
        assert "\n" not in message
        if not isinstance(value, str):  # text in the place of a method is read as one, and fails as such
            assert message.startswith(f"{method.id}: {field.name} must be ")
