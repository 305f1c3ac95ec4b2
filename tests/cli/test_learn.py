"""``holdfast learn``."""

import json

import pytest
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.continual import Memory
from holdfast.data import load_data
from holdfast.models import load_model, predict
from holdfast.run import Run

LEARNER = "ug-clu(epochs=1, batch_size=16, crop=none, flip=none)"
STREAM = "- learn: class=0,1\n- learn: class=2\n- forget: class=0\n"


@pytest.fixture
def learn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stream.yaml").write_text(STREAM)

    def learn(*more, learner=LEARNER, model="convnet(width=4)"):
        words = ["learn", "--learner", learner, "--model", model, "--data", "digits", "--requests", "stream.yaml"]
        return CliRunner().invoke(app, [*words, "--buffer", "20", "--out", "out", "--quiet", *more])

    return learn


def test_it_writes_weights_memory_and_record_and_says_what_is_known(learn, tmp_path):
    result = learn()
    assert result.exit_code == 0, result.output
    for words in ("Request 1: learn class=0,1", "Request 3: forget class=0", "average (A)", "forgetting (F)"):
        assert words in result.output
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert [r["title"] for r in record["requests"]] == ["learn class=0,1", "learn class=2", "forget class=0"]
    data = load_data("digits")
    model = load_model("convnet(width=4)", weights=tmp_path / "out/weights.safetensors", num_classes=10,
                       image_shape=data.shape)  # fmt: skip
    right = predict(model, data.test, run=Run()).argmax(1) == data.test.y
    assert record["requests"][-1]["hits"]["2"] == [int(right[data.test.y == 2].sum()), int((data.test.y == 2).sum())]
    memory = Memory.load(tmp_path / "out/memory.safetensors")
    assert 0 < len(memory) <= 20
    assert not (memory.images.y == 0).any()
    again = learn("--json")
    assert json.loads(again.output) == record


def test_it_goes_on_from_trained_weights(learn):
    result = learn(model="zoo:digits-convnet")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("stream", "changes", "said"),
    [
        ("- learn: class=0\n- forget: class=1\n", {}, "stream.yaml:2: forget: 'class=1' names no image"),
        ("- learn: class=12\n", {}, "'12' is no class"),
        ("- {}\n", {}, "this request is empty"),
        (STREAM, {"learner": "ug-cul"}, "Did you mean 'ug-clu'"),
        (STREAM, {"learner": "salun"}, "kind continual-learner is needed"),
        (STREAM, {"model": "resnet21"}, "Did you mean 'resnet20'"),
    ],
)
def test_a_bad_stream_gets_one_sentence(learn, tmp_path, stream, changes, said):
    (tmp_path / "stream.yaml").write_text(stream)
    result = learn(**changes)
    assert result.exit_code == 2
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_buffer_without_room_is_refused_where_something_is_to_be_forgotten(learn):
    result = learn("--buffer", "0")
    assert result.exit_code == 2
    assert "with no room in the memory" in result.output
