import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data import load_data
from holdfast.models import load_model
from holdfast.ood import OODMonitor

MODEL = ["--model", "zoo:digits-convnet"]


def holdfast(*words):
    return CliRunner().invoke(app, ["ood", *map(str, words)])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A monitor as the command line makes it, and what was printed."""
    out = tmp_path_factory.mktemp("ood") / "monitor"
    words = ["--data", "digits", "--detector", "knn(k=10)", "--alarm-rate", 0.1]
    result = holdfast("fit", *MODEL, *words, "--out", out, "-q")
    assert result.exit_code == 0, result.output
    return out, result.output


@pytest.fixture(scope="module")
def monitor(fitted):
    return fitted[0]


def test_fitting_says_what_it_was_fitted_on_what_is_promised_and_what_the_test_images_do(fitted):
    out, said = fitted
    assert "fitted on 1078 training images, calibrated on 270 images, the validation split" in said
    assert "at most 10 % raise a false alarm" in said
    assert "of 449 raise an alarm" in said
    content = json.loads((out / "monitor.json").read_text())
    assert content["false_alarms"]["low"] < 0.1
    assert sorted(path.name for path in out.iterdir()) == ["monitor.json", "monitor.safetensors"]


def test_another_process_scores_exactly_as_this_one_does(monitor, tmp_path):
    command = [sys.executable, "-m", "holdfast", "ood", "score", "--monitor", str(monitor), *MODEL]
    subprocess.run([*command, "--data", "digits", "-o", str(tmp_path / "s.parquet")], check=True, timeout=120)
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.column_names == ["index", "alarm", "score", "p_value"]
    here = OODMonitor.load(monitor, load_model("zoo:digits-convnet"))(load_data("digits").test)
    for name, values in here._asdict().items():
        assert np.array_equal(table[name].to_numpy(), values.numpy())


def test_a_folder_of_pictures_is_scored_by_path(monitor, tmp_path):
    test = load_data("digits").test
    pixels = test.x[:6, 0].mul(255).byte().numpy() if test.x.is_floating_point() else test.x[:6, 0].numpy()
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "in" / ("deep" if i % 2 else "") / f"{i}.png")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    words = ["--monitor", monitor, *MODEL, "--data", tmp_path / "in"]
    found = json.loads(holdfast("score", *words, "--json").output)
    assert found["n"] == 6
    assert found["alarms"] == sum(row["alarm"] for row in found["images"])
    direct = OODMonitor.load(monitor, load_model("zoo:digits-convnet"))(test.select(slice(0, 6)))
    by_name = {row["path"].rsplit("/", 1)[1]: row["score"] for row in found["images"]}
    # pictures have whole bytes, the bundled digits sixteenths
    assert [by_name[f"{i}.png"] for i in range(6)] == pytest.approx(direct.score.tolist(), abs=2e-2)
    said = holdfast("score", *words).output
    assert "of 6 raise an alarm" in " ".join(said.split())
    assert ".png" in said
    one = holdfast("score", "--monitor", monitor, *MODEL, "--data", tmp_path / "in" / "0.png", "--json")
    assert json.loads(one.output)["images"][0]["score"] == pytest.approx(by_name["0.png"], abs=1e-6)


def test_arrays_are_scored_and_noise_is_noticed(monitor, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", noise)
    np.savez(tmp_path / "x.npz", x=noise)
    rates = []
    for name in ("x.npy", "x.npz"):
        result = holdfast("score", "--monitor", monitor, *MODEL, "--data", tmp_path / name, "--json")
        assert result.exit_code == 0, result.output
        rates.append(json.loads(result.output)["rate"])
    assert rates[0] == rates[1] > 0.4


def test_the_split_of_a_data_set_is_chosen(monitor):
    words = ["score", "--monitor", monitor, *MODEL, "--data", "digits", "--json", "--split"]
    found = json.loads(holdfast(*words, "val").output)
    assert found["n"] == 270
    assert found["rate"] <= 0.1  # the images that set the alarm


def test_without_a_validation_split_the_promise_is_qualified(tmp_path):
    data = load_data("digits")
    x, y = (np.concatenate([getattr(s, a).numpy() for s in (data.train, data.val)]) for a in ("x", "y"))
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=data.test.x.numpy(), y_test=data.test.y.numpy())
    words = ["--data", tmp_path / "d.npz", "--detector", "msp", "-o", tmp_path / "m", "--json"]
    found = json.loads(holdfast("fit", *MODEL, *words).output)
    assert (
        "the model has, so that more of the new images than promised may raise false alarms" in found["calibrated_on"]
    )
    on_test = json.loads(holdfast("fit", *MODEL, *words, "--calibrate-on", "test").output)
    assert on_test["false_alarms"] is None
    assert on_test["calibration_images"] == 449


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "--detector", "knnn"], "knn"),
        (["fit", "--detector", "pgd"], "detector"),
        (["fit", "--detector", "knn(k=0)"], "k must be"),
        (["fit", "--detector", "knn(k=99999)"], "at most the 1078"),
        (["fit", "--detector", "msp", "--detector", "knn"], "one detector, got 2"),
        (["fit", "--alarm-rate", "5"], "alpha must be in (0, 1)"),
        (["fit", "--alarm-rate", "0.001"], "270 calibration images allow no alarm rate below 0.00369"),
        (["fit", "--alarm-rate", "0.01", "--delta", "0.01"], "allow no alarm rate below"),
        (["fit", "--delta", "0"], "delta must be in (0, 1)"),
        (["fit", "--calibrate-on", "vall"], "Did you mean 'val'"),
        (["fit", "--out", "file"], "file"),
        (["score", "--monitor", "none"], "cannot be read as a monitor"),
        (["score", "--monitor", "file"], "file"),
        (["score", "--monitor", "MONITOR", "--split", "tset"], "Did you mean 'test'"),
        (["score", "--monitor", "MONITOR", "--out", "scores.csv"], ".parquet"),
        (["score", "--monitor", "MONITOR", "--data", "./nowhere"], "nowhere"),
        (["score", "--monitor", "MONITOR", "--data", "empty"], "empty"),
        (["score", "--monitor", "MONITOR", "--data", "broken"], "broken.png"),
        (["score", "--monitor", "MONITOR", "--data", "nan.npy"], "NaN"),
        (["score", "--monitor", "MONITOR", "--data", "large.npy"], "takes images of shape 1x8x8, got 1x9x9"),
        (["score", "--monitor", "MONITOR", "--data", "objects.npy"], "objects.npy"),
        (["score", "--monitor", "MONITOR", "--model", "my.py:make"], "other weights"),
    ],
)
def test_mistakes_get_exit_code_2_and_one_sentence(words, said, monitor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.png").write_text("no picture")
    np.save("nan.npy", np.full((2, 8, 8), np.nan, np.float32))
    np.save("large.npy", np.zeros((2, 9, 9), np.uint8))
    np.save("objects.npy", np.array([{}] * 4, dtype=object))
    (tmp_path / "my.py").write_text(
        "from holdfast.models import build_model\n\n\n"
        "def make():\n    return build_model('mlp', num_classes=10, image_shape=(1, 8, 8))\n"
    )
    words = [str(monitor) if word == "MONITOR" else word for word in words]
    words += [] if "--model" in words else MODEL
    words += [] if "--data" in words else ["--data", "digits"]
    result = holdfast(*words)
    assert result.exit_code == 2, (result.output, result.exception)
    message = result.stderr.strip()
    assert message.startswith("holdfast: ")
    assert "\n" not in message
    assert said in message
    assert not list(tmp_path.glob("holdfast-out/**/*.safetensors"))
