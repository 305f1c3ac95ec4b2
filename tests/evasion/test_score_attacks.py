"""What all attacks on scores keep to: the budget, and honest books."""

import pytest
import torch
from torch import nn

from holdfast import catalog
from holdfast.models import build_model
from holdfast.run import Run


class Watched(nn.Module):
    """Keeps what it is shown and what it says; copies share the record."""

    def __init__(self, model, record):
        super().__init__()
        self.model, self.record = model, record

    def __deepcopy__(self, memo):
        return Watched(self.model, self.record)

    def forward(self, x):
        logits = self.model(x)
        self.record.append((x.detach().clone(), logits.detach().clone()))
        return logits


@pytest.fixture(scope="module")
def setting():
    model = build_model("convnet", num_classes=4, image_shape=(3, 12, 12), run=Run(seed=3)).eval()
    x = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    x = (x * 255).round() / 255
    with torch.no_grad():
        return model, x, model(x).argmax(1)


# The method, and what one step of it costs.
ATTACKS = [
    ("random-noise(eps=0.03)", 1),
    ("random-noise(eps=0.03, points=corners)", 1),
    ("nes(eps=0.008, pairs=4)", 9),
    ("bandits(eps=0.02)", 3),
    ("simba(eps=0.3)", 1),
    ("simba(eps=0.02, norm=linf, basis=pixel)", 1),
    ("signhunter(eps=0.012)", 1),
    ("zoo(eps=0.02, coordinates=5)", 11),
    ("querynet(eps=0.012, first_batches=3, batches=1, batch_size=8, trials=3)", 1),
]


@pytest.mark.parametrize(("spec", "price"), ATTACKS, ids=[spec for spec, _ in ATTACKS])
def test_the_counter_equals_the_rows_the_model_saw(setting, spec, price):
    model, x, y = setting
    seen = {}
    for queries in (22, 50):
        record = []
        attack = catalog.build(spec[:-1] + f", queries={queries})")
        outcome = attack.run(Watched(model, record), x, y, run=Run(batch_size=16))
        seen[queries] = sum(len(rows) for rows, _ in record), int(outcome.queries.sum())
        assert not outcome.success.all(), "the test needs images that resist"
        assert (outcome.queries[~outcome.success] == queries // price * price).all()
        assert (outcome.queries <= queries).all()
        assert not outcome.gradients.any()
    # What does not depend on the budget, the checks at the door and the verdicts, cancels.
    assert seen[50][0] - seen[22][0] == seen[50][1] - seen[22][1]
    assert seen[50][1] > seen[22][1]


@pytest.mark.parametrize("spec", [spec for spec, _ in ATTACKS])
def test_probabilities_in_place_of_logits_lead_to_the_same_images(setting, spec):
    """Losses that only read the probability would drown in rounding where the softmax saturates."""
    model, x, y = setting

    class Softmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x).softmax(1)

    attack = catalog.build(spec[:-1] + ", queries=22)")
    on_logits, on_probabilities = (attack.run(m, x, y, run=Run()) for m in (model, Softmax()))
    agree = (on_logits.success == on_probabilities.success).float().mean()
    assert agree >= 0.9
