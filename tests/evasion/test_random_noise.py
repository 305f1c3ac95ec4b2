import torch

from holdfast.evasion import RandomNoise
from holdfast.models import build_model
from holdfast.run import Run


def setting():
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=Run(seed=3)).eval()
    x = torch.rand(20, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def test_corners_lie_on_the_surface_in_both_norms():
    model, x, y = setting()
    x = 0.2 + 0.6 * x  # away from the edges of the box
    with torch.no_grad():
        y = model(x).argmax(1)
    linf = RandomNoise(eps=0.01, points="corners", queries=3).run(model, x, y, run=Run()).x_adv
    assert torch.allclose((linf - x).abs(), torch.tensor(0.01), atol=1e-6)
    l2 = RandomNoise(eps=0.1, norm="l2", points="corners", queries=3).run(model, x, y, run=Run())
    assert torch.allclose(l2.distance, torch.tensor(0.1), atol=1e-5)
    assert (l2.x_adv - x).abs().std() < 1e-6


def test_more_points_find_more_and_the_nearest_is_returned():
    model, x, y = setting()
    outcomes = [RandomNoise(eps=0.06, points="corners", queries=q).run(model, x, y, run=Run()) for q in (1, 10, 60)]
    found = [int(outcome.success.sum()) for outcome in outcomes]
    assert found == sorted(found)
    assert found[0] < found[2] < len(x)
    margins = []
    for outcome in outcomes:
        truth = outcome.logits.gather(1, y[:, None]).squeeze(1)
        margins.append(outcome.logits.scatter(1, y[:, None], -9e9).amax(1) - truth)
    stands = ~outcomes[2].success
    assert (margins[2][stands] >= margins[0][stands] - 1e-6).all()
