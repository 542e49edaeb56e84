"""A local page and the JSON under it: what the papers' small web interfaces are made of.

    server = PageServer(page, {"/api": answer}, ("127.0.0.1", 8000))       # answer(parameters) -> JSON value
    serve_until_stopped(server)

The server is the standard library's: a page for one person or a group needs no more. A page is one HTML file that may
run its own script and style, ask its own server, and nothing else; what a person may get wrong (`InputError`) is
answered with status 400 and {"error": message}, a bug with 500 and a traceback in the log.
"""

import json
import logging
import signal
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from shared import InputError

logger = logging.getLogger(__name__)

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# The parameters of a request, as parse_qs gives them, to a JSON value. Raises InputError for what is asked wrongly.
Answer = Callable[[dict[str, list[str]]], Any]


class PageServer(ThreadingHTTPServer):
    """Serves one page at `/` and JSON at the paths of `answers`.

    Args:
        page: the HTML, as bytes. answers: path -> function.
        address: host and port; port 0 takes a free one.

    Raises InputError where the address cannot be served on.
    """

    daemon_threads = True

    def __init__(self, page: bytes, answers: Mapping[str, Answer], address: tuple[str, int]):
        self.page, self.answers = page, dict(answers)
        try:
            super().__init__(address, PageHandler)
        except (OSError, OverflowError) as error:
            raise InputError(f"host={address[0]} port={address[1]} cannot be served on: {error}") from None

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host}:{port}/"

    def is_addressed_by(self, host: str) -> bool:
        """Whether a Host header names this server.

        Another site's name can be made to point at 127.0.0.1; its script would then read what is served here.
        """
        name = urlsplit(f"//{host}").hostname
        return self.server_address[0] not in LOOPBACK or name in LOOPBACK


class PageHandler(BaseHTTPRequestHandler):
    """Routes of a PageServer."""

    server: PageServer
    server_version = "page"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds a connection may stay silent

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        try:
            if not self.server.is_addressed_by(self.headers.get("Host", "")):
                self._send_json(403, {"error": f"this server is {self.server.url}"})
            elif url.path == "/":
                self._send(200, "text/html; charset=utf-8", self.server.page)
            elif url.path in self.server.answers:
                parameters = parse_qs(url.query, keep_blank_values=True, errors="strict")
                self._send_json(200, self.server.answers[url.path](parameters))
            else:
                *paths, last = ["/", *self.server.answers]
                there = f"{', '.join(paths)} and {last}" if paths else last
                self._send_json(404, {"error": f"no such page: {url.path}; there are {there}"})
        except UnicodeDecodeError:
            self._send_json(400, {"error": "the parameters are not UTF-8"})
        except InputError as error:
            self._send_json(400, {"error": str(error)})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page has moved on to the next question
        except Exception:
            logger.exception("request failed: %s", url.path)
            self._send_json(500, {"error": "the search failed; the server's log says why"})

    def _send_json(self, status: int, answer: Any) -> None:
        # A lone surrogate, which a text from a PDF may hold, is no UTF-8.
        body = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")
        self._send(status, "application/json; charset=utf-8", body)

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        for name, value in SECURITY_HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args) -> None:
        logger.debug(format, *args)


def single_values(parameters: Mapping[str, list[str]], known: tuple[str, ...]) -> dict[str, str]:
    """Parameters that are given once. Raises InputError on an unknown or a repeated one."""
    for name, values in parameters.items():
        if name not in known:
            raise InputError(f"unknown parameter {name[:50]!r}: there are {', '.join(known)}")
        if len(values) > 1:
            raise InputError(f"{name} is given {len(values)} times")
    return {name: values[0] for name, values in parameters.items()}


def number(values: Mapping[str, str], name: str, kind: type, default: float) -> float:
    """The number that parameter `name` holds, of type `kind`, or the default."""
    if name not in values:
        return default
    try:
        return kind(values[name])
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} is {values[name][:50]!r}, but must be {what}") from None


def check_port(port: Any) -> int:
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        raise InputError(f"port={port}: must be a whole number from 0 to 65535")
    return port


def serve_until_stopped(server: PageServer) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is being answered and close the port."""

    def stop(signum: int, frame: object) -> None:
        # shutdown() waits for the loop that this very thread is running.
        threading.Thread(target=server.shutdown).start()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    with server:
        server.serve_forever(poll_interval=0.2)
