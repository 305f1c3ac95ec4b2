import torch
from torch import nn

from holdfast import catalog
from holdfast.evasion import SIFGSM, Admix
from holdfast.evasion.momentum import Scene
from holdfast.run import Run, content_keys

X = torch.rand(9, 3, 5, 5, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])


class Tanh(nn.Module):
    def forward(self, x):
        return (8 * x.double() - 4).tanh().mean((2, 3))


def scene(x=X, y=Y):
    return Scene(
        oracle=None, loss=None, member_loss=None, x0=x, y=y, target=y, key=content_keys(x), seed=3, company=(x, y)
    )


def partners(attack, where, draw=1):
    """The other images, read off the copies of scale 1."""
    copies = attack.copies(where, where.x0, draw)
    assert [f for f, _ in copies] == [1, 0.5, 1, 0.5]
    torch.testing.assert_close(copies[1][1], copies[0][1] / 2)
    return [(copies[i][1] - where.x0) / attack.strength for i in (0, 2)]


def test_a_little_of_images_of_other_classes_is_mixed_in():
    attack = Admix(scales=2, mixed=2, strength=0.25)
    seen = set()
    for draw in range(1, 30):
        for mixed in partners(attack, scene(), draw):
            gap = (mixed[:, None] - X[None]).abs().amax((2, 3, 4))
            nearest = gap.argmin(1)
            assert gap.amin(1).max() < 1e-5
            assert (Y[nearest] != Y).all()
            seen |= {(i, int(j)) for i, j in enumerate(nearest)}
    assert len(seen) == sum(int((y != Y).sum()) for y in Y)  # every image of another class, sooner or later


def test_with_one_class_only_any_image_will_do():
    y = torch.zeros(9, dtype=torch.int64)
    (mixed, _) = partners(Admix(scales=2, mixed=2), scene(y=y))
    assert (mixed[:, None] - X[None]).abs().amax((2, 3, 4)).amin(1).max() < 1e-5


def test_the_order_of_the_call_does_not_matter():
    y = Tanh()(X).argmax(1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    attack = Admix(eps=0.1, steps=3)
    assert torch.equal(attack(Tanh(), X[order], y[order], run=Run()), attack(Tanh(), X, y, run=Run())[order])


def test_with_strength_zero_it_is_si_fgsm():
    y = Tanh()(X).argmax(1)
    admix, si = (a(Tanh(), X, y, run=Run()) for a in (Admix(eps=0.1, strength=0), SIFGSM(eps=0.1)))
    torch.testing.assert_close(admix, si)


def test_ni_admix_ti_di_is_a_matter_of_switches():
    y = Tanh()(X).argmax(1)
    attack = catalog.build("admix(eps=0.1, steps=2, lookahead='momentum', diversity=0.5, kernel=3)")
    outcome = attack.run(Tanh(), X, y, run=Run())
    assert (outcome.gradients == 30).all()
