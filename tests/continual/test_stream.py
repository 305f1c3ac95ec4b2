"""Streams: what is recorded, that they resume exactly, and that a folder forgets too."""

import json

import pytest
import torch

from holdfast.continual import Memory, Request, read_requests, serve_stream
from holdfast.continual.record import Account, Record
from holdfast.errors import UserError
from holdfast.models import build_model, predict, weights_hash
from holdfast.run import Run
from holdfast.training import loop

STREAM = (
    "- learn: class=0,1\n- learn: class=2,3\n- forget: class=0\n- learn: class=4\n  forget: random=0.2 of class=2\n"
)
SMALL = "epochs=2, batch_size=16, crop=none, flip=none"
LEARNERS = [f"ug-clu({SMALL}, slow=0.7)", f"er({SMALL}, unlearner=random-label({SMALL}))"]


class Killed(BaseException):
    """Stands for a kill."""


@pytest.fixture
def requests(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "stream.yaml"
    path.write_text(STREAM)
    return read_requests(path, digits.train, run=Run())


@pytest.fixture
def serve_it(digits, convolutional, requests, train):
    def serve_it(learner, out=None, told=None, seed=0, count=4, room=40):
        memory = Memory.empty(room, train)
        run = Run(out=out, seed=seed)
        return serve_stream(learner, convolutional, requests[:count], memory, test=digits.test, told=told, run=run)

    return serve_it


def without_time(records):
    return [{**r.to_json(), "seconds": 0} for r in records]


def test_the_record_says_what_the_model_knows(serve_it, digits, train, requests, convolutional):
    before = weights_hash(convolutional)
    served = serve_it(LEARNERS[0])
    assert weights_hash(convolutional) == before
    right = predict(served.model, digits.test, run=Run()).argmax(1) == digits.test.y
    last, y = served.records[-1], digits.test.y

    def accuracy(*classes):
        return float(right[torch.isin(y, torch.tensor(classes))].double().mean())

    assert last.hits == {str(k): (int(right[y == k].sum()), int((y == k).sum())) for k in range(5)}
    assert last.tasks == pytest.approx((accuracy(1), accuracy(2, 3), accuracy(4)))
    assert last.remaining == pytest.approx(accuracy(1, 2, 3, 4))
    assert last.average == pytest.approx(sum(last.tasks) / 3)
    gone = torch.cat([requests[2].forget.columns["id"], requests[3].forget.columns["id"]])
    unlearned = predict(served.model, train.select(gone), run=Run()).argmax(1) == train.y[gone]
    assert last.unlearned == pytest.approx(float(unlearned.double().mean()))
    # the first two tasks, without the class that was forgotten on demand
    lost = []
    for task, classes in ((0, (1,)), (1, (2, 3))):
        course = [
            sum(r.hits[str(k)][0] for k in classes) / sum(r.hits[str(k)][1] for k in classes)
            for r in served.records[task:]
        ]
        lost.append(max(course) - course[-1])
    assert last.forgetting == pytest.approx(sum(lost) / 2)
    assert served.records[0].forgetting is None
    assert served.records[0].unlearned is None
    assert (last.learnt, last.forgotten, last.remembered) == (len(requests[3].learn), len(requests[3].forget), 40)
    assert [Record.from_json(json.loads(json.dumps(r.to_json()))) for r in served.records] == list(served.records)


def test_forgetting_is_measured_against_the_best_before(tiny):
    """A model whose answers are written down: the second task is known, lost, and half known again."""
    test = tiny(range(12))

    class Says(torch.nn.Module):
        def __init__(self, right):
            super().__init__()
            self.right = right

        def forward(self, x):
            ids = (x[:, 0, 0, 0] * 255).round().long()
            answer = torch.where(torch.isin(ids, torch.tensor(self.right)), ids % 3, (ids + 1) % 3)
            return torch.nn.functional.one_hot(answer, 3).float()

    account, memory, records = Account(test), Memory.empty(0, test), []
    for request, right in (
        (Request(learn=tiny([100])), [1, 4, 7, 10]),  # class 1: all right
        (Request(learn=tiny([101])), [1, 2, 5, 8]),  # class 1: a quarter; class 2: three quarters
        (Request(learn=tiny([102])), [1, 4, 2, 0, 3, 6, 9]),  # class 1: half; class 2: a quarter; class 0: all
    ):
        account.note(request)
        records.append(account.measure(Says(right), request, memory, 0.0, run=Run(device="cpu")))
    assert records[-1].tasks == (0.5, 0.25, 1.0)
    assert records[-1].average == pytest.approx(1.75 / 3)
    assert records[-1].forgetting == pytest.approx((0.5 + 0.5) / 2)
    assert records[1].forgetting == pytest.approx(0.75)


@pytest.mark.parametrize(("learner", "last"), list(zip(LEARNERS, (40, 13), strict=True)), ids=["ug-clu", "er"])
def test_a_stream_killed_between_and_within_requests_ends_as_if_it_had_not_been(
    serve_it, learner, last, tmp_path, monkeypatch
):
    whole = serve_it(learner)
    out, told = tmp_path / "out", []

    def die_after_the_second(record):
        if record.number == 2:
            raise Killed

    with pytest.raises(Killed):
        serve_it(learner, out, die_after_the_second)
    step, steps = loop.Loop._step, []

    def die_in_a_step(self, batches):
        steps.append(1)
        if len(steps) == last:  # in the second epoch of the third request
            raise Killed
        step(self, batches)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Loop, "_step", die_in_a_step)
        with pytest.raises(Killed):
            serve_it(learner, out)
    assert (out / "request-3").is_dir(), "it was killed within the third"
    served = serve_it(learner, out, lambda record: told.append(record.number))
    assert weights_hash(served.model) == weights_hash(whole.model)
    assert served.memory.fingerprint() == whole.memory.fingerprint()
    assert without_time(served.records) == without_time(whole.records)
    assert told == [1, 2, 3, 4]
    monkeypatch.setattr(loop.Loop, "_step", None)  # a step more would fail
    again = serve_it(learner, out)
    assert weights_hash(again.model) == weights_hash(whole.model)
    assert again.memory.fingerprint() == whole.memory.fingerprint()


def test_a_folder_keeps_no_image_and_no_model_from_before_a_request(serve_it, requests, tmp_path):
    served = serve_it(LEARNERS[1], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "memory-4.safetensors",
        "progress.json",
        "weights-4.safetensors",
    ]
    memory = Memory.load(tmp_path / "memory-4.safetensors")
    gone = torch.cat([r.forget.columns["id"] for r in requests if r.forget is not None])
    assert not torch.isin(memory.ids, gone).any()
    assert memory.fingerprint() == served.memory.fingerprint()


def test_what_a_kill_left_behind_is_removed(serve_it, tmp_path):
    serve_it(LEARNERS[1], tmp_path, count=2)
    (tmp_path / "request-2").mkdir()
    (tmp_path / "request-2" / "checkpoint.pt").write_bytes(b"old")
    (tmp_path / "memory-1.safetensors").write_bytes(b"old")
    serve_it(LEARNERS[1], tmp_path, count=2)
    assert not (tmp_path / "request-2").exists()
    assert not (tmp_path / "memory-1.safetensors").exists()


def test_a_stream_can_be_made_longer_but_not_changed(serve_it, tmp_path):
    short = serve_it(LEARNERS[1], tmp_path, count=2)
    longer = serve_it(LEARNERS[1], tmp_path, count=4)
    assert without_time(longer.records)[:2] == without_time(short.records)
    assert weights_hash(longer.model) == weights_hash(serve_it(LEARNERS[1]).model)
    with pytest.raises(UserError, match="holds a stream of 4 requests, and this one has 2"):
        serve_it(LEARNERS[1], tmp_path, count=2)
    with pytest.raises(UserError, match=r"whose request 1 had learner er\(.*, and this one has ug-clu"):
        serve_it(LEARNERS[0], tmp_path)
    with pytest.raises(UserError, match="had seed 0, and this one has 1"):
        serve_it(LEARNERS[1], tmp_path, seed=1)
    with pytest.raises(UserError, match="had memory"):
        serve_it(LEARNERS[1], tmp_path, room=30)


def test_a_head_without_room_for_all_classes_is_refused(digits, requests, train):
    narrow = build_model("convnet(width=4)", num_classes=2, image_shape=digits.shape, run=Run())
    with pytest.raises(UserError, match=r"the model gives 2 logits, but .* has 10 classes"):
        serve_stream("ug-clu", narrow, requests, Memory.empty(10, train), test=digits.test, run=Run())


def test_what_is_no_learner_is_refused(serve_it):
    with pytest.raises(
        UserError, match="'salun' is of kind unlearner, but a method of kind continual-learner is needed"
    ):
        serve_it("salun")
