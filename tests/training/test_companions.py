"""Objectives may ask for images beside the training set, and for several views of it."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.methods import Objective
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.training import Recipe, fit, train
from holdfast.training.companions import Stream, check_companions

SEEN = []


@dataclass(frozen=True, kw_only=True)
class Accompanied(Objective):
    """Pulls two companions' logits to zero and two views of an image together."""

    companions: ClassVar[tuple[str, ...]] = ("few", "many")
    views: ClassVar[int] = 2

    def companion_size(self, name, count):
        return count if name == "few" else 2 * count

    def __call__(self, model, x, y, step):
        few, many = step.companions["few"], step.companions["many"]
        (view,) = step.views
        SEEN.append((x.clone(), view.clone(), few, many))
        logits = model(torch.cat([x, view, few.x, many.x])).float()
        first, second = logits[: len(x)], logits[len(x) : 2 * len(x)]
        return (
            F.cross_entropy(step.seen(first), y)
            + (first - second).square().mean()
            + logits[2 * len(x) :].square().mean()
        )


@pytest.fixture
def few(noise):
    """Fewer than a batch, each known by its grey."""
    x = (torch.arange(7) / 10).view(7, 1, 1, 1).expand(7, 1, 8, 8)
    return Images(x=x.contiguous(), y=torch.arange(7), classes=tuple("1234567"), name="few")


@pytest.fixture
def many(noise):
    return noise.but(x=noise.x.flip(2).repeat(3, 1, 1, 1), y=noise.y.repeat(3), name="many")


TRAINING = {
    "epochs": 3,
    "batch_size": 10,
    "objective": Accompanied(),
    "optimizer": "sgd(lr=0.05)",
    "transforms": ["crop(padding=1)"],
    "save_minutes": 0.0,
}


def test_every_companion_comes_whole_before_an_image_comes_again(noise, few, many, linear):
    SEEN.clear()
    fit(
        linear(),
        noise,
        **TRAINING | {"transforms": []},
        companions={"few": few, "many": many},
        run=Run(precision="fp32"),
    )
    labels = torch.cat([f.y[:10] for _, _, f, _ in SEEN if len(f.y) == 10])
    for start in range(0, 7 * 4, 7):
        assert sorted(labels[start : start + 7].tolist()) == list(range(7))
    assert [len(m.y) for *_, m in SEEN[:5]] == [20, 20, 20, 20, 16]
    assert all(torch.equal(f.x, few.x[f.y]) for _, _, f, _ in SEEN)
    assert len(SEEN) == 15  # a small companion does not shorten the epoch


def test_views_are_other_draws_of_the_transforms(noise, few, many, linear):
    SEEN.clear()
    settings = TRAINING | {"epochs": 1, "transforms": ["flip(p=0.5)"]}
    fit(linear(), noise, **settings, companions={"few": few, "many": many}, run=Run())
    x, view = torch.cat([s[0] for s in SEEN]), torch.cat([s[1] for s in SEEN])
    same, mirrored = ((x == other).flatten(1).all(1) for other in (view, view.flip(3)))
    assert (same ^ mirrored).all()
    assert 10 < same.sum() < 38
    rows = torch.cat([torch.cat([x, x.flip(3)]).flatten(1)])
    assert all((rows == image).all(1).any() for image in noise.x.float().div(255).flatten(1))


def test_an_objective_without_needs_is_trained_as_before(noise, linear):
    """The streams of other draws are untouched: the weights are those of any earlier version."""

    @dataclass(frozen=True)
    class Plain(Objective):
        companions: ClassVar[tuple[str, ...]] = ("few",)

        def __call__(self, model, x, y, step):
            return F.cross_entropy(step.seen(model(x)), y)

    settings = {"epochs": 1, "batch_size": 12, "transforms": ["crop(padding=1)"], "run": Run()}
    alone = fit(linear(), noise, **settings).model
    beside = fit(linear(), noise, **settings, objective=Plain(), companions={"few": noise}).model
    assert weights_hash(alone) == weights_hash(beside)


@pytest.mark.parametrize("stop", [2, 7, 12])
def test_a_stopped_training_sees_the_same_companions_when_it_goes_on(
    noise, few, many, linear, tmp_path, monkeypatch, stop
):
    given = {"companions": {"few": few, "many": many}}
    whole = fit(linear(), noise, **TRAINING, **given, run=Run(out=tmp_path / "whole"))
    real, calls = Accompanied.__call__, [0]

    def interrupted(self, *args):
        calls[0] += 1
        if calls[0] == stop:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Accompanied, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(linear(), noise, **TRAINING, **given, run=Run(out=tmp_path / "stopped"))
    monkeypatch.setattr(Accompanied, "__call__", real)
    resumed = fit(linear(), noise, **TRAINING, **given, run=Run(out=tmp_path / "stopped"))
    assert weights_hash(resumed.model) == weights_hash(whole.model)
    assert resumed.history == whole.history


def test_other_companions_make_it_another_training(noise, few, many, linear, tmp_path):
    fit(linear(), noise, **TRAINING, companions={"few": few, "many": many}, run=Run(out=tmp_path))
    with pytest.raises(UserError, match="companion few few"):
        fit(
            linear(),
            noise,
            **TRAINING,
            companions={"few": few.but(x=few.x.flip(0)), "many": many},
            run=Run(out=tmp_path),
        )


def test_what_does_not_fit_is_refused_in_one_sentence(noise, few):
    needs = Accompanied()
    with pytest.raises(UserError, match="it needs images named 'many' beside the training set"):
        check_companions(needs, {"few": few}, noise)
    with pytest.raises(UserError, match="'more' is not a companion of this objective; it takes few, many"):
        check_companions(needs, {"few": few, "many": few, "more": few}, noise)
    with pytest.raises(UserError, match="few: there are no images to accompany the training as 'few'"):
        check_companions(needs, {"few": few.select([]), "many": few}, noise)
    wide = few.but(x=few.x.expand(-1, 3, -1, -1))
    with pytest.raises(UserError, match="few: images of shape 3x8x8 cannot accompany those of 1x8x8"):
        check_companions(needs, {"few": wide, "many": few}, noise)


def test_processes_share_what_one_with_the_larger_batch_would_see(few):
    one = Stream(name="c", images=few, size=6, run=Run())
    parts = [Stream(name="c", images=few, size=3, run=Run()) for _ in range(2)]
    for step in range(5):
        shares = [part.indices(2 * step + rank, 3) for rank, part in enumerate(parts)]
        assert torch.equal(torch.cat(shares), one.indices(step, 6))
    assert one.indices(3, 2).tolist() == one.indices(3, 6)[:2].tolist()


def test_two_processes_agree(noise, few, many, linear, tmp_path):
    """Objectives with companions and heads of their own are trained alike by two processes."""
    script = tmp_path / "two.py"
    script.write_text(TWO)
    torch.save({"noise": noise.x, "y": noise.y, "model": linear()}, tmp_path / "given.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    subprocess.run(
        [sys.executable, script, port, tmp_path], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=120
    )
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert first.split()[0] != weights_hash(linear())


TWO = """
import os, sys
import torch
torch.set_num_threads(1)
import torch._dynamo, lightning_fabric
import holdfast.ood.pascl
from holdfast.data import Images
from holdfast.models import weights_hash
from holdfast.run import Run
from holdfast.training import fit

children = []
for rank in range(2):
    child = os.fork()
    if child:
        children.append(child)
        continue
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
    given = torch.load(sys.argv[2] + "/given.pt", weights_only=False)
    images = Images(x=given["noise"], y=given["y"], classes=tuple("abcd"), name="noise")
    outliers = images.but(x=images.x.flip(2), name="outliers")
    model = given["model"]
    fit(model, images, epochs=2, batch_size=4, objective="pascl", companions={"outliers": outliers}, run=Run())
    with open(f"{sys.argv[2]}/{rank}.txt", "w") as file:
        file.write(weights_hash(model) + " " + " ".join(dict(model.named_parameters())))
    os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_a_recipe_names_companions_by_a_data_set_or_by_a_transform_of_the_training_set(tmp_path):
    recipe = Recipe(
        model="mlp(hidden=[16])",
        data="digits",
        epochs=1,
        objective="outlier-exposure",
        companions={"outliers": "synthetic-outliers(kinds=[jigsaw])"},
        precision="fp32",
    )
    assert train(recipe, Run(out=tmp_path / "made"))["recipe"]["companions"] == recipe.companions
    other = recipe.model_copy(update={"companions": {"outliers": "shapes32(n=60)"}})
    train(other, Run(out=tmp_path / "loaded"))
    with pytest.raises(UserError, match="it needs images named 'outliers'"):
        train(recipe.model_copy(update={"companions": {}}), Run(out=tmp_path / "none"))


def test_a_mistake_in_a_companion_is_told_with_its_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = "model: resnet20\ndata: digits\nepochs: 1\ncompanions: {outliers: synthetic-outliers(tiles=1)}\n"
    path.write_text(text)
    with pytest.raises(UserError, match=r"recipe.yaml:4: companions: outliers: synthetic-outliers: tiles must be"):
        Recipe.load(path)
    path.write_text(text.replace("synthetic-outliers(tiles=1)", "3"))
    with pytest.raises(UserError, match=r"recipe.yaml:4: companions"):
        Recipe.load(path)
