"""What every local page does: its routes, its refusals, and that no other site reads it."""

import http.client
import json
from contextlib import closing

import pytest

from shared import InputError
from shared.serving import PageServer, check_port, number, single_values
from shared.testing import answering


def answer(parameters: dict[str, list[str]]) -> dict:
    values = single_values(parameters, ("n", "why"))
    return {"twice": 2 * number(values, "n", int, 1), "why": values.get("why")}


@pytest.fixture(scope="module")
def server():
    with answering(
        PageServer(b"<!doctype html>", {"/api": answer, "/broken": lambda _: 1 / 0}, ("127.0.0.1", 0))
    ) as it:
        yield it


def get(server, path: str, host: str | None = None) -> tuple[int, dict, bytes]:
    with closing(http.client.HTTPConnection(*server.server_address, timeout=30)) as connection:
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()


def test_page_and_answers(server):
    status, headers, body = get(server, "/?q=anything")
    assert (status, body) == (200, b"<!doctype html>") and "default-src 'none'" in headers["Content-Security-Policy"]
    status, headers, body = get(server, "/api?n=21&why=%C3%BC%3F%22%3C")
    assert status == 200 and json.loads(body) == {"twice": 42, "why": 'ü?"<'}


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/api?n=x", 400, "n is 'x', but must be a whole number"),
        ("/api?m=1", 400, "unknown parameter 'm': there are n, why"),
        ("/api?n=1&n=2", 400, "n is given 2 times"),
        ("/api?why=%FF", 400, "not UTF-8"),
        ("/nowhere", 404, "no such page: /nowhere; there are /, /api and /broken"),
        ("/broken", 500, "the server's log says why"),
    ],
)
def test_refusals_are_one_message(server, path, status, message):
    found, _, body = get(server, path)
    assert found == status and list(json.loads(body)) == ["error"] and message in json.loads(body)["error"]


def test_a_name_of_another_site_that_leads_here_is_refused(server):
    port = server.server_address[1]
    assert get(server, "/api", host="evil.example")[0] == 403
    assert get(server, "/", host=f"evil.example:{port}")[0] == 403
    for name in ("127.0.0.1", "localhost", "[::1]"):
        assert get(server, "/api", host=f"{name}:{port}")[0] == 200


def test_a_server_for_all_machines_goes_by_any_name():
    with PageServer(b"", {}, ("0.0.0.0", 0)) as server:
        assert server.is_addressed_by("desk.example:8000")


def test_addresses_that_cannot_be_served_on(server):
    with pytest.raises(InputError, match="cannot be served on"):
        PageServer(b"", {}, server.server_address)
    for port in ("high", -1, 65536, True):
        with pytest.raises(InputError, match="port="):
            check_port(port)
