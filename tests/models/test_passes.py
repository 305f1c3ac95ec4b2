"""How many images a pass takes."""

import pytest
from torch import nn

from holdfast.models import images_per_pass
from holdfast.run import Run


class Answers(nn.Module):
    gradients = False


@pytest.mark.parametrize(
    ("shape", "asked", "taken"),
    [((1, 8, 8), 512, 512), ((3, 32, 32), 512, 128), ((3, 32, 32), 50, 50), ((3, 224, 224), 512, 8)],
)
def test_a_cpu_takes_fewer_of_larger_images_and_never_more_than_asked(shape, asked, taken):
    assert images_per_pass(nn.Linear(1, 1), shape, Run(device="cpu", batch_size=asked)) == taken


def test_a_model_that_only_answers_is_asked_as_many_as_were_said():
    assert images_per_pass(Answers(), (3, 32, 32), Run(device="cpu", batch_size=512)) == 512
