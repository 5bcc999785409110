"""The real download code against a local server that misbehaves. Nothing wrong is ever left at the final path."""

import contextlib
import dataclasses
import hashlib
import http.server
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from sanflow.data.fetch import Patience, fetch
from sanflow.errors import DataError, StorageError

BODY = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
SHA256 = hashlib.sha256(BODY).hexdigest()
HASTY = Patience(attempts=4, connect_seconds=2, stall_seconds=5, first_wait=0.001, longest_wait=0.01)


class Handler(http.server.BaseHTTPRequestHandler):
    """Asks the server's script what to do with the n-th request of a path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        requests = self.server.requests.setdefault(self.path, [])
        requests.append(self.headers.get("Range"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.server.scripts[self.path](self, len(requests))
        self.close_connection = True

    def log_message(self, *_):
        pass

    def start(self) -> int:
        """First byte that is asked for."""
        return int((self.headers.get("Range") or "bytes=0-")[6:-1])

    def answer(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def serve(self, body: bytes = BODY, until: int | None = None) -> None:
        """A right answer, with the range that was asked for; cut after byte `until`."""
        first = self.start()
        if first >= len(body):
            self.answer(416, Content_Range=f"bytes */{len(body)}")
            return
        headers = {"Content_Range": f"bytes {first}-{len(body) - 1}/{len(body)}"} if first else {}
        self.answer(206 if first else 200, body[first:until], len(body) - first, **headers)
        if until:
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        httpd.scripts, httpd.requests = {}, {}
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        yield httpd
        httpd.shutdown()


def script(server, function: Callable[[Handler, int], None], path: str = "/data.zip") -> str:
    server.scripts[path] = function
    return f"http://127.0.0.1:{server.server_port}{path}"


def left(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_whole_file_arrives_and_its_progress_is_reported(server, tmp_path):
    seen = []
    url = script(server, lambda handler, n: handler.serve())
    found = fetch([url], tmp_path / "a.zip", sha256=SHA256, patience=HASTY, report=lambda *now: seen.append(now))
    assert found == SHA256
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert left(tmp_path) == ["a.zip"]


def test_an_answer_of_unknown_length(server, tmp_path):
    def chunked(handler, n):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for first in range(0, len(BODY), 70_000):
            chunk = BODY[first : first + 70_000]
            handler.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    fetch([script(server, chunked)], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_a_redirect_is_followed(server, tmp_path):
    script(server, lambda handler, n: handler.serve(), "/there.zip")
    url = script(server, lambda handler, n: handler.answer(302, Location="/there.zip"))
    fetch([url], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_a_cut_connection_is_resumed(server, tmp_path):
    url = script(server, lambda handler, n: handler.serve(until=100_000 * n if n < 3 else None))
    fetch([url], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert server.requests["/data.zip"] == [None, "bytes=100000-", "bytes=200000-"]


def test_the_part_of_an_earlier_run_is_continued(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(BODY[:250_000])
    fetch([script(server, lambda handler, n: handler.serve())], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert server.requests["/data.zip"] == ["bytes=250000-"]


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(BODY)
    fetch([script(server, lambda handler, n: handler.serve())], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert left(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("old", [b"x" * 1000, b"x" * 400_000])
def test_the_part_of_another_file_is_thrown_away(server, tmp_path, old):
    (tmp_path / "a.zip.part").write_bytes(old)
    fetch([script(server, lambda handler, n: handler.serve())], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert (tmp_path / "a.zip").read_bytes() == BODY


@pytest.mark.parametrize(
    "wrong",
    [
        lambda handler: handler.answer(206, BODY[5:], Content_Range=f"bytes 5-{len(BODY) - 1}/{len(BODY)}"),
        lambda handler: handler.answer(206, BODY[1000:]),
        lambda handler: handler.answer(206, BODY[1000:], Content_Range="bytes nonsense"),
        lambda handler: handler.answer(200, BODY),
        lambda handler: handler.answer(416, Content_Range="bytes */7"),
    ],
)
def test_a_wrong_range_starts_anew(server, tmp_path, wrong):
    (tmp_path / "a.zip.part").write_bytes(BODY[:1000])
    url = script(server, lambda handler, n: wrong(handler) if n == 1 else handler.serve())
    fetch([url], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    assert server.requests["/data.zip"][-1] in {None, "bytes=1000-"}


def test_a_busy_server_is_asked_again(server, tmp_path):
    url = script(server, lambda handler, n: handler.answer(503) if n < 3 else handler.serve())
    fetch([url], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert len(server.requests["/data.zip"]) == 3


def test_a_missing_file_is_not_asked_for_twice_and_the_next_mirror_serves(server, tmp_path):
    gone = script(server, lambda handler, n: handler.answer(404), "/gone.zip")
    good = script(server, lambda handler, n: handler.serve())
    fetch([gone, good], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert server.requests["/gone.zip"] == [None]
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_a_second_mirror_continues_what_the_first_began(server, tmp_path):
    dying = script(
        server, lambda handler, n: handler.serve(until=1000) if n == 1 else handler.answer(503), "/dying.zip"
    )
    good = script(server, lambda handler, n: handler.serve())
    fetch([dying, good], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert server.requests["/data.zip"] == ["bytes=1000-"]
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_a_stalling_server_is_left(server, tmp_path):
    def stall(handler, n):
        if n == 1:
            handler.answer(200, BODY[:1000], len(BODY))
            time.sleep(20)
        else:
            handler.serve()

    start = time.monotonic()
    patience = dataclasses.replace(HASTY, stall_seconds=0.3)
    fetch([script(server, stall)], tmp_path / "a.zip", sha256=SHA256, patience=patience)
    assert time.monotonic() - start < 15
    assert (tmp_path / "a.zip").read_bytes() == BODY


def test_a_wrong_hash_leaves_nothing(server, tmp_path):
    url = script(server, lambda handler, n: handler.serve(b"<html>please log in</html>"))
    with pytest.raises(DataError, match=r"expected sha256 .* but got .*it was deleted"):
        fetch([url], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert left(tmp_path) == []


def test_when_no_mirror_serves_the_error_tells_of_each(server, tmp_path):
    gone = script(server, lambda handler, n: handler.answer(404), "/gone.zip")
    busy = script(server, lambda handler, n: handler.answer(503), "/busy.zip")
    cut = script(server, lambda handler, n: handler.serve(until=handler.start() + 10), "/cut.zip")
    closed = "http://127.0.0.1:9/closed.zip"
    with pytest.raises(DataError) as caught:
        fetch([gone, busy, cut, closed, "http://"], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    message = str(caught.value)
    assert "from one of 5 mirrors" in message
    assert "/gone.zip: 404 Not Found" in message
    assert "/busy.zip: 503 Service Unavailable" in message
    assert f"put it at {tmp_path / 'a.zip'} and start again" in message
    assert "0x" not in message
    assert left(tmp_path) == ["a.zip.part"]  # goes on from here next time; the final path is empty
    assert (tmp_path / "a.zip.part").read_bytes() == BODY[:40]


def test_a_file_found_there_is_checked(server, tmp_path):
    url = script(server, lambda handler, n: handler.serve())
    (tmp_path / "a.zip").write_bytes(BODY[:-1])
    fetch([url], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert (tmp_path / "a.zip").read_bytes() == BODY
    fetch([url], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert len(server.requests["/data.zip"]) == 1


def test_without_a_known_hash_nothing_is_resumed(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(b"something")
    url = script(server, lambda handler, n: handler.serve())
    assert fetch([url], tmp_path / "a.zip", sha256=None, patience=HASTY) == SHA256
    assert server.requests["/data.zip"] == [None]


def test_space_is_checked_before_the_first_byte(server, tmp_path):
    url = script(server, lambda handler, n: handler.serve())
    with pytest.raises(StorageError, match=r"Expected .* GB free in .* for the archive a\.zip"):
        fetch([url], tmp_path / "a.zip", sha256=SHA256, size=10**18, patience=HASTY)
    assert server.requests == {}
    huge = script(server, lambda handler, n: handler.answer(200, b"x", 10**18), "/huge.zip")
    with pytest.raises(StorageError, match="for the archive"):
        fetch([huge], tmp_path / "a.zip", sha256=SHA256, patience=HASTY)
    assert "a.zip" not in left(tmp_path)
