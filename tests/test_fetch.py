"""Fetching, against a server on this machine; no test needs a network."""

import contextlib
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trtkit import fetch

DATA = bytes(range(256)) * 40_000                   # 10 MB, more than one block
PAGE = b"  <!DOCTYPE html><html><title>Sign in</title></html>"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        start = int(self.headers["Range"].split("=")[1].rstrip("-")) if "Range" in self.headers and server.ranges else 0
        server.requests.append((self.path, self.headers.get("Range")))
        status, kind, body = server.answers.get(self.path, (200, "application/octet-stream", DATA))
        if start and start >= len(body):
            status, body = 416, b""
        self.send_response(206 if start and status == 200 else status)
        self.send_header("Content-Type", kind)
        if server.announce:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        limit = server.breaks.pop(0) if server.breaks else None
        self.wfile.write(body[start:][:limit])
        self.close_connection = True

    def log_message(self, *args):
        """Quiet."""


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Quiet too: a client that stops reading is part of the tests."""


@pytest.fixture
def server(cache, monkeypatch):
    """Serves DATA under any path that `answers` does not name; `breaks` ends connections after so many bytes."""
    server = Server(("127.0.0.1", 0), Handler)
    server.requests, server.answers, server.breaks, server.ranges, server.announce = [], {}, [], True, True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(fetch, "WAIT_S", 0)
    put(monkeypatch, server, "/file")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def put(monkeypatch, server, *paths: str, data: bytes = DATA):
    urls = tuple(f"http://127.0.0.1:{server.server_port}{path}" for path in paths)
    source = fetch.Source(urls, hashlib.sha256(data).hexdigest(), len(data), "ours")
    monkeypatch.setitem(fetch.SOURCES, "file.bin", source)


def get():
    return fetch.fetch("file.bin", progress=False)


def names() -> set[str]:
    return {path.name for path in fetch.folder().iterdir()} - {"file.bin.lock"}


def test_a_file_is_fetched_once_into_the_cache(server, cache):
    path = get()
    assert path == cache / "fetched" / "file.bin" and path.read_bytes() == DATA
    assert get() == path
    assert server.requests == [("/file", None)]
    assert names() == {"file.bin"}


def test_a_file_put_there_by_hand_is_used_and_a_damaged_one_is_fetched_again(server):
    fetch.folder().mkdir(parents=True)
    (fetch.folder() / "file.bin").write_bytes(DATA)
    get()
    assert server.requests == []
    (fetch.folder() / "file.bin").write_bytes(DATA[:-1] + b"x")
    assert get().read_bytes() == DATA and len(server.requests) == 1


def test_a_download_that_breaks_off_goes_on_where_it_was(server):
    server.breaks = [5_000_000]
    assert get().read_bytes() == DATA
    (_, first), (_, second) = server.requests
    assert first is None
    resumed_at = int(second.removeprefix("bytes=").rstrip("-"))
    assert 3_000_000 < resumed_at <= 5_000_000
    assert names() == {"file.bin"}


def test_what_has_come_is_kept_when_all_attempts_break_off(server, monkeypatch):
    waits = []
    monkeypatch.setattr(fetch, "WAIT_S", 2)
    monkeypatch.setattr(fetch.time, "sleep", waits.append)
    server.breaks = [3_000_000] * fetch.ATTEMPTS
    with pytest.raises(ConnectionError, match=r"file\.bin: got no file of 10,240,000 bytes.*put it at"):
        get()
    assert names() == {"file.bin.part"} and waits == [2, 4]     # none after the last
    kept = (fetch.folder() / "file.bin.part").stat().st_size
    assert kept > 3_000_000                                     # the attempts add up
    assert get().read_bytes() == DATA
    assert server.requests[-1] == ("/file", f"bytes={kept}-")


def test_a_part_that_was_whole_is_only_checked(server):
    fetch.folder().mkdir(parents=True)
    (fetch.folder() / "file.bin.part").write_bytes(DATA)
    assert get().read_bytes() == DATA and server.requests == []


def test_a_server_without_ranges_begins_again(server):
    server.ranges, server.breaks = False, [5_000_000]
    assert get().read_bytes() == DATA
    assert len(server.requests) == 2


def test_a_part_of_another_file_does_not_pass_the_hash(server):
    fetch.folder().mkdir(parents=True)
    (fetch.folder() / "file.bin.part").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="hash"):
        get()
    assert get().read_bytes() == DATA                           # and is gone by then


@pytest.mark.parametrize(
    ("kind", "body"), [("text/html; charset=utf-8", b"<p>Sign in</p>"), ("application/octet-stream", PAGE)]
)
def test_a_page_in_the_files_place_is_refused(server, kind, body):
    server.answers["/file"] = (200, kind, body)
    with pytest.raises(ValueError, match=rf"web page.*{body.strip()[:14].decode()}.*put it at"):
        get()
    assert names() == set() and len(server.requests) == 1       # it would only come again


def test_the_next_address_is_tried_after_a_page_or_an_error(server, monkeypatch):
    server.answers["/page"], server.answers["/gone"] = (200, "text/html", PAGE), (404, "text/html", PAGE)
    put(monkeypatch, server, "/page", "/gone", "/file")
    assert get().read_bytes() == DATA
    assert [path for path, _ in server.requests] == ["/page", "/gone", "/file"]


@pytest.mark.parametrize(
    ("body", "announce", "match"),
    [
        (DATA[:-1], True, r"file of 10,239,999 bytes, expected 10,240,000"),
        (DATA + b"x", True, r"file of 10,240,001 bytes, expected 10,240,000"),
        (DATA + b"x", False, r"more than 10,240,000 bytes"),
        (DATA[:-1] + b"x", True, r"hash"),
    ],
)
def test_another_file_is_refused(server, body, announce, match):
    server.answers["/file"], server.announce = (200, "application/octet-stream", body), announce
    with pytest.raises(ValueError, match=match):
        get()
    assert names() == set()


def test_a_break_is_seen_without_a_length_announced(server):
    server.announce, server.breaks = False, [5_000_000]
    assert get().read_bytes() == DATA
    assert len(server.requests) == 2 and server.requests[1][1].startswith("bytes=")


def test_an_answer_without_end_is_not_read_to_its_end(server, monkeypatch):
    def blocks():
        yield from [b"x" * fetch.BLOCK] * 20
        raise AssertionError("read on")

    class Endless(contextlib.nullcontext):
        status_code, headers, raise_for_status = 200, {}, staticmethod(lambda: None)

        def __enter__(self):
            return self

        def iter_content(self, size):
            return blocks()

    monkeypatch.setattr(fetch.requests, "get", lambda *args, **options: Endless())
    with pytest.raises(ValueError, match=r"more than 10,240,000 bytes"):
        get()
    assert names() == set()


def test_errors_of_the_server_say_what_it_answered(server):
    server.answers["/file"] = (503, "text/plain", b"")
    with pytest.raises(ConnectionError, match=r"503.*put it at"):
        get()


def test_no_network_is_a_connection_error_and_not_a_traceback_of_sockets(server, monkeypatch):
    monkeypatch.setitem(fetch.SOURCES, "file.bin", fetch.Source(("http://127.0.0.1:9/file",), "0" * 64, 1, "ours"))
    with pytest.raises(ConnectionError, match="put it at"):
        get()


def test_an_unknown_name_and_a_missing_pooch_say_what_to_do(server, monkeypatch):
    with pytest.raises(ValueError, match=r"got 'yolov9.weights'.*yolov3.weights"):
        fetch.fetch("yolov9.weights")
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(ModuleNotFoundError, match=r"\[fetch\]"):
        get()


def test_the_known_files_have_a_hash_a_size_and_a_licence():
    for name, source in fetch.SOURCES.items():
        assert len(bytes.fromhex(source.sha256)) == 32 and source.size_bytes > 100_000 and source.licence, name
        assert all(url.startswith(("https://", "http://images.cocodataset.org/")) for url in source.urls)
    assert fetch.SOURCES["yolov3.weights"].size_bytes == 4 * 62_001_757 + 20
