"""A server of the Open Inference Protocol for tests: a model behind HTTP in a thread, and ways to misbehave."""

import contextlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch

TYPES = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "UINT8": np.uint8}


class Server(ThreadingHTTPServer):
    """Serves `answer`, from an array of images to an array, as the model ``digits``.

    Args:
        answer: called with what was sent, in its type and shape.
        takes, gives: datatype and shape of the input and the output.
        outputs: all outputs, where there are several.
        extensions: of the server.
        reply: called with (path, content) for every request before anything else; what it returns is sent instead:
            (status, headers, body), or None to go on.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer, *, takes, gives, outputs=None, extensions=(), reply=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.reply, self.extensions = answer, reply, list(extensions)
        self.takes = {"name": "image", "datatype": takes[0], "shape": list(takes[1])}
        self.gives = {"name": "scores", "datatype": gives[0], "shape": list(gives[1])}
        self.outputs = outputs or [self.gives]
        self.requests, self.headers, self.rows = [], [], []

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # clients may hang up as they like
            super().handle_error(request, client_address)

    @property
    def host(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self):
        return f"{self.host}/v2/models/digits"

    @property
    def metadata(self):
        return {"name": "digits", "platform": "test", "inputs": [self.takes], "outputs": self.outputs}

    def infer(self, head, raw):
        [tensor] = head["inputs"]
        kind = TYPES[tensor["datatype"]]
        if "data" in tensor:
            assert not raw
            x = np.asarray(tensor["data"], dtype=kind)
        else:
            assert len(raw) == tensor["parameters"]["binary_data_size"]
            x = np.frombuffer(raw, dtype=np.dtype(kind).newbyteorder("<")).astype(kind)
        x = x.reshape(tensor["shape"])
        self.rows.append(len(x))
        assert tensor["name"] == self.takes["name"]
        y = np.asarray(self.answer(x))
        [wanted] = head["outputs"]
        described = next(o for o in self.outputs if o["name"] == wanted["name"])
        output = {"name": wanted["name"], "datatype": described["datatype"], "shape": list(y.shape)}
        return {"model_name": "digits", "outputs": [output | {"data": y.ravel().tolist()}]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for head and body

    def do_GET(self):
        if not self.instead(b""):
            known = {"/v2/models/digits": self.server.metadata, "/v2": {"extensions": self.server.extensions}}
            content = known.get(self.path)
            self.send(200 if content else 404, json.dumps(content or {"error": "there is no such model"}).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.instead(body):
            length = int(self.headers.get("Inference-Header-Content-Length", len(body)))
            content = self.server.infer(json.loads(body[:length]), body[length:])
            self.send(200, json.dumps(content).encode())

    def instead(self, body):
        self.server.requests.append(self.path)
        self.server.headers.append(dict(self.headers))
        made = self.server.reply(self.path, body) if self.server.reply else None
        if made is not None:
            status, headers, content = made
            self.send(status, content, headers)
        return made is not None

    def send(self, status, body, headers=None):
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *args):
        """Say nothing."""


@contextlib.contextmanager
def serving(answer, **how):
    """The server while the block runs."""
    server = Server(answer, **how)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def of_model(model):
    """The answers of a module."""

    def answer(x):
        with torch.no_grad():
            return model(torch.from_numpy(x.copy()).float()).numpy()

    return answer
