"""A deployed model, asked over HTTP by the Open Inference Protocol, version 2 (KServe, Triton, Seldon's MLServer, ...).

``GET .../v2/models/NAME`` says what the model takes and gives; ``POST .../infer`` asks it. The specification is at
https://github.com/kserve/open-inference-protocol. Whoever answers is a stranger: whatever comes back is verified, its
size is limited, and no redirect is followed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import UserError
from holdfast.models.endpoint import Endpoint, Reply
from holdfast.models.queryable import Queryable

__all__ = ["connect", "is_address"]

_FLOATS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}
_WHOLE = {"BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"}
_BINARY = "binary_tensor_data"  # the name under which servers announce that extension
_LAYOUTS: tuple[Literal["nchw", "nhwc"], ...] = ("nchw", "nhwc")


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """One input or output, as the metadata describe it."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name!r} ({self.datatype}, {'x'.join(map(str, self.shape))})"


def is_address(spec: str) -> bool:
    """Whether a model is named by an address rather than in another way."""
    return spec.startswith(("http://", "https://"))


def connect(
    url: str,
    *,
    num_classes: int | None = None,
    image_shape: Sequence[int] | None = None,
    timeout: float = 60.0,
    headers: Mapping[str, str] | None = None,
    **limits: Any,
) -> Queryable:
    """Make a model of one that is served.

    Its one input must take images: FP32 (also FP16, FP64), sent in [0, 1], or UINT8, sent in 0..255. Whether channels
    come first or last, or images are flat, is read off the metadata. Of several outputs the first floating-point one
    with a score for each class is taken. Triton's binary extension is used where the server announces it.

    Args:
        url: ``http://host:port/v2/models/NAME``, with ``/versions/VERSION`` if need be.
        num_classes, image_shape: of the task; by default what the metadata say.
        timeout: seconds a request may take.
        headers: sent with each request. The environment variable ``HOLDFAST_AUTHORIZATION`` gives the header
            ``Authorization``, so that no secret need stand in a command.
        limits: as `Queryable` takes them: `max_queries`, `max_rate`, `max_batch`, ...

    Raises:
        UserError: the address is no such one, nobody answers, or the model does not take images or give scores.
    """
    base, path = _split(url)
    secret = os.environ.get("HOLDFAST_AUTHORIZATION", "").strip()
    given = {"Authorization": secret} if secret else {}
    endpoint = Endpoint(base, timeout=timeout, headers={**given, **(headers or {})})
    metadata = _metadata(endpoint, path, url)
    takes, gives = _tensors(metadata, "inputs", url), _tensors(metadata, "outputs", url)
    if len(takes) != 1:
        raise UserError(f"{url} takes {len(takes)} inputs ({_listed(takes)}), but one of images is needed.")
    shape = None if image_shape is None else tuple(image_shape)
    layout, image, batched = _layout(takes[0], shape, url)
    output = _output(gives, num_classes, url)
    last = output.shape[-1] if len(output.shape) > 1 and output.shape[-1] > 1 else None
    if last is not None and num_classes is not None and last != num_classes:
        raise UserError(f"{url} is for {last} classes, but {num_classes} are needed.")
    binary = _speaks_binary(endpoint, path)
    if takes[0].datatype == "FP16" and not binary:
        raise UserError(
            f"{url} takes FP16, which the server can only be sent in binary, and it announces no {_BINARY}."
        )
    told = {key: metadata.get(key) for key in ("name", "versions", "platform", "inputs", "outputs")}
    if not batched or takes[0].shape[0] == 1:
        limits["max_batch"] = 1
    return Queryable(
        _Service(endpoint, f"{path}/infer", takes[0], output, batched=batched, binary=binary, url=url),
        num_classes=num_classes or last,
        image_shape=image,
        name=url,
        identity=f"{url} {json.dumps(told, sort_keys=True)}",
        pixels="uint8" if takes[0].datatype == "UINT8" else "float32",
        layout=layout,
        arrays="numpy",
        **limits,
    ).eval()


class _Service:
    """Asks a served model about one batch."""

    def __init__(
        self, endpoint: Endpoint, path: str, takes: _Tensor, gives: _Tensor, *, batched: bool, binary: bool, url: str
    ):
        self._endpoint, self._path, self._url = endpoint, path, url
        self._takes, self._gives, self._batched, self._binary = takes, gives, batched, binary

    def __call__(self, images: NDArray[Any]) -> NDArray[Any]:
        """Scores or labels of images, (N, ...)."""
        kind = _FLOATS.get(self._takes.datatype, np.uint8)
        images = images.astype(kind)
        if not np.isfinite(images).all():
            raise UserError(f"{self._url}: NaN and infinite pixels cannot be sent.")
        tensor: dict[str, Any] = {
            "name": self._takes.name,
            "shape": list(images.shape if self._batched else images.shape[1:]),
            "datatype": self._takes.datatype,
        }
        raw = images.astype(images.dtype.newbyteorder("<")).tobytes() if self._binary else b""
        tensor |= {"parameters": {"binary_data_size": len(raw)}} if raw else {"data": images.ravel().tolist()}
        head = json.dumps({"inputs": [tensor], "outputs": [{"name": self._gives.name}]}).encode()
        headers = {"Content-Type": "application/octet-stream" if raw else "application/json"}
        if raw:
            headers["Inference-Header-Content-Length"] = str(len(head))
        content = _content(self._endpoint.post(self._path, head + raw, headers), self._url)
        return self._read(content, len(images))

    def _read(self, content: Mapping[str, Any], count: int) -> NDArray[Any]:
        outputs = content.get("outputs")
        named = [o for o in outputs if isinstance(o, dict)] if isinstance(outputs, list) else []
        output = next((o for o in named if o.get("name") == self._gives.name), None)
        if output is None:
            names = ", ".join(repr(str(o.get("name")))[:50] for o in named[:5]) or "no outputs"
            raise UserError(f"{self._url} answered without the output {self._gives.name!r}, with {names}.")
        shape, data = output.get("shape"), output.get("data")
        if not _is_shape(shape) or not isinstance(data, list):
            raise UserError(f"{self._url}: its output {self._gives.name!r} has no proper shape and data.")
        try:
            values = np.asarray(data, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{self._url}: its output {self._gives.name!r} holds something else than numbers."
            ) from None
        assert isinstance(shape, list)
        if values.size != int(np.prod(shape)):
            raise UserError(f"{self._url}: its output says shape {shape}, but holds {values.size} numbers.")
        shape = shape if self._batched or (shape and shape[0] == 1) else [1, *shape]
        if not shape or shape[0] != count:
            raise UserError(f"{self._url} was asked about {count} images and answered with shape {shape}.")
        while len(shape) > 2 and shape[-1] == 1:  # what is left of pooled maps
            shape.pop()
        whole = output.get("datatype", self._gives.datatype) in _WHOLE
        if whole and not np.isfinite(values).all():
            raise UserError(f"{self._url}: its output {self._gives.name!r} holds NaN among whole numbers.")
        return values.reshape(shape).astype(np.int64 if whole else np.float64)


def _split(url: str) -> tuple[str, str]:
    """The server, and the path of the model on it."""
    match = re.fullmatch(r"(https?://[^/\s?#]+)((?:/[^\s?#]*)?/v2/models/[^/\s?#]+(?:/versions/[^/\s?#]+)?)/?", url)
    if match is None:
        raise UserError(f"{url!r} is no address of a served model, which looks like http://host:8000/v2/models/NAME.")
    return match[1], match[2]


def _metadata(endpoint: Endpoint, path: str, url: str) -> dict[str, Any]:
    return _content(endpoint.get(path), url)


def _content(reply: Reply, url: str) -> dict[str, Any]:
    """The JSON object of a reply."""
    try:
        content = json.loads(reply.body)
    except (ValueError, RecursionError):  # nested too deeply counts as damaged
        start = reply.excerpt(60)
        raise UserError(f"{url} answered with something else than JSON, beginning {start!r}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{url} answered with a JSON {type(content).__name__} where an object is needed.")
    return content


def _tensors(metadata: Mapping[str, Any], what: str, url: str) -> list[_Tensor]:
    found = metadata.get(what)
    if not isinstance(found, list) or not found:
        raise UserError(
            f"{url}: its metadata name no {what}; declare them on the server, or ask it by code of your own "
            "(holdfast.models.Queryable)."
        )
    tensors = []
    for each in found:
        known = isinstance(each, dict) and isinstance(each.get("name"), str) and isinstance(each.get("datatype"), str)
        if not known or not _is_shape(each.get("shape"), least=-1):
            raise UserError(f"{url}: its metadata lack name, datatype or shape of one of the {what}.")
        tensors.append(_Tensor(name=each["name"], datatype=each["datatype"].upper(), shape=tuple(each["shape"])))
    return tensors


def _is_shape(value: object, least: int = 0) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= 8
        and all(isinstance(n, int) and not isinstance(n, bool) and least <= n < 2**40 for n in value)
    )


def _layout(
    takes: _Tensor, image: tuple[int, ...] | None, url: str
) -> tuple[Literal["nchw", "nhwc", "flat"], tuple[int, ...] | None, bool]:
    """How images are laid out, their shape (C, H, W) if it is known, and whether several go into one request."""
    if takes.datatype not in (*_FLOATS, "UINT8"):
        raise UserError(f"{url} takes {takes}; images are sent as FP32, FP16, FP64 or UINT8.")
    batched = len(takes.shape) != 3
    if batched and takes.shape[0] not in (-1, 0, 1):
        raise UserError(f"{url} takes {takes}: always {takes.shape[0]} images at once; any number, or 1, is needed.")
    rest = takes.shape[1:] if batched else takes.shape
    if len(rest) == 1:
        if image is not None and rest[0] not in (-1, int(np.prod(image))):
            raise UserError(f"{url} takes {takes}, but the images have {int(np.prod(image))} values each.")
        return "flat", image, True
    if len(rest) != 3:
        raise UserError(f"{url} takes {takes}, which is no batch of images.")
    for layout in _preferred(rest):
        c, h, w = rest if layout == "nchw" else (rest[2], rest[0], rest[1])
        if image is None:
            return layout, (c, h, w) if min(c, h, w) > 0 else None, batched
        if all(there in (-1, here) for there, here in zip((c, h, w), image, strict=True)):
            return layout, image, batched
    assert image is not None
    raise UserError(f"{url} takes {takes}, but the images have shape {'x'.join(map(str, image))}.")


def _preferred(rest: tuple[int, ...]) -> tuple[Literal["nchw", "nhwc"], ...]:
    """Channels first unless only the last dimension can be channels."""
    return _LAYOUTS[::-1] if rest[2] in (1, 3) and rest[0] not in (1, 3) else _LAYOUTS


def _output(gives: list[_Tensor], num_classes: int | None, url: str) -> _Tensor:
    if len(gives) == 1:
        chosen = gives[0]
    else:
        scores = [t for t in gives if t.datatype in _FLOATS and len(t.shape) >= 2]
        fitting = [t for t in scores if t.shape[-1] in (-1, num_classes)] if num_classes is not None else scores
        if not fitting:
            raise UserError(f"{url} gives {_listed(gives)}, none of which holds a score for each class.")
        chosen = fitting[0]
    if chosen.datatype not in (*_FLOATS, *_WHOLE):
        raise UserError(f"{url} gives {chosen}; scores (FP32) or labels (INT64) are needed.")
    return chosen


def _speaks_binary(endpoint: Endpoint, path: str) -> bool:
    """Whether the server announces binary tensors; of one that says nothing about itself, no is assumed."""
    try:
        content = json.loads(endpoint.get(path.partition("/models/")[0]).body)
    except (UserError, ValueError, RecursionError):
        return False
    extensions = content.get("extensions") if isinstance(content, dict) else None
    return isinstance(extensions, list) and _BINARY in extensions


def _listed(tensors: list[_Tensor]) -> str:
    return ", ".join(map(str, tensors[:5])) + (" and more" if len(tensors) > 5 else "")
