import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.data import Images, load_data
from holdfast.errors import UserError
from holdfast.hardening import TransferSets, transfer_sets, worst_transfer
from holdfast.models import build_model
from holdfast.run import Run
from holdfast.training import fit


class Linear(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 64, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.T


def images(n=40):
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=rng)
    return Images(x=x, y=torch.arange(n) % 3, classes=("a", "b", "c"), name="noise")


def loss_of(model, x, y):
    return F.cross_entropy(model(x / 255), y, reduction="none")


def test_every_copy_is_attacked_on_its_own_source_from_its_own_start():
    data, sources = images(), [Linear(1), Linear(2)]
    made = transfer_sets(data, sources, eps=8 / 255, copies=3, steps=2, run=Run())
    stack = made.columns["transfer"]
    assert (stack.dtype, stack.shape) == (torch.uint8, (40, 2, 3, 1, 8, 8))
    assert torch.equal(made.x, data.x)
    moved = (stack.int() - data.x[:, None, None].int()).abs()
    assert moved.max() == 8
    for s, source in enumerate(sources):
        for copy in range(3):
            x = stack[:, s, copy]
            clean, own, other = loss_of(source, data.x, data.y), loss_of(source, x, data.y), None
            other = loss_of(source, stack[:, 1 - s, copy], data.y)
            assert (own > clean).all()  # images that are wrong already are attacked all the same
            assert (own > other).double().mean() > 0.9
    assert not torch.equal(stack[:, 0, 0], stack[:, 0, 1])


def test_the_sets_depend_on_the_seed_and_not_on_the_batch_size():
    data, sources = images(), [Linear(1)]
    first, again, other = (
        transfer_sets(data, sources, copies=1, steps=2, run=run).columns["transfer"]
        for run in (Run(), Run(batch_size=7), Run(seed=1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_by_name_it_takes_sources_from_the_zoo():
    digits = load_data("digits").test.select(slice(0, 12))
    made = TransferSets(sources=("zoo:digits-convnet",), copies=1, steps=1)(digits, run=Run())
    assert made.columns["transfer"].shape == (12, 1, 1, 1, 8, 8)
    with pytest.raises(UserError, match="sources must name at least one model"):
        TransferSets()(digits, run=Run())


def test_a_recipe_trains_on_them():
    data = images()
    model = build_model("mlp", num_classes=3, image_shape=(1, 8, 8), run=Run())
    made = transfer_sets(data, [Linear(1)], copies=1, steps=1, run=Run())
    result = fit(model, made, epochs=2, batch_size=8, objective="pubdef(transforms=['flip'])", run=Run())
    assert len(result.history) == 2


def test_the_worst_pair_is_the_least_of_the_accuracies_and_the_union_less_still():
    data = images()
    data = data.but(y=Linear(1)(data.x / 255).argmax(1))
    defended = Linear(1)
    with torch.no_grad():
        defended.weight += Linear(9).weight / 3
    sources = {"near": Linear(1), "far": Linear(5)}
    models = {"defended": defended, "same": Linear(1)}
    both = worst_transfer(models, sources, ["i-fgsm(eps=4/255)", "mi-fgsm(eps=8/255)"], data, seen=["far"], run=Run())
    found = both["defended"]
    assert both["same"].worst_accuracy < found.worst_accuracy
    rates = {pair: found.accuracy(*pair) for pair in found.right}
    assert len(rates) == 4
    assert found.worst_accuracy == min(rates.values()) == rates["near", "mi-fgsm"]
    assert found.worst == ("near", "mi-fgsm")
    assert found.mean_accuracy == pytest.approx(sum(rates.values()) / 4)
    assert found.union_accuracy <= found.worst_accuracy < float(found.clean.double().mean())
    assert found.mean_over(seen=True) == pytest.approx(
        (rates["far", "i-fgsm(eps=4/255)"] + rates["far", "mi-fgsm"]) / 2
    )
    assert [p["seen"] for p in found.to_json()["pairs"]] == [False, True, False, True]
    assert "mi-fgsm on near" in found.sentence


def test_the_defended_model_is_no_source():
    model = Linear(1)
    with pytest.raises(UserError, match="white-box"):
        worst_transfer({"m": model}, {"m": model}, ["i-fgsm"], images(), run=Run())
    with pytest.raises(UserError, match="b is said to be seen, but is not a source"):
        worst_transfer({"m": model}, {"a": Linear(2)}, ["i-fgsm"], images(), seen=["b"], run=Run())
