from dataclasses import dataclass

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from torch import nn

from holdfast.data.images import Images
from holdfast.errors import UserError
from holdfast.evasion import PGD
from holdfast.evasion import campaign as module
from holdfast.evasion.campaign import campaign
from holdfast.methods import Attack, Method
from holdfast.run import Run


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(27, 3, generator=generator))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return (x.flatten(1) - 0.5) @ self.weight


@pytest.fixture
def images(monkeypatch):
    monkeypatch.setattr(module, "_PART", 8)
    x = torch.randint(256, (20, 3, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    y = Net()(x / 255).argmax(1)
    y[0] = (y[0] + 1) % 3
    return Images(x=x, y=y, classes=("a", "b", "c"), name="noise")


ATTACK = PGD(eps=0.1, steps=3)


def test_the_tables_say_what_the_attack_did(images, tmp_path):
    result = campaign(ATTACK, Net(), images, run=Run(out=tmp_path))
    whole = ATTACK.run(Net(), images.x / 255, images.y, run=Run(out=tmp_path))
    table = pq.read_table(tmp_path / "samples.parquet").to_pydict()
    assert table["index"] == list(range(20))
    assert table["label"] == images.y.tolist()
    assert table["success"] == whole.success.tolist()
    assert table["queries"] == whole.queries.tolist()
    x_adv = safetensors.torch.load_file(tmp_path / "adversarial.safetensors")["x_adv"]
    assert torch.allclose(x_adv, whole.x_adv, atol=1e-6)
    assert table["prediction_attacked"] == Net()(x_adv).argmax(1).tolist()
    values = result.to_json()
    assert values["clean_accuracy"]["value"] == 0.95
    assert values["robust_accuracy"]["value"] == pytest.approx(whole.robust_accuracy)
    assert values["robust_accuracy"]["low"] < whole.robust_accuracy < values["robust_accuracy"]["high"]
    assert f"robust accuracy {whole.robust_accuracy:.2%}" in result.sentence


def test_a_run_that_was_stopped_goes_on_and_ends_alike(images, tmp_path, monkeypatch):
    campaign(ATTACK, Net(), images, run=Run(out=tmp_path / "whole"))
    parts, write = [], module._write

    def stop_after_two(path, part):
        if len(parts) == 2:
            raise KeyboardInterrupt
        parts.append(path)
        write(path, part)

    monkeypatch.setattr(module, "_write", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        campaign(ATTACK, Net(), images, run=Run(out=tmp_path / "stopped"))
    assert not (tmp_path / "stopped" / "samples.parquet").exists()
    monkeypatch.setattr(module, "_write", write)
    first, rest = Net(), Net()
    campaign(ATTACK, first, images, run=Run(out=tmp_path / "fresh"))
    campaign(ATTACK, rest, images, run=Run(out=tmp_path / "stopped"))
    assert 0 < rest.calls < first.calls / 2
    for name in ("samples.parquet", "adversarial.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_parts_of_another_attack_seed_model_or_data_are_not_taken_up(images, tmp_path):
    def passes(attack=ATTACK, model=None, images=images, seed=0):
        model = model or Net()
        campaign(attack, model, images, run=Run(out=tmp_path, seed=seed))
        return model.calls

    passes()
    assert passes() == 0
    assert passes(PGD(eps=0.1, steps=4)) > 0
    assert passes(seed=1) > 0
    assert passes(images=images.but(y=images.y.roll(1))) > 0
    other = Net()
    with torch.no_grad():
        other.weight.mul_(2)
    assert passes(model=other) > 0


def test_a_damaged_part_is_worked_out_again(images, tmp_path):
    campaign(ATTACK, Net(), images, run=Run(out=tmp_path))
    expected = (tmp_path / "samples.parquet").read_bytes()
    next((tmp_path / "state").iterdir()).write_bytes(b"not a safetensors file")
    campaign(ATTACK, Net(), images, run=Run(out=tmp_path))
    assert (tmp_path / "samples.parquet").read_bytes() == expected


def test_no_images_are_refused(images):
    with pytest.raises(UserError, match="noise: there are no images to attack"):
        campaign(ATTACK, Net(), images.select(slice(0, 0)), run=Run())


def test_an_attack_that_returns_images_alone_is_judged_all_the_same(images, tmp_path, monkeypatch):
    monkeypatch.setattr(Method, "registry", dict(Method.registry))

    @dataclass(frozen=True, kw_only=True)
    class Grey(Attack, id="test-grey"):
        """Makes every image grey."""

        def __call__(self, model, x, y, *, run):
            return torch.full_like(x, 0.5)

    result = campaign(Grey(), Net(), images, run=Run(out=tmp_path))
    grey = Net()(torch.full((1, 3, 3, 3), 0.5)).argmax(1)
    assert torch.equal(result.outcome.success, grey != images.y)
    values = result.to_json()
    assert values["queries_per_image"] is None
    assert values["largest_distance"] == pytest.approx(float((images.x / 255 - 0.5).abs().max()))
    again = campaign(Grey(), Net(), images, run=Run(out=tmp_path))
    assert again.to_json() == values
