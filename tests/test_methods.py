"""The grammar of methods, shown on methods made here."""

import dataclasses
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import Field

from holdfast import catalog
from holdfast.errors import UserError
from holdfast.methods import Attack, Method, Objective, Paper


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(Method, "registry", dict(Method.registry))


@pytest.fixture
def nudge():
    @dataclass(frozen=True, kw_only=True)
    class Nudge(Attack, id="test-nudge", paper=Paper(title="Nudging", arxiv="1234.56789", year=2020)):
        """Moves every pixel a little.

        And says so at length.

        Args:
            eps: how far, in pixel units.
            steps, restarts: how often.
        """

        eps: Annotated[float, Field(gt=0, le=1)] = 8 / 255
        steps: Annotated[int, Field(ge=1)] = 10
        restarts: int | None = None
        norm: Literal["linf", "l2"] = "linf"

        def __call__(self, model, x, y, *, run):
            return x

    return Nudge


def test_a_method_is_catalogued_by_its_class_line(nudge):
    assert catalog.find("test-nudge") is nudge
    card = catalog.describe("test-nudge")
    assert card.kind == "attack"
    assert (card.title, card.summary) == ("Moves every pixel a little", "Moves every pixel a little.")
    assert card.paper.url == "https://arxiv.org/abs/1234.56789"
    assert [f.name for f in card.fields] == ["eps", "steps", "restarts", "norm"]
    eps, steps, restarts, norm = card.fields
    assert eps.doc == "how far, in pixel units."
    assert steps.doc == restarts.doc == "how often."
    assert eps.accepts == "a number in (0, 1]"
    assert restarts.accepts == "a whole number or none"
    assert norm.accepts == "one of 'linf', 'l2'"
    assert card.to_json()["paper"]["url"] == card.paper.url


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("test-nudge(eps=8)", r"^test-nudge: eps must be a number in \(0, 1\], got 8. Did you mean 8/255\?$"),
        ("test-nudge(eps=0)", r"^test-nudge: eps must be a number in \(0, 1\], got 0.$"),
        ("test-nudge(steps=2.5)", "steps must be a whole number of at least 1, got 2.5"),
        ("test-nudge(norm=l1)", "norm must be one of 'linf', 'l2', got 'l1'"),
        ("test-nudge(epz=1)", "'epz' is not a hyperparameter. Did you mean 'eps'?"),
        ("test-nudge(zzz=1)", "It takes: eps, steps, restarts, norm."),
        ("test-nugde", "attack 'test-nugde' is unknown. Did you mean 'test-nudge'?"),
    ],
)
def test_mistakes_get_one_sentence(nudge, text, sentence):
    with pytest.raises(UserError, match=sentence.replace("?$", "?$")) as caught:
        catalog.build(text, kind=Attack)
    assert "\n" not in str(caught.value)


def test_nan_is_no_number(nudge):
    with pytest.raises(UserError, match="eps must be"):
        nudge(eps=float("nan"))


def test_the_spec_of_a_method_builds_it_again(nudge):
    method = nudge(eps=4 / 255, restarts=3)
    assert str(method) == "test-nudge(eps=4/255, restarts=3)"
    assert catalog.build(str(method)) == method
    assert str(nudge()) == "test-nudge"


def test_methods_nest(nudge):
    @dataclass(frozen=True, kw_only=True)
    class Train(Objective, id="test-train"):
        """Trains on nudged images."""

        attack: Attack = dataclasses.field(default_factory=nudge)

        def __call__(self, model, x, y, step):
            return x.sum()

    built = catalog.build("test-train(attack=test-nudge(steps=3))")
    assert built.attack == nudge(steps=3)
    assert catalog.build(str(built)) == built
    assert catalog.build("test-train(attack=test-nudge)") == Train()
    with pytest.raises(UserError, match="is of kind objective, but a method of kind attack is needed"):
        catalog.build("test-train(attack=test-train)")


def test_an_id_is_taken_once(nudge):
    with pytest.raises(TypeError, match="is taken"):

        class Other(Attack, id="test-nudge"):
            pass

    with pytest.raises(TypeError, match="kebab-case"):

        class Bad(Attack, id="Bad_Id"):
            pass


def test_methods_are_frozen(nudge):
    with pytest.raises(dataclasses.FrozenInstanceError):
        nudge().eps = 0.5


def test_a_package_joins_through_its_entry_point(tmp_path):
    (tmp_path / "outsider.py").write_text(
        textwrap.dedent(
            '''
            from dataclasses import dataclass
            from holdfast.methods import Attack

            @dataclass(frozen=True, kw_only=True)
            class Outsider(Attack, id="outsider"):
                """Comes from elsewhere."""

                strength: float = 1.0

                def __call__(self, model, x, y, *, run):
                    return x
            '''
        )
    )
    info = tmp_path / "outsider-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[holdfast.methods]\noutsider = outsider\nbroken = no_such_module\n")
    code = "from holdfast import catalog as c; print(c.build('outsider(strength=2)'), c.describe('outsider').family)"
    # No command that only looks methods up should wait for packages that only some methods compute with.
    slow = {"scipy.stats", "scipy.special", "scipy.optimize", "sklearn", "matplotlib"}
    code += f"; import sys; print({slow} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["outsider(strength=2.0) outsider", "set()"]
    assert "the plugin 'broken' (no_such_module) cannot be loaded" in done.stderr
