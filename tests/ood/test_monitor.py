import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast import catalog, stats
from holdfast.data import load_data
from holdfast.errors import UserError
from holdfast.methods import Method
from holdfast.models import build_model, load_model
from holdfast.ood import FittedDetector, OODMonitor, fit_monitor
from holdfast.run import Run

catalog.load_all()
# One that needs no fit, one that reads features, one that looks on.
DETECTORS = ["msp", "knn(k=10)", *({"rankfeat"} & set(Method.registry))]

SCORE_ELSEWHERE = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from holdfast.data import load_data
from holdfast.models import load_model
from holdfast.ood import OODMonitor
model, images = load_model("zoo:digits-convnet"), load_data("digits").test.select(slice(0, 60))
for path in map(Path, sys.argv[1:]):
    save_file(OODMonitor.load(path, model)(images)._asdict(), path / "readings")
"""


@pytest.fixture(scope="module")
def data():
    return load_data("digits")


@pytest.fixture(scope="module")
def few(data):
    """The same task with fewer images."""
    return data.but(train=data.train.select(slice(0, 300)), val=data.val.select(slice(0, 60)))


@pytest.fixture(scope="module")
def model():
    return load_model("zoo:digits-convnet")


@pytest.fixture(scope="module")
def monitor(data, model):
    return fit_monitor("knn(k=10)", model, data, alpha=0.1, run=Run())


def test_another_process_reads_the_monitors_and_gives_identical_scores(few, model, tmp_path):
    here = {}
    for place, detector in enumerate(DETECTORS):
        monitor = fit_monitor(detector, model, few, alpha=0.1, run=Run())
        monitor.save(tmp_path / str(place))
        here[tmp_path / str(place)] = monitor(few.test.select(slice(0, 60)))
    subprocess.run([sys.executable, "-c", SCORE_ELSEWHERE, *map(str, here)], check=True, timeout=120)
    for folder, reading in here.items():
        there = load_file(folder / "readings")
        assert all(torch.equal(there[name], value) for name, value in reading._asdict().items())


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_monitor_survives_saving(detector, few, model, tmp_path):
    monitor = fit_monitor(detector, model, few, alpha=0.1, delta=0.2, run=Run())
    loaded = OODMonitor.load(monitor.save(tmp_path / "m.safetensors"), model)
    images = few.test.select(slice(0, 30))
    assert all(torch.equal(a, b) for a, b in zip(monitor(images), loaded(images), strict=True))
    assert loaded.settings == monitor.settings
    assert (loaded.alarm.delta, loaded.alarm.rank) == (0.2, monitor.alarm.rank)


def test_known_images_raise_as_few_alarms_as_promised_and_noise_raises_many(monitor, data):
    known = monitor(data.test).alarm
    assert stats.clopper_pearson(int(known.sum()), len(known))[0] <= 0.1
    noise = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert monitor(noise).alarm.double().mean() > 0.5


def test_alarm_score_and_p_value_belong_together(monitor, data):
    alarm, score, p_value = monitor(data.test)
    assert torch.equal(alarm, score > monitor.alarm.threshold)
    assert torch.equal(alarm, p_value <= 0.1)
    order = score.argsort()
    assert (p_value[order].diff() <= 0).all()


def test_bytes_and_floats_are_the_same_image(monitor):
    x = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(monitor(x).score, monitor(x.float() / 255).score)


def test_the_model_stays_as_it_was(monitor, model, data):
    model.train()
    monitor(data.test.select(slice(0, 5)))
    assert model.training
    model.eval()


def test_another_models_weights_are_refused(monitor, tmp_path):
    path = monitor.save(tmp_path)
    assert path == tmp_path / "monitor.safetensors"
    other = load_model("zoo:digits-convnet")
    OODMonitor.load(tmp_path, other)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(UserError, match="fitted to a model with other weights") as caught:
        OODMonitor.load(tmp_path, other)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="other weights"):
        OODMonitor.load(tmp_path, build_model("mlp", num_classes=10, image_shape=(1, 8, 8)))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 3, 8, 8), "calibrated on images of shape 1x8x8, got 3x8x8"),
        (torch.zeros(2, 1, 9, 8), "got 1x9x8"),
        (torch.full((2, 1, 8, 8), torch.nan), "NaN"),
        (torch.full((2, 1, 8, 8), 2.0), r"\[0, 1\]"),
        (torch.zeros(0, 1, 8, 8), "there are no images"),
        (torch.zeros(8, 8), r"\(N, C, H, W\), got shape \(8, 8\)"),
        ("x.png", "got a str"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(monitor, x, words):
    with pytest.raises(UserError, match=words) as caught:
        monitor(x)
    assert "\n" not in str(caught.value)


def test_which_images_calibrate_is_chosen_and_said(few, model):
    def fitted(detector="knn(k=10)", splits=few, **options):
        return fit_monitor(detector, model, splits, alpha=0.1, run=Run(), **options)

    n, n_val, n_test = len(few.train), len(few.val), len(few.test)
    assert (
        fitted().calibrated_on == f"fitted on {n} training images, calibrated on {n_val} images, the validation split"
    )
    assert len(fitted(calibrate_on="test").alarm.scores) == n_test
    without = fitted(splits=few.but(val=None))
    held = len(without.alarm.scores)
    assert held == pytest.approx(n / 5, abs=1)
    assert len(without.detector.state["bank"]) == n - held
    assert "the model has" in without.calibrated_on
    bare = few.but(train=None, val=None)
    assert fitted("msp", bare, calibrate_on="test").calibrated_on.startswith("calibrated on")
    with pytest.raises(UserError, match="has no train split to calibrate the alarm on; calibrate on test"):
        fitted("msp", bare)
    with pytest.raises(UserError, match="learns from training images, but there are none"):
        fitted(splits=bare, calibrate_on="test")
    with pytest.raises(UserError, match=r"split to calibrate on 'vall' is unknown\. Did you mean 'val'"):
        fitted(calibrate_on="vall")


def test_images_held_out_to_calibrate_are_none_that_the_detector_saw(few, model):
    """The nearest neighbour of a training image is itself, at no distance."""
    monitor = fit_monitor("knn(k=1)", model, few.but(val=None), run=Run())
    assert float(monitor.alarm.scores.min()) > 0


def test_a_file_that_is_no_monitor_is_refused(monitor, model, tmp_path):
    with pytest.raises(UserError, match="cannot be read as a monitor"):
        OODMonitor.load(tmp_path, model)
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read as a monitor"):
        OODMonitor.load(path, model)
    monitor.detector.save(path)
    with pytest.raises(UserError, match="holds no monitor"):
        OODMonitor.load(path, model)
    settings = monitor.settings.model_dump()
    tensors = {"calibration scores": torch.zeros(50, dtype=torch.float64), "detector.bank": torch.zeros(20, 4)}
    for wrong, words in (
        ("{", "settings cannot be read"),
        (json.dumps(settings | {"alarm_rate": "often"}), "settings cannot be read"),
        (json.dumps(settings | {"alarm_rate": 1e-9}), "allow no alarm rate"),
        (json.dumps(settings | {"detector": "pgd"}), "pgd"),
        (json.dumps(settings | {"detector": "__import__('os')"}), "hyperparameter"),
    ):
        save_file(tensors, path, {"format": "holdfast-monitor-1", "monitor": wrong})
        with pytest.raises(UserError, match=words):
            OODMonitor.load(path, model)


def test_a_killed_save_leaves_the_monitor_that_was_there(monitor, model, tmp_path, monkeypatch):
    path = monitor.save(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        monitor.save(tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_monitor_is_no_pickle(monitor, tmp_path):
    content = monitor.save(tmp_path).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header["__metadata__"]["monitor"])["detector"] == "knn(k=10)"
    assert isinstance(monitor.detector, FittedDetector)
