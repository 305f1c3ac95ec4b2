import json
import math

import pytest
import torch
from torch import nn

from holdfast.data import Images
from holdfast.errors import UserError
from holdfast.evasion import IFGSM, MIFGSM, L2Transferability, transfer
from holdfast.evasion.transfer import right_on, to_bytes
from holdfast.run import Run


class Linear(nn.Module):
    """Two classes; which one is decided by a weighted sum of the pixels."""

    def __init__(self, seed, noise=0.3):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        shared = torch.randn(1, 48, generator=rng)
        own = torch.randn(1, 48, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(shared + noise * own)

    def forward(self, x):
        score = (x.flatten(1) - 0.5) @ self.weight.T
        return torch.cat([score, -score], 1)


def images(n=60):
    rng = torch.Generator().manual_seed(5)
    x = torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=rng)
    y = Linear(0, noise=0)(x / 255).argmax(1)
    return Images(x=x, y=y, classes=("a", "b"), name="noise")


def test_the_table_is_what_a_plain_loop_finds():
    data, eps = images(), 0.04
    surrogates, victims = {"a": Linear(1), "b": Linear(2)}, {"b": Linear(2), "c": Linear(3, noise=1.0)}
    table = transfer("i-fgsm(eps=0.04)", surrogates, victims, data, Run())
    x = data.x / 255
    for s, surrogate in surrogates.items():
        clean_s = surrogate(x).argmax(1) == data.y
        weight = surrogate.weight.detach().view(1, 3, 4, 4)
        away = torch.where(data.y == 0, -1.0, 1.0).view(-1, 1, 1, 1) * weight.sign()
        x_adv = torch.where(clean_s.view(-1, 1, 1, 1), (x + eps * away).clamp(0, 1), x)
        x_adv = (x_adv * 255).round() / 255
        for v, victim in victims.items():
            pair = table[s, v]
            counted = clean_s & (victim(x).argmax(1) == data.y)
            fooled = victim(x_adv).argmax(1) != data.y
            assert torch.equal(pair.counted, counted)
            assert torch.equal(pair.fooled, fooled)
            assert 0 < pair.n < len(data)
            assert pair.success == pytest.approx(float(fooled[counted].double().mean()))
            offset = (x_adv - x).flatten(1)
            torch.testing.assert_close(pair.l2, offset.norm(dim=1))
            assert pair.to_json()["mean_linf"] == pytest.approx(float(offset.abs().amax(1)[counted].mean()), abs=1e-6)
    assert table.table().num_rows == 4 * len(data)
    assert json.loads(json.dumps(table.to_json(), allow_nan=False))["attack"] == "i-fgsm(eps=0.04)"
    assert "a -> b" in table.sentence


def test_images_are_rounded_before_the_victim_sees_them():
    data = images()
    model = Linear(1)
    pair = transfer(IFGSM(eps=0.4 / 255), {"m": model}, {"m": model}, data, Run())["m", "m"]
    assert not pair.l2.any()  # less than half a level is lost on the way
    assert pair.success == 0


def test_no_common_ground_is_said_and_not_divided_by():
    class Opposite(Linear):
        def forward(self, x):
            return -super().forward(x)

    data = images()
    found = transfer(IFGSM(), {"m": Linear(1, 0)}, {"o": Opposite(1, 0)}, data, Run())
    assert found["m", "o"].success is None
    assert json.dumps(found.to_json(), allow_nan=False)
    assert "nothing to count" in found.sentence


def test_bytes_of_floats_are_the_nearest():
    assert to_bytes(torch.tensor([0, 0.4 / 255, 0.6 / 255, 1.0])).tolist() == [0, 0, 1, 255]


def test_without_models_there_is_nothing_to_try():
    with pytest.raises(UserError, match="at least one victim"):
        transfer("i-fgsm", {"m": Linear(1)}, {}, images(), Run())
    with pytest.raises(UserError, match="at least one surrogate"):
        transfer("i-fgsm", {}, {"m": Linear(1)}, images(), Run())


def test_the_comparison_by_l2_keeps_its_own_identities():
    data = images()
    analysis = L2Transferability(attacks=("i-fgsm", "mi-fgsm", "fgsm"), eps=12 / 255, points=3)
    models = {"a": Linear(1), "b": Linear(2)}
    report = analysis({"a": models["a"]}, models, data, run=Run())
    plain = transfer(MIFGSM(eps=12 / 255), {"a": models["a"]}, models, data, Run())
    row = report.row("a", "mi-fgsm")
    assert row.success["b"] == plain["a", "b"].success
    right = right_on(models["a"], data, Run())
    assert row.l2 == pytest.approx(float(plain["a", "b"].l2[right].mean()), rel=1e-6)
    assert row.saturation == pytest.approx(row.l2 / (12 / 255 * math.sqrt(48)))
    base = report.row("a", "i-fgsm")
    assert base.baseline_at_this_norm == base.success
    gain = report.gain("a", "mi-fgsm", "b")
    assert gain["total"] == pytest.approx(gain["norm"] + gain["direction"])
    assert report.gain("a", "i-fgsm", "b") == {"total": 0, "norm": 0, "direction": 0, "matched": 0, "area": 0}
    smallest = min(report.rows, key=lambda r: r.l2)
    assert all(r.matched_norm == smallest.l2 for r in report.rows)
    # a linear surrogate gives every attack the same direction, so that equal norms are equal images
    assert row.curves == base.curves
    assert json.dumps(report.to_json(), allow_nan=False)
    assert report.sentence.startswith("a -> a: ")


def test_an_unknown_attack_of_the_comparison_is_refused_at_once():
    with pytest.raises(UserError, match="mi-fgms"):
        L2Transferability(attacks=("i-fgsm", "mi-fgms"))
    with pytest.raises(UserError, match="different attacks"):
        L2Transferability(attacks=("i-fgsm", "i-fgsm"))
