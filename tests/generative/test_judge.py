import numpy as np
import pytest
import torch

from holdfast.data.resize import resized
from holdfast.data.shapes32 import COLOURS, Shapes32
from holdfast.errors import UserError
from holdfast.generative import Judge, train_judge
from holdfast.models import weights_hash
from holdfast.run import Run

ATTRIBUTES = {"shape": ("disc", "star", "ring"), "colour": ("red", "blue")}


@pytest.fixture(scope="module")
def learnt():
    """A judge of some hundred pictures, and others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def pictures(split, count):
        found = Shapes32(minority=0.0).draw(split, count)
        found = found.select(torch.as_tensor(found.columns["texture"]) == 0)
        return found.but(x=resized(found.x, (16, 16)))

    train, test = pictures("train", 6000), pictures("test", 1000)
    judge = train_judge(train, {"colour": tuple(COLOURS)}, attribute="shape", width=16, epochs=8, run=Run())
    torch.set_num_threads(threads)
    return judge, test


def test_it_sees_both_attributes_of_pictures_it_was_not_shown(learnt):
    judge, test = learnt
    x, _ = next(test.batches(len(test)))
    said = judge.says(x, run=Run())
    assert (said["shape"] == test.y).float().mean() > 0.25  # in seconds; chance is 0.1
    assert (said["colour"] == test.columns["colour"]).float().mean() > 0.9


def test_each_attribute_has_its_own_logits():
    judge = Judge(ATTRIBUTES, (3, 8, 8), width=4, run=Run())
    logits = judge(torch.rand(2, 3, 8, 8))
    parts = judge.split(logits)
    assert {name: part.shape[1] for name, part in parts.items()} == {"shape": 3, "colour": 2}
    assert torch.equal(torch.cat(list(parts.values()), 1), logits)


def test_places_are_those_among_the_values():
    judge = Judge(ATTRIBUTES, (3, 8, 8), width=4, run=Run())
    assert judge.place("shape", "ring") == 2
    assert judge.place("colour", "blue") == 1
    with pytest.raises(UserError, match="attribute 'texture' is unknown"):
        judge.place("texture", "plain")
    with pytest.raises(UserError, match=r"shape 'stair' is unknown. Did you mean 'star'"):
        judge.place("shape", "stair")


def test_the_same_seed_gives_the_same_judge(captioned):
    images = captioned.with_column("colour", torch.as_tensor(np.arange(24) % 2))
    one, same, other = (
        weights_hash(train_judge(images, {"colour": ("red", "blue")}, width=4, epochs=1, run=Run(seed=s)))
        for s in (0, 0, 1)
    )
    assert one == same != other
