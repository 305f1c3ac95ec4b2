"""One HTTP server, asked politely and believed in nothing: sizes and times have limits, redirects are not followed."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from holdfast.errors import UserError
from holdfast.models.answers import Transient, Unanswered

__all__ = ["Endpoint", "Reply"]

MOST_BYTES = 64 * 2**20  # of a reply; scores of 10,000 classes for 64 images take about 13 MB of JSON
_CHUNK = 2**16
_IN_PASSING = (408, 425, 429, 502, 503, 504)
_ABOUT_THE_REQUEST = (400, 413, 415, 422, 500)  # the server is there, but refuses these images, or breaks on them


@dataclass(frozen=True)
class Reply:
    """What a server sent back."""

    status: int
    reason: str
    body: bytes

    def excerpt(self, length: int = 200) -> str:
        """What the body says, in one printable line: its ``error``, if it has one, or its beginning."""
        text = self.body[: 8 * length].decode("utf-8", errors="replace")
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(self.body)
            if isinstance(content, dict) and isinstance(content.get("error"), str):
                text = content["error"]
        return _printable(text, length)


class Endpoint:
    """A server, and the connection to it, which is kept open between requests.

    Args:
        base: scheme, host and port, such as ``http://127.0.0.1:8000``.
        timeout: seconds that connecting, and each wait for bytes, may take; an answer as a whole may take as long.
        headers: sent with each request.

    Raises:
        UserError: the host or the port is none, there is a password in the address, or a header is malformed.
    """

    def __init__(self, base: str, *, timeout: float, headers: Mapping[str, str] | None = None):
        parts = urllib.parse.urlsplit(base)
        if "@" in parts.netloc:
            raise UserError("leave name and password out of the address; set HOLDFAST_AUTHORIZATION instead.")
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host:
            raise UserError(f"{base} has no proper host and port.")
        for name, value in (headers or {}).items():
            if not f"{name}{value}".isprintable() or not f"{name}{value}".isascii():
                raise UserError(f"the header {name!r} must be one line of plain characters.")
        self.base, self._timeout, self._headers = base, timeout, dict(headers or {})
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=timeout)

    def get(self, path: str) -> Reply:
        """Ask for a page, once.

        Raises:
            UserError: as `post`, and where that raises `Transient`.
        """
        try:
            return self._request("GET", path, None, {})
        except Transient as error:
            raise Unanswered(f"{error}.") from error

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Send `body` and wait for the reply.

        Raises:
            Transient: nobody answers, or the server has no time now.
            UserError: the server refuses the request, or answers with what no client should accept; `Unanswered` when
                that has nothing to do with what was sent.
        """
        return self._request("POST", path, body, headers)

    def close(self) -> None:
        """Hang up; the next request connects anew."""
        self._connection.close()

    def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        where, kept_open = f"{self.base}{path}", self._connection.sock is not None
        try:
            try:
                reply, after, location = self._exchange(method, path, body, headers)
            except ConnectionError:
                if not kept_open:
                    raise
                self.close()  # servers close connections that idle; that is no failure
                reply, after, location = self._exchange(method, path, body, headers)
        except Exception as error:
            self.close()
            self._explain(where, error)
        if 300 <= reply.status < 400:
            goal = _printable(location, 200) or "nowhere"
            raise Unanswered(f"{where} redirects to {goal}, which is not followed; give that address if you trust it.")
        if reply.status >= 400 or reply.status < 200:
            said = reply.excerpt()
            sentence = f"{where} answered {reply.status} {reply.reason}".rstrip() + (f": {said}" if said else "")
            if reply.status in _IN_PASSING:
                raise Transient(sentence, after)
            kind = UserError if reply.status in _ABOUT_THE_REQUEST else Unanswered
            raise kind(f"{sentence.rstrip('.')}.")
        return reply

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[Reply, float, str]:
        """The reply, the seconds to wait before asking again, and where it redirects to."""
        deadline = time.monotonic() + self._timeout
        self._connection.request(method, path, body, {"Accept": "application/json", **self._headers, **headers})
        response = self._connection.getresponse()
        announced = response.length
        parts, size = [], 0
        while announced is None or size <= MOST_BYTES >= announced:
            part = response.read(_CHUNK)
            parts.append(part)
            size += len(part)
            if not part or size > MOST_BYTES:
                break
            if time.monotonic() > deadline:
                raise TimeoutError
        if max(size, announced or 0) > MOST_BYTES:
            raise _TooLarge
        if announced is not None and size < announced:
            raise http.client.IncompleteRead(b"", announced - size)
        reply = Reply(response.status, _printable(response.reason, 50), b"".join(parts))
        return reply, _seconds(response.getheader("Retry-After")), response.getheader("Location") or ""

    def _explain(self, where: str, error: Exception) -> NoReturn:
        """Raise what an exchange that failed means."""
        match error:
            case _TooLarge():
                raise UserError(f"{where} answered with more than {MOST_BYTES // 2**20} MiB, which is not read.")
            case TimeoutError():
                raise Transient(f"{where} did not answer within {self._timeout:g} seconds") from error
            case ssl.SSLError():
                said = _printable(getattr(error, "verify_message", "") or error.reason or "it failed", 100)
                raise Unanswered(f"{where}: there is no secure connection to be had: {said}.") from error
            case http.client.IncompleteRead():
                raise Transient(f"{where} broke off in the middle of its answer") from error
            case OSError():
                said = _printable(error.strerror or str(error) or type(error).__name__, 100)
                raise Transient(f"{where} cannot be reached: {said[:1].lower()}{said[1:]}") from error
            case http.client.HTTPException() | ValueError():
                raise Unanswered(f"{where} does not answer as a web server does: {type(error).__name__}.") from error
        raise error


class _TooLarge(Exception):  # noqa: N818 - never leaves this module
    """More bytes than are read."""


def _seconds(header: str | None) -> float:
    """The wait that a server asks for; a date, which is allowed too, counts as none."""
    return float(header) if header and header.isascii() and header.isdigit() else 0.0


def _printable(text: str, length: int) -> str:
    """One line without control characters, which could play tricks with a terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
