import dataclasses

import numpy as np
import pytest
import torch
from patterns_task import TINY, Linear, split

from holdfast import Run, UserError
from holdfast.audit.identity import data_fingerprint, model_fingerprint
from holdfast.audit.policy import load_policy
from holdfast.audit.store import Store
from holdfast.audit.subject import Subject
from holdfast.data import Data, Images


def subject(data, **profile):
    run = Run(device="cpu", batch_size=64)
    chosen = dataclasses.replace(TINY, **profile)
    return Subject(Linear(), data, profile=chosen, policy=load_policy(), run=run, store=Store(None, {}))


def test_the_first_images_are_taken_where_the_split_is_mixed(data):
    found = subject(data, test_images=30)
    assert torch.equal(found.test.x, data.test.x[:30])
    assert found.indices("test").tolist() == list(range(30))


def test_a_split_sorted_by_class_is_not_represented_by_its_first_class(data):
    order = data.test.y.argsort(stable=True)
    ordered = data.but(test=data.test.select(order))
    found = subject(ordered, test_images=40)
    counts = torch.bincount(found.test.y, minlength=4)
    assert counts.min() >= 4
    indices = found.indices("test")
    assert torch.equal(found.test.x, ordered.test.x[torch.from_numpy(indices)])
    assert subject(ordered, test_images=40).indices("test").tolist() == indices.tolist()
    # Smaller subsets begin larger ones, so that checks look at the same images.
    assert subject(ordered, test_images=20).indices("test").tolist() == indices[:20].tolist()


@pytest.mark.parametrize("blocks", [2, 8])
def test_partly_sorted_splits_are_noticed(blocks):
    whole = split("t", 2000, seed=4)
    parts = [part[whole.y[part].argsort()] for part in torch.arange(2000).chunk(blocks)]
    assert subject(Data(name="d", test=whole)).order("test") is None
    assert subject(Data(name="d", test=whole.select(torch.cat(parts)))).order("test") is not None


def test_shuffled_splits_of_many_classes_are_left_in_order():
    rng = torch.Generator().manual_seed(0)
    for seed in range(20):
        y = torch.randint(0, 100, (500,), generator=rng)
        images = Images(x=torch.zeros(500, 1, 8, 8), y=y, classes=tuple(map(str, range(100))))
        assert subject(Data(name=str(seed), test=images)).order("test") is None


def test_a_missing_split_and_a_misspelt_one_are_named(data):
    with pytest.raises(UserError, match="has no train split"):
        subject(data.but(train=None)).images("train")
    with pytest.raises(UserError, match="split 'tset' is unknown"):
        subject(data).images("tset")
    with pytest.raises(UserError, match="set of unknown images 'mars' is unknown"):
        subject(data).images("ood/mars")


def test_halves_are_disjoint_and_stratified(data):
    fit, judge, source = subject(data.but(val=None)).held_out()
    assert len(fit) + len(judge) == len(data.test)
    for label in range(4):
        assert abs((fit.y == label).sum() - (judge.y == label).sum()) <= 1
    both = np.concatenate([fit.logits, judge.logits])
    assert len(np.unique(both, axis=0)) == len(data.test)
    assert "half" in source


def test_an_attack_in_parts_is_the_attack_in_one(data, monkeypatch):
    from holdfast.audit import subject as module
    from holdfast.evasion import PGD

    attack, which = PGD(eps=0.05, steps=3), np.arange(40)
    whole = subject(data).attacked(attack, which, examples=3)
    monkeypatch.setattr(module, "PART", 16)
    parts = subject(data).attacked(attack, which, examples=3)
    assert parts.success.tolist() == whole.success.tolist()
    assert parts.queries.tolist() == whole.queries.tolist()
    assert np.allclose(parts.distance, whole.distance)
    assert set(whole.example_of) <= set(parts.example_of)
    assert len(subject(data).attacked(attack, which[:0]).success) == 0


def test_fingerprints_tell_models_and_data_apart(data):
    assert model_fingerprint(Linear()) == model_fingerprint(Linear())
    assert model_fingerprint(Linear()) != model_fingerprint(Linear(scale=1.0))
    assert model_fingerprint(torch.nn.Sequential(Linear())) != model_fingerprint(Linear())
    base = data_fingerprint(data)
    assert data_fingerprint(data.but(name="another name")) == base
    assert data_fingerprint(data.but(val=None)) != base
    grouped = data.but(test=data.test.with_column("group", np.zeros(len(data.test))))
    assert data_fingerprint(grouped) != base
    moved = data.but(test=data.test.but(y=(data.test.y + 1) % 4))
    assert data_fingerprint(moved) != base
