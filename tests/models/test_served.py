import json
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # test modules are imported one by one, and share the server

import holdfast.models.endpoint as endpoint
from holdfast import Run, UserError
from holdfast.evasion import Square
from holdfast.models import Queryable, Unanswered, connect, load_model, weights_hash
from protocol_server import of_model, serving

SHAPE = (3, 5, 4)
QUICK = {"retries": 1, "backoff": 0}


@pytest.fixture(scope="module")
def weight():
    return torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture(scope="module")
def net(weight):
    return lambda x: x.double().flatten(1) @ weight


@pytest.fixture(scope="module")
def x():
    return torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def serve(net):
    """Start servers; they stop with the test."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def start(answer=None, takes=("FP32", (-1, *SHAPE)), gives=("FP32", (-1, 4)), **how):
            answer = of_model(net) if answer is None else answer
            return stack.enter_context(serving(answer, takes=takes, gives=gives, **how))

        yield start


def test_a_served_model_answers_as_the_model_does(serve, net, x):
    server = serve()
    model = load_model(server.url, num_classes=4, image_shape=SHAPE)
    assert isinstance(model, Queryable)
    assert not model.training
    assert torch.equal(model(x), net(x).float())
    assert (model.num_classes, model.image_shape) == (4, SHAPE)
    assert server.requests == ["/v2/models/digits", "/v2", "/v2/models/digits/infer"]
    assert model.usage.queries == 6


def test_the_metadata_say_what_the_caller_does_not(serve, net, x):
    model = connect(serve().url)
    assert (model.num_classes, model.image_shape) == (4, SHAPE)
    assert torch.equal(model(x), net(x).float())


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((-1, *SHAPE), "nchw"),
        ((-1, -1, -1, -1), "nchw"),
        ((-1, 5, 4, 3), "nhwc"),
        ((-1, -1, -1, 3), "nhwc"),
        ((1, 5, 4, 3), "nhwc"),
        ((3, 5, 4), "nchw"),
        ((5, 4, 3), "nhwc"),
        ((-1, 60), "flat"),
    ],
)
@pytest.mark.parametrize("extensions", [(), ("binary_tensor_data",)])
def test_the_layout_is_read_off_the_metadata(serve, net, x, shape, layout, extensions):
    def answer(images):
        assert images.ndim == len(shape)
        assert all(want in (-1, got) for got, want in zip(images.shape, shape, strict=True))
        batch = torch.from_numpy(images.copy()).reshape(-1, *(SHAPE if layout != "nhwc" else (5, 4, 3)))
        scores = net(batch.permute(0, 3, 1, 2) if layout == "nhwc" else batch).numpy()
        return scores if len(shape) != 3 else scores[0]

    server = serve(answer, takes=("FP32", shape), extensions=extensions)
    model = connect(server.url, num_classes=4, image_shape=SHAPE)
    assert model.layout == layout
    assert torch.equal(model(x), net(x).float())
    assert max(server.rows) <= (1 if shape[0] == 1 else 60)
    sent = [h for h in server.headers if "Inference-Header-Content-Length" in h]
    assert bool(sent) == bool(extensions)


@pytest.mark.parametrize("extensions", [(), ("binary_tensor_data",)])
def test_bytes_are_sent_as_bytes(serve, net, x, extensions):
    def answer(images):
        assert images.dtype == np.uint8
        return net(torch.from_numpy(images.copy()) / 255).numpy()

    model = connect(serve(answer, takes=("UINT8", (-1, *SHAPE)), extensions=extensions).url)
    assert torch.equal(model(x), net((x * 255).round() / 255).float())


def test_half_precision_needs_the_binary_extension(serve, net, x):
    server = serve(takes=("FP16", (-1, *SHAPE)), extensions=["binary_tensor_data"])
    assert torch.equal(connect(server.url)(x), net(x.half()).float())
    with pytest.raises(UserError, match="FP16, which the server can only be sent in binary"):
        connect(serve(takes=("FP16", (-1, *SHAPE))).url)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_labels_become_one_hot_scores(serve, net, x, shape):
    def answer(images):
        labels = of_model(net)(images).argmax(1)
        return labels.reshape(len(labels), *shape[1:])

    model = connect(serve(answer, gives=("INT64", shape)).url, num_classes=4)
    assert torch.equal(model(x), torch.nn.functional.one_hot(net(x).argmax(1), 4).float())
    assert model.labels_only


def test_of_several_outputs_the_scores_are_taken(serve, net, x):
    outputs = [
        {"name": "label", "datatype": "INT64", "shape": [-1]},
        {"name": "features", "datatype": "FP32", "shape": [-1, 60]},
        {"name": "logits", "datatype": "FP32", "shape": [-1, 4]},
    ]
    model = connect(serve(outputs=outputs).url, num_classes=4)
    assert torch.equal(model(x), net(x).float())


def test_a_version_and_a_prefix_are_part_of_the_address(serve):
    seen = []

    def reply(path, body):
        seen.append(path)
        return (404, None, b"{}")

    server = serve(reply=reply)
    with pytest.raises(UserError, match="404"):
        connect(f"{server.host}/my/team/v2/models/digits/versions/3/")
    assert seen == ["/my/team/v2/models/digits/versions/3"]


ADDRESSES = [
    "http://", "http://localhost", "http://localhost/v2", "http://localhost/v2/models/", "https://h/models/a",
    "http://localhost/v2/models/a?x=1", "http://localhost/v2/models/a/infer", "http://local host/v2/models/a",
    "http://localhost:port/v2/models/a", "http://localhost:99999/v2/models/a", "http://me:pw@localhost/v2/models/a",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_is_no_address_of_a_model_is_refused_at_once(address):
    with pytest.raises(UserError) as caught:
        load_model(address)
    assert "\n" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_weights_of_a_deployed_model_are_refused():
    with pytest.raises(UserError, match="has weights of its own"):
        load_model("http://localhost/v2/models/a", weights="w.safetensors")


METADATA = {
    "no inputs": ({"inputs": []}, "metadata name no inputs"),
    "no outputs": ({"outputs": None}, "metadata name no outputs"),
    "two inputs": (
        {"inputs": [{"name": n, "datatype": "FP32", "shape": [-1, 3, 5, 4]} for n in "ab"]},
        r"takes 2 inputs \('a' \(FP32, -1x3x5x4\), 'b'",
    ),
    "words": ({"inputs": [{"name": "a", "datatype": "BYTES", "shape": [-1]}]}, "images are sent as FP32"),
    "no shape": ({"inputs": [{"name": "a", "datatype": "FP32"}]}, "lack name, datatype or shape of one of the inputs"),
    "shape of words": ({"inputs": [{"name": "a", "datatype": "FP32", "shape": ["n", 3]}]}, "lack name, datatype"),
    "other size": (
        {"inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 3, 224, 224]}]},
        r"takes 'a' \(FP32, -1x3x224x224\), but the images have shape 3x5x4",
    ),
    "other length": ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 99]}]}, "images have 60 values"),
    "videos": ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 3, 9, 5, 4]}]}, "is no batch of images"),
    "always 8": ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [8, 3, 5, 4]}]}, "always 8 images at once"),
    "names": ({"outputs": [{"name": "a", "datatype": "BYTES", "shape": [-1]}]}, "scores .* or labels .* are needed"),
    "other classes": ({"outputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 7]}]}, "7 classes, but 4"),
    "no scores": (
        {"outputs": [{"name": n, "datatype": "FP32", "shape": [-1, 9]} for n in "ab"]},
        "none of which holds a score for each class",
    ),
}


@pytest.mark.parametrize(("changes", "message"), METADATA.values(), ids=METADATA.keys())
def test_metadata_that_cannot_be_served_by_are_refused_in_one_sentence(serve, changes, message):
    server = serve()
    server.reply = lambda path, body: (200, None, json.dumps(server.metadata | changes).encode())
    with pytest.raises(UserError, match=message) as caught:
        connect(server.url, num_classes=4, image_shape=SHAPE)
    assert "\n" not in str(caught.value)


def outputs(**changes):
    return json.dumps(
        {"outputs": [{"name": "scores", "datatype": "FP32", "shape": [6, 4], "data": [0] * 24} | changes]}
    )


def row(count, **more):
    return outputs(shape=[count, 4], data=[0] * 4 * count, **more)


# Each: status, headers, body, words that the sentence must hold, and whether it is the service's fault of the moment.
REPLIES = {
    "truncated JSON": (200, {}, '{"outputs": [{"name": "sco', r"else than JSON, beginning '\{\"outputs\": \[\{", False),
    "empty": (200, {}, "", "something else than JSON", False),
    "a web page": (200, {}, "<html>\x1b[31mhi</html>", r"beginning '<html> \[31mhi</html>'", False),
    "a list": (200, {}, "[]", "a JSON list where an object is needed", False),
    "nested deeply": (200, {}, "[" * 100_000, "something else than JSON", False),
    "no outputs": (200, {}, "{}", "without the output 'scores', with no outputs", False),
    "another output": (200, {}, outputs(name="other"), "without the output 'scores', with 'other'", False),
    "no data": (200, {}, outputs(data=None), "no proper shape and data", False),
    "a negative shape": (200, {}, outputs(shape=[-1, 4]), "no proper shape", False),
    "few numbers": (200, {}, outputs(data=[0] * 23), r"says shape \[6, 4\], but holds 23 numbers", False),
    "ragged": (200, {}, outputs(data=[[0, 1], [2]]), "something else than numbers", False),
    "words": (200, {}, outputs(data=["a"] * 24), "something else than numbers", False),
    "huge": (200, {}, outputs(data=[10**400] * 24), "something else than numbers", False),
    "NaN": (200, {}, outputs(data=[float("nan")] * 24), "NaN or infinite scores for 6 of 6", False),
    "null": (200, {}, outputs(data=[None] * 24), "NaN or infinite scores", False),
    "five images": (200, {}, row(5), r"asked about 6 images and answered with shape \[5, 4\]", False),
    "other classes": (200, {}, outputs(shape=[6, 3], data=[0] * 18), "must give 4 scores an image, got 3", False),
    "maps": (200, {}, outputs(shape=[6, 2, 2]), r"got shape \(6, 2, 2\)", False),
    "bad request": (400, {}, '{"error": "too\\u0007 dark"}', r"answered 400 Bad Request: too dark\.$", False),
    "broken on it": (500, {}, "Traceback (most recent", "500 Internal Server Error: Traceback", False),
    "not found": (404, {}, '{"error": "gone"}', "answered 404 Not Found: gone", True),
    "no permission": (401, {}, "", r"answered 401 Unauthorized\.$", True),
    "busy": (503, {"Retry-After": "0"}, "later", "gave no answer in 2 attempts: .* answered 503 .*: later", True),
    "too many": (429, {}, "", "no answer in 2 attempts: .* 429 Too Many Requests", True),
    "moved": (307, {"Location": "http://elsewhere/x"}, "", "to http://elsewhere/x, which is not followed", True),
    "less than said": (200, {"Content-Length": "999", "Connection": "close"}, row(6), "broke off in the middle", True),
    "more than allowed": (200, {"Content-Length": str(2**40)}, "x", "more than 64 MiB", False),
}  # fmt: skip


@pytest.mark.parametrize(("status", "headers", "body", "message", "passing"), REPLIES.values(), ids=REPLIES.keys())
def test_whatever_comes_back_is_refused_in_one_sentence(serve, x, status, headers, body, message, passing):
    server = serve()
    model = connect(server.url, timeout=5, **QUICK)
    server.reply = lambda path, sent: (status, headers, body.encode())
    with pytest.raises(UserError, match=message) as caught:
        model(x)
    assert server.url in str(caught.value)
    assert str(caught.value).isprintable()
    assert isinstance(caught.value, Unanswered) == passing


def test_a_server_in_trouble_is_asked_again(serve, net, x):
    server = serve()
    model = connect(server.url, retries=2, backoff=0)
    troubles = [(503, None, b""), (200, {"Content-Length": "9", "Connection": "close"}, b"{")]
    server.reply = lambda path, body: troubles.pop() if troubles else None
    assert torch.equal(model(x), net(x).float())
    assert model.usage.calls == 3


def test_a_reply_is_not_read_beyond_the_limit(serve, x, monkeypatch):
    monkeypatch.setattr(endpoint, "MOST_BYTES", 10_000)
    server = serve()
    model = connect(server.url, **QUICK)
    chunks = b"".join(b"%x\r\n%s\r\n" % (1000, b" " * 1000) for _ in range(1000)) + b"0\r\n\r\n"
    server.reply = lambda path, body: (200, {"Transfer-Encoding": "chunked", "Content-Length": None}, chunks)
    with pytest.raises(UserError, match="which is not read"):
        model(x)


@pytest.fixture
def port():
    """A listening socket whose owner decides what to say."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening, listening.getsockname()[1]


def test_a_server_that_says_nothing_is_given_up(port):
    _, number = port
    began = time.monotonic()
    with pytest.raises(Unanswered, match=r"did not answer within 0\.2 seconds"):
        connect(f"http://127.0.0.1:{number}/v2/models/a", timeout=0.2)
    assert time.monotonic() - began < 5


def test_a_server_that_drips_is_given_up(serve, x, monkeypatch):
    monkeypatch.setattr(endpoint, "_CHUNK", 1)
    server = serve()
    model = connect(server.url, timeout=0.2, retries=0)
    now = [0.0]

    def later():
        now[0] += 0.1
        return now[0]

    monkeypatch.setattr(endpoint.time, "monotonic", later)
    with pytest.raises(Unanswered, match=r"did not answer within 0\.2 seconds"):
        model(x)


def test_nobody_at_home(port):
    listening, number = port
    listening.close()
    with pytest.raises(Unanswered, match="cannot be reached: connection refused"):
        connect(f"http://127.0.0.1:{number}/v2/models/a")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_something_else_than_a_web_server(port, scheme):
    listening, number = port

    def greet():
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"220 mail.example.org ESMTP\r\n")

    thread = threading.Thread(target=greet)
    thread.start()
    message = "does not answer as a web server does" if scheme == "http" else "no secure connection"
    with pytest.raises(Unanswered, match=message):
        connect(f"{scheme}://127.0.0.1:{number}/v2/models/a", timeout=5)
    thread.join()


def test_a_connection_that_the_server_closed_while_idle_is_no_failure(net, x):
    with serving(of_model(net), takes=("FP32", (-1, *SHAPE)), gives=("FP32", (-1, 4))) as server:
        model = connect(server.url, retries=0)
        server.reply = lambda path, body: None
        server.RequestHandlerClass = type("Hasty", (server.RequestHandlerClass,), {"timeout": 0.05})
        again = connect(server.url, retries=0)
        assert torch.equal(again(x[:2]), net(x[:2]).float())
        time.sleep(0.3)
        assert torch.equal(again(x[2:4]), net(x[2:4]).float())
        assert torch.equal(model(x), net(x).float())


def test_credentials_come_from_the_environment_and_are_never_shown(serve, monkeypatch):
    server = serve()
    monkeypatch.setenv("HOLDFAST_AUTHORIZATION", "Bearer s3cret")
    model = connect(server.url)
    assert {h.get("Authorization") for h in server.headers} == {"Bearer s3cret"}
    assert "s3cret" not in repr(model) + model.get_extra_state()
    monkeypatch.setenv("HOLDFAST_AUTHORIZATION", "a\r\nb: c")
    with pytest.raises(UserError, match="one line of plain characters"):
        connect(server.url)


def test_pixels_that_are_no_numbers_are_not_sent(serve, x):
    server = serve()
    model = connect(server.url)
    with pytest.raises(UserError, match="NaN and infinite pixels cannot be sent"):
        model(x * float("nan"))
    assert server.rows == []


def test_a_model_is_known_by_its_address_and_its_metadata(serve):
    server = serve()
    before = weights_hash(connect(server.url))
    assert weights_hash(connect(server.url, max_queries=5)) == before
    assert weights_hash(connect(f"{server.host}/v2/models/digits/")) != ""
    server.outputs = [server.gives | {"name": "logits"}]
    assert weights_hash(connect(server.url)) != before


def test_square_over_http_does_what_it_does_here(serve, net, x):
    class Here(torch.nn.Module):
        def forward(self, x):
            return net(x).float()

    y = net(x).argmax(1)
    attack = Square(eps=0.1, queries=40)
    direct = attack.run(Here(), x, y, run=Run())
    over_http = attack.run(connect(serve().url), x, y, run=Run())
    assert direct.success.any()
    assert torch.equal(over_http.x_adv, direct.x_adv)
    assert torch.equal(over_http.queries, direct.queries)
