import torch
from torch import nn

from holdfast.run import Run
from holdfast.training import Step, statistics_kept
from holdfast.training.average import averaged_copy, update_average


def test_statistics_are_kept_while_the_batch_is_normalised_by_its_own():
    norm = nn.BatchNorm1d(3)
    x = torch.randn(8, 3) * 5 + 2
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with statistics_kept(norm):
        inside = norm(x)
    assert all(torch.equal(norm.state_dict()[name], value) for name, value in before.items())
    torch.testing.assert_close(inside, norm(x))
    assert norm.num_batches_tracked == 1


def test_statistics_kept_leaves_evaluation_and_stateless_layers_as_they_are():
    norm, stateless = nn.BatchNorm1d(3).eval(), nn.BatchNorm1d(3, track_running_stats=False)
    x = torch.randn(8, 3) * 5
    expected = norm(x)
    with statistics_kept(nn.Sequential(norm, stateless)):
        assert torch.equal(norm(x), expected)
    assert norm.track_running_stats
    assert not stateless.track_running_stats


def test_random_numbers_depend_on_the_place_in_the_training_alone():
    def draw(**place):
        return torch.rand(3, generator=Step(run=Run(seed=5), **place).rng("noise")).tolist()

    assert draw(epoch=1, index=7) == draw(epoch=1, index=7)
    assert len({tuple(draw(epoch=e, index=i, part=p)) for e in (0, 1) for i in (2, 3) for p in (0, 1)}) == 8


def test_the_average_takes_over_statistics_and_copies_counts():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = averaged_copy(model)
    model(torch.randn(16, 2))
    with torch.no_grad():
        model[0].weight.add_(1)
    update_average(average, model, 0.75, step=1000)
    start = averaged_copy(nn.BatchNorm1d(2))
    torch.testing.assert_close(average[1].running_mean, 0.25 * model[1].running_mean)
    torch.testing.assert_close(average[1].running_var, 0.75 * start.running_var + 0.25 * model[1].running_var)
    torch.testing.assert_close(average[0].weight, model[0].weight - 0.75)
    assert average[1].num_batches_tracked == 1
    assert not average.training
