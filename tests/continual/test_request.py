"""Requests in words, and what becomes of bad ones."""

import pytest
import torch

from holdfast.continual import Memory, Request, read_requests, serve_stream
from holdfast.continual.request import check_stream
from holdfast.errors import UserError
from holdfast.run import Run


@pytest.fixture
def read(digits, tmp_path, monkeypatch):
    """Reads the stream of a text."""
    monkeypatch.chdir(tmp_path)

    def read(text, seed=0):
        (tmp_path / "stream.yaml").write_text(text, encoding="utf-8")
        return read_requests("stream.yaml", digits.train, run=Run(seed=seed))

    return read


def ids(images):
    return set(images.columns["id"].tolist())


def test_words_mean_images(read, digits):
    y = digits.train.y
    learn, more, gone, some, both = read(
        "- learn: class=0,1\n- learn: random=0.5 of class=2,3\n- forget: class=0\n- forget: random=0.1 of class=2\n"
        "- learn: class=5\n  forget: class=1\n"
    )
    where = {k: set((y == k).nonzero().flatten().tolist()) for k in range(10)}
    assert ids(learn.learn) == where[0] | where[1]
    assert len(more.learn) == round(0.5 * len(where[2] | where[3]))
    assert ids(more.learn) <= where[2] | where[3]
    assert ids(gone.forget) == where[0]
    # of class 2 only what was learnt can be meant
    assert ids(some.forget) <= ids(more.learn) & where[2]
    assert len(some.forget) == round(0.1 * len(ids(more.learn) & where[2]))
    assert (ids(both.learn), ids(both.forget)) == (where[5], where[1])
    assert [r.title for r in (gone, both)] == ["forget class=0", "learn class=5, forget class=1"]
    assert torch.equal(both.learn.x, digits.train.x[y == 5])


def test_random_words_depend_on_the_seed_and_the_place_in_the_stream(read):
    text = "- learn: random=0.2\n- learn: random=0.2\n"
    a, b, c = read(text), read(text), read(text, seed=1)
    assert [ids(r.learn) for r in a] == [ids(r.learn) for r in b]
    assert ids(a[0].learn) != ids(c[0].learn)
    assert not ids(a[0].learn) & ids(a[1].learn)


def test_all_and_positions(read, digits, tmp_path):
    (tmp_path / "few.csv").write_text("index\n3\n5\n")
    learn, forget, rest = read("- learn: class=0,1,2,3,4,5,6,7,8,9\n- forget: few.csv\n- forget: all of class=4\n")
    assert ids(learn.learn) == set(range(len(digits.train)))
    assert ids(forget.forget) == {3, 5}
    assert ids(rest.forget) == {i for i in ids(learn.learn) if int(learn.learn.y[i]) == 4} - {3, 5}
    (whole,) = read("- learn: all\n")
    assert ids(whole.learn) == ids(learn.learn)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- learn: class=12\n", "stream.yaml:1: learn: '12' is no class of digits"),
        ("- learn: class=0\n- forget: class=1\n", "stream.yaml:2: forget: 'class=1' names no image .* were not learnt"),
        ("- forget: random=0.1\n", "stream.yaml:1: forget: 'random=0.1' names no image"),
        ("- learn: class=0\n- learn: class=0\n", "stream.yaml:2: learn: 'class=0' names no image .* were learnt, or"),
        ("- learn: class=0\n- forget: few.csv\n", "few.csv names image 0, which was not learnt before"),
        ("- learn: class=0\n- forget: random=2 of class=0\n", "random takes a share"),
        ("- learn: class=0\n- {}\n", "stream.yaml:2: this request is empty"),
        ("- learn:\n", "'learn' takes words such as class=0,1"),
        ("- learn: [0, 1]\n", "'learn' takes words such as class=0,1"),
        ("- lern: class=0\n", "'lern' is nothing that a request can ask. Did you mean 'learn'"),
        ("- learn: class=0\n  learn: class=1\n", "'learn' is given twice"),
        ("- class=0\n", "a request is a line such as 'learn: class=0,1'"),
        ("learn: class=0\n", "a stream consists of lines such as"),
        ("", "a stream consists of lines such as"),
        ("- learn: [\n", "this is not YAML"),
        ("- learn: everything\n", "'everything' is no request"),
        ("- learn: missing.csv\n", "missing.csv cannot be read"),
    ],
)
def test_a_bad_stream_gets_one_sentence(read, digits, tmp_path, text, said):
    other = int((digits.train.y != 0).nonzero()[0])
    (tmp_path / "few.csv").write_text(f"{other}\n")
    with pytest.raises(UserError, match=said.replace("image 0,", f"image {other},")) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_gets_one_sentence(digits, tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_requests(tmp_path / "stream.yaml", digits.train, run=Run())


def test_a_request_must_ask_for_something_and_not_for_its_contrary(tiny):
    with pytest.raises(UserError, match="nothing is asked"):
        Request()
    with pytest.raises(UserError, match="no images to forget"):
        Request(forget=tiny([]))
    with pytest.raises(UserError, match="to be learnt and to be forgotten"):
        Request(learn=tiny([1, 2]), forget=tiny([2]))
    with pytest.raises(UserError, match="differ in shape or classes"):
        Request(learn=tiny([1]), forget=tiny([2]).but(classes=("a", "b", "c", "d")))
    assert Request(learn=tiny([1, 2]), forget=tiny([3])).title == "learn 2 images, forget 1 images"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((("learn", [1, 2]), ("forget", [3])), "request 2: image 3 is to be forgotten, but was not learnt"),
        ((("learn", [1, 2]), ("learn", [2])), "request 2: image 2 was learnt before"),
        ((("learn", [1, 2]), ("forget", [2]), ("forget", [2])), "request 3: image 2 was forgotten before"),
        ((("learn", [1, 2]), ("forget", [2]), ("learn", [2])), "request 3: image 2 was forgotten, and stays so"),
    ],
)
def test_requests_that_do_not_fit_together_are_refused(tiny, words, said):
    requests = [Request(**{verb: tiny(ids)}) for verb, ids in words]
    with pytest.raises(UserError, match=said):
        check_stream(requests, known=torch.zeros(0, dtype=torch.int64))


def test_a_stream_is_refused_before_any_work(tiny, model, digits):
    requests = [Request(learn=tiny([1, 2])), Request(forget=tiny([3]))]
    memory = Memory.empty(5, tiny([1]))
    with pytest.raises(UserError, match="was not learnt"):
        serve_stream("er", None, requests, memory, test=tiny([1]), run=Run())
    with pytest.raises(UserError, match="no requests"):
        serve_stream("er", None, [], memory, test=tiny([1]), run=Run())
    requests = [Request(learn=tiny([1, 2])), Request(forget=tiny([2]))]
    with pytest.raises(UserError, match="with no room in the memory"):
        serve_stream("er", None, requests, Memory.empty(0, tiny([1])), test=tiny([1]), run=Run())
    with pytest.raises(UserError, match="differ from the test images"):
        serve_stream("er", None, requests, memory, test=digits.test, run=Run())
