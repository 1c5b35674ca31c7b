"""The web server: its answers, who may see names, its limits, TLS and the probe."""

import asyncio
import base64
import contextlib
import errno
import http.client
import json
import os
import re
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bcrypt
import psutil
import pytest

from reaper.web import app, client, server
from reaper.web.config import OPEN, WebConfig, WebConfigError, WebConfigFile
from reaper.web.passwords import Passwords
from reaper.web.server import Bounds, Stage
from tests.conftest import HoldLock, Tree, record
from tests.needs import not_tested, program
from tests.processes import PATIENCE, reap
from tests.serving import SECRET, Serving, full_of_names, put
from tests.sidecar import Sidecar, until

ROUTES = ("/", "/metrics", "/api/v1/locks", "/-/healthy", "/-/ready", "/nowhere")


# Answers


@pytest.mark.parametrize("path", ROUTES)
def test_get_and_head_agree_and_all_other_methods_are_refused(serving: Serving, path: str) -> None:
    served = serving()
    got, head = served.ask(path), served.ask(path, "HEAD")
    assert head.status == got.status == (404 if path == "/nowhere" else 200)
    assert head.text == ""  # type: ignore[attr-defined]
    # The metrics of the process itself change each time.
    dated = {"Date", "Content-Length"} if path == "/metrics" else {"Date"}
    assert {name: value for name, value in head.getheaders() if name not in dated} == {
        name: value for name, value in got.getheaders() if name not in dated
    }
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"):
        refused = served.ask(path, method)
        assert refused.status == 405
        assert refused.getheader("Allow") == "GET, HEAD"


@pytest.mark.parametrize("path", ROUTES)
def test_every_answer_has_strict_headers_and_no_version(serving: Serving, path: str) -> None:
    served = serving()
    for answer in (served.ask(path), served.ask(path, "POST")):
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        assert answer.getheader("Referrer-Policy") == "no-referrer"
        assert answer.getheader("Cache-Control") == "no-store"
        assert answer.getheader("X-Frame-Options") == "DENY"
        assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
        policy = answer.getheader("Content-Security-Policy") or ""
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.getheader("Server") == "reaper"


def test_metrics_are_compressed_and_selected_by_name_on_request(serving: Serving) -> None:
    served = serving()
    assert served.ask("/metrics").getheader("Content-Type", "").startswith("text/plain; version=")
    text = served.text("/metrics?name[]=reaper_build_info")
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    assert line.startswith("reaper_build_info{")
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE)
    connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
    assert connection.getresponse().read()[:2] == b"\x1f\x8b"
    connection.close()


def test_an_error_in_an_answer_is_500_and_counted_and_the_server_goes_on(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    served = serving()

    def broken() -> bool:
        raise RuntimeError("secret-session")

    monkeypatch.setattr(served.view, "ready", broken)
    answer = served.ask("/-/ready")
    assert answer.status == 500
    assert SECRET not in answer.text  # type: ignore[attr-defined]
    assert served.errors == 1
    assert served.status("/-/healthy") == 200
    assert capfd.readouterr().err == ""


# Limits


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 3_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345", 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123456789", 405),
        (b"<script> HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET /-/healthy\r\n\r\n", 400),  # HTTP 0.9
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01", 400),  # the begin of a TLS handshake
        (b"GET /-/healthy HTTP/1.0\r\n\r\n", 200),
        (b"GET /-/healthy HTTP/1.1\nHost: x\n\n", 200),
        (
            b"GET /-/healthy HTTP/1.0\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.0\r\n\r\n",
            200,
        ),
    ],
)
def test_a_request_is_bounded_and_its_one_answer_repeats_nothing_of_it(
    serving: Serving, sent: bytes, status: int
) -> None:
    served = serving()
    answer = served.raw(sent)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert answer.count(b"HTTP/1.1") == 1
    assert b"\r\nConnection: close\r\n" in answer
    assert b"script>" not in answer
    assert served.errors == 0


def test_a_client_that_sends_nothing_is_no_error(serving: Serving) -> None:
    served = serving()
    with socket.create_connection(("127.0.0.1", served.port)):
        until(lambda: served.listener.connections)
    until(lambda: not served.listener.connections)
    assert served.errors == 0


def test_a_server_that_stops_cuts_off_its_clients_and_frees_its_port(serving: Serving) -> None:
    served = serving()
    with socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE) as connection:
        until(lambda: served.listener.connections)
        served.web.stop()
        assert connection.recv(1) == b""
    with socket.create_server(("127.0.0.1", served.port)):
        pass
    assert served.errors == 0


def test_single_bytes_do_not_extend_the_deadline_of_a_request(serving: Serving) -> None:
    """The deadline is for the whole request."""
    served = serving(bounds=Bounds(head_seconds=0.5))
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")

        def ended() -> bool:
            try:
                connection.sendall(b"x")
            except OSError:
                return True
            return False

        until(ended, "the client is cut off while it sends")
    until(lambda: not served.listener.connections)


def test_a_client_that_does_not_read_its_answer_is_cut_off(serving: Serving) -> None:
    served = serving(bounds=Bounds(answer_seconds=0.5))
    for number in range(20_000):
        put(served.inventory, session=f"{number}{'x' * 200}")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", served.port))
        sock.sendall(b"GET /api/v1/locks HTTP/1.0\r\n\r\n")
        until(
            lambda: [
                open_one
                for open_one in served.listener.connections.values()
                if open_one.stage is Stage.ANSWERING
            ]
        )
        until(lambda: not served.listener.connections)
    assert served.errors == 0


@pytest.mark.parametrize(
    ("stages", "cut"),
    [
        ([Stage.ANSWERING, Stage.READING_REQUEST, Stage.READING_REQUEST], 1),
        ([Stage.READING_REQUEST, Stage.ANSWERING, Stage.ANSWERED], 2),
        ([Stage.ANSWERING, Stage.ANSWERING, Stage.ANSWERING], 0),
    ],
    ids=["the eldest that still asks", "one that is answered", "the eldest"],
)
def test_at_the_limit_of_connections_one_is_cut_off_for_a_new_client(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, stages: list[Stage], cut: int
) -> None:
    # Otherwise a fast machine answers a request first, and nothing must be cut off.
    monkeypatch.setattr(server, "_MIN_REQUEST_SECONDS", 0.0)
    served = serving(bounds=Bounds(connections=3, head_seconds=3600))
    with contextlib.ExitStack() as stack:
        slow = []
        for number in range(3):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            slow.append(connection)
            until(lambda wanted=number + 1: len(served.listener.connections) == wanted)  # type: ignore[misc]
        for open_one, stage in zip(served.listener.connections.values(), stages, strict=True):
            open_one.stage = stage
        assert served.status("/-/healthy") == 200
        slow[cut].settimeout(PATIENCE)
        assert slow.pop(cut).recv(1) == b""
        until(lambda: len(served.listener.connections) == 2)
        for connection in slow:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)


def test_a_client_that_has_just_connected_is_not_cut_off_for_the_next_one(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_MIN_REQUEST_SECONDS", 3600.0)
    served = serving(bounds=Bounds(connections=1))
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        until(lambda: served.listener.connections)
        assert [served.status("/-/healthy") for _ in range(3)] == [200] * 3
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)


@pytest.mark.parametrize("limited", [False, True])
def test_a_thousand_slow_clients_block_nobody_and_exhaust_nothing(
    tree: Tree, hold: HoldLock, limited: bool
) -> None:
    """Even a sidecar with few descriptors serves 1,000 slow clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1500:
        not_tested(f"1,000 clients with {hard} descriptors", cure="ulimit -Hn 1500")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    hold("held")
    sidecar = Sidecar(tree.root, wrap=("prlimit", "--nofile=80:80") if limited else ())
    process = psutil.Process(sidecar.process.pid)
    slow = []
    try:
        until(lambda: sidecar.status("/-/ready") == 200)
        most = process.num_threads() + 1  # the rendering thread starts with its first job
        most_fds = process.num_fds() + 64
        for _ in range(1000):
            connection = socket.create_connection(("127.0.0.1", sidecar.port), timeout=PATIENCE)
            connection.sendall(b"GET / HTTP/1.1\r\n")
            slow.append(connection)
            if len(slow) % 50 == 0:
                assert sidecar.status("/-/healthy") == 200
                assert sidecar.metric("reaper_build_info") == 1
                assert process.num_threads() <= most
                assert process.num_fds() < most_fds
        assert sidecar.metric("reaper_errors_total", kind="web") == 0
        assert sidecar.stop() == 0
    finally:
        for connection in slow:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_free_descriptor_the_server_counts_an_error_and_goes_on(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = socket.socket.accept
    refusals = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "gone")]

    def scarce(listening: socket.socket) -> Any:
        if refusals:
            raise refusals.pop(0)
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", scarce)
    served = serving()
    assert served.status("/-/healthy") == 200
    assert not refusals
    assert served.errors == 1


def test_a_connection_that_cannot_be_configured_is_closed_and_counted(serving: Serving) -> None:
    configs: list[WebConfig] = []
    served = serving(config=lambda: configs[0])
    assert served.raw(b"") == b""
    until(lambda: served.errors == 1)
    configs.append(OPEN)
    assert served.status("/-/healthy") == 200


# Names


@pytest.mark.parametrize(
    ("peer", "headers", "local"),
    [
        ("127.0.0.1", {"host": "localhost:9789"}, True),
        ("127.0.0.1", {"host": "localhost"}, True),
        ("127.9.9.9", {"host": "127.0.0.1:9789"}, True),
        ("::1", {"host": "[::1]:9789"}, True),
        ("::ffff:127.0.0.1", {"host": "LOCALHOST"}, True),
        ("127.0.0.1", {}, False),
        ("127.0.0.1", {"host": ""}, False),
        ("127.0.0.1", {"host": "evil.example:9789"}, False),
        ("127.0.0.1", {"host": "localhost.evil.example"}, False),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example"}, False),
        ("127.0.0.1", {"host": "localhost,evil.example"}, False),
        ("10.0.0.1", {"host": "localhost:9789"}, False),
        ("::ffff:10.0.0.1", {"host": "localhost:9789"}, False),
        ("fe80::1%eth0", {"host": "localhost:9789"}, False),
        ("127.0.0.1", {"host": "localhost", "x-forwarded-for": "10.0.0.1"}, False),
        ("127.0.0.1", {"host": "localhost", "x-forwarded-host": "x"}, False),
        ("127.0.0.1", {"host": "localhost", "forwarded": "for=10.0.0.1"}, False),
        ("127.0.0.1", {"host": "localhost", "x-real-ip": "10.0.0.1"}, False),
        ("127.0.0.1", {"host": "localhost", "via": "1.1 proxy"}, False),
        ("127.0.0.1", {"host": "localhost", "x_forwarded_for": "10.0.0.1"}, False),
    ],
)
def test_only_loopback_peers_are_local(peer: str, headers: dict[str, str], local: bool) -> None:
    assert app._is_local(peer, headers) is local


@pytest.mark.parametrize("path", ["/", "/api/v1/locks"])
@pytest.mark.parametrize(
    ("show_sessions", "headers", "shown"),
    [
        ("local", {}, True),
        ("local", {"Host": "evil.example"}, False),
        ("local", {"X_Forwarded_For": "127.0.0.1"}, False),
        ("authenticated", {}, False),
        ("all", {"Host": "evil.example", "Via": "x"}, True),
    ],
)
def test_session_names_are_shown_only_to_clients_that_may_see_them(
    serving: Serving, path: str, show_sessions: str, headers: dict[str, str], shown: bool
) -> None:
    served = serving(inventory=full_of_names(), show_sessions=show_sessions)
    text = served.text(path, **headers)
    assert (SECRET in text) is shown
    assert ("REAPER_SHOW_SESSIONS=all" in text) is not shown


def test_the_metrics_never_name_a_session(serving: Serving) -> None:
    assert SECRET not in serving(inventory=full_of_names(), show_sessions="all").text("/metrics")


# JSON


def test_the_json_has_the_schema_of_the_list_command(tree: Tree, hold: HoldLock) -> None:
    hold("held")
    tree.lock("pending", record(2**22 + 1))
    tree.store({"k": {"sessionId": "pending", "status": "running"}})
    sidecar = Sidecar(tree.root)
    until(lambda: sidecar.status("/-/ready") == 200)
    served = json.loads(sidecar.get("/api/v1/locks"))
    listed = json.loads(reap("list", "--json", "--state-dir", tree.root).stdout)
    assert served.keys() == listed.keys()
    assert served["summary"].keys() == listed["summary"].keys()
    assert served["summary"]["verdicts"] == listed["summary"]["verdicts"]
    assert served["summary"]["stuck"] == listed["summary"]["stuck"] == 0
    changing = {"age_seconds", "outcome", "run", "session_key", "not_removed_because"}
    changing |= {"not_removed_text"}
    for lock in listed["locks"]:
        (same,) = [shown for shown in served["locks"] if shown["path"] == lock["path"]]
        assert list(same) == list(lock)
        for key in lock.keys() - changing:
            assert same[key] == lock[key], key
        assert same["age_seconds"] == pytest.approx(lock["age_seconds"], abs=PATIENCE)


def test_json_without_names_keeps_every_field_and_is_null_where_a_name_would_be(
    serving: Serving,
) -> None:
    served = serving(inventory=full_of_names())
    shown = json.loads(served.text("/api/v1/locks"))
    hidden = json.loads(served.text("/api/v1/locks", Host="evil.example"))
    for lock, nameless in zip(shown["locks"], hidden["locks"], strict=True):
        assert list(lock) == list(nameless)
        differing = {key for key in lock if lock[key] != nameless[key]} - {"age_seconds"}
        assert differing <= {"path", "session", "session_key", "note"}
        assert {nameless[key] for key in ("path", "session", "session_key", "note")} == {None}
    assert hidden["summary"]["stuck"] == 1
    assert hidden["summary"]["no_hold_proof"] == 1
    unnamed = {"path": None, "reason": "unreadable", "note": None}
    assert hidden["summary"]["skipped"] == [unnamed]
    assert "REAPER_SHOW_SESSIONS=all" in hidden["summary"]["names_hidden"]
    assert shown["summary"].keys() == hidden["summary"].keys() - {"names_hidden"}


def test_many_locks_are_sent_in_pieces_that_form_one_object(serving: Serving) -> None:
    served = serving()
    assert json.loads(served.text("/api/v1/locks"))["locks"] == []
    for number in range(3000):
        put(served.inventory, session=f"s{number}", age=float(number))
    assert len(list(served.view.json(names=True))) > 10
    locks = json.loads(served.text("/api/v1/locks"))["locks"]
    assert [lock["session"] for lock in locks] == [f"s{number}" for number in reversed(range(3000))]


# Readers do not slow the worker


@pytest.mark.parametrize("path", ["/", "/api/v1/locks"])
def test_page_and_json_are_rendered_once_for_all_requests_within_a_second(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    served = serving()
    put(served.inventory, session="first")
    monkeypatch.setattr(app, "_CACHE_SECONDS", 3600.0)
    assert "first" in served.text(path)
    put(served.inventory, session="newcomer")
    again, head = served.ask(path), served.ask(path, "HEAD")
    assert "newcomer" not in again.text  # type: ignore[attr-defined]
    assert head.getheader("Content-Length") == again.getheader("Content-Length")
    assert re.search(r'reaper_locks{.*verdict="held"} 2', served.text("/metrics"))
    monkeypatch.setattr(app, "_CACHE_SECONDS", 0.0)
    assert "newcomer" in served.text(path)


@pytest.mark.parametrize("path", ["/", "/api/v1/locks"])
def test_an_answer_with_names_is_never_sent_to_clients_that_may_not_see_them(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    served = serving(inventory=full_of_names())
    monkeypatch.setattr(app, "_CACHE_SECONDS", 3600.0)
    for _ in range(2):
        assert SECRET in served.text(path)
        assert SECRET not in served.text(path, Host="evil.example")


@pytest.mark.parametrize("path", ["/", "/api/v1/locks", "/metrics"])
def test_one_answer_is_rendered_at_a_time_and_health_does_not_wait_for_it(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    served = serving()
    rendering, go_on = threading.Event(), threading.Event()

    def slowly(*, names: bool) -> Iterator[bytes]:
        rendering.set()
        assert go_on.wait(20)
        yield b"rendered"

    monkeypatch.setattr(served.view, "json", slowly)
    with ThreadPoolExecutor() as clients:
        first = clients.submit(served.text, "/api/v1/locks")
        assert rendering.wait(20)
        second = clients.submit(served.status, path)
        until(lambda: served.web._renderer.worker.waiting() == 1)
        assert served.status("/-/healthy") == 200
        assert not second.done()
        go_on.set()
        assert first.result() == "rendered"
        assert second.result() == 200


def test_a_client_that_does_not_read_its_answer_blocks_no_other(serving: Serving) -> None:
    served = serving()
    for number in range(20_000):
        put(served.inventory, session=f"{number}{'x' * 200}")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", served.port))
        sock.sendall(b"GET /api/v1/locks HTTP/1.0\r\n\r\n")
        assert sock.recv(1)
        assert served.status("/metrics") == 200
        assert served.listener.connections


def test_an_answer_that_cannot_be_rendered_is_500_and_the_next_one_is_rendered(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serving()

    def broken(*, names: bool) -> Iterator[bytes]:
        yield b"{"
        raise RuntimeError(SECRET)

    with monkeypatch.context() as patch:
        patch.setattr(served.view, "json", broken)
        assert served.status("/api/v1/locks") == 500
    assert served.errors == 1
    assert json.loads(served.text("/api/v1/locks"))["locks"] == []


# The web configuration


HASH = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()


def basic(user: str = "alice", password: str = "right") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def with_users(**users: str) -> dict[str, Any]:
    return {"config": lambda: WebConfig(users=users or {"alice": HASH})}


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/v1/locks", "/nowhere"])
def test_with_users_all_paths_but_health_need_a_password(serving: Serving, path: str) -> None:
    served = serving(inventory=full_of_names(), **with_users())
    refused = served.ask(path)
    assert refused.status == 401
    assert refused.getheader("WWW-Authenticate", "").startswith("Basic ")
    for wrong in (
        basic(password="wrong"),
        basic("bob"),
        basic("Alice"),
        "Basic !!!",
        "Basic",
        "Bearer " + basic().split()[1],
        "Basic " + base64.b64encode(b"alice").decode(),
    ):
        assert served.status(path, Authorization=wrong) == 401, wrong
    assert served.status(path, Authorization=basic()) != 401
    assert served.status(path, Authorization=basic().replace("Basic", "bAsIc")) != 401
    assert served.status("/-/healthy") == served.status("/-/ready") == 200


def test_the_gateway_check_needs_no_password_but_names_no_holder_without_one(
    serving: Serving,
) -> None:
    alone, guarded = serving(), serving(**with_users())
    for served in (alone, guarded):
        assert served.status("/-/gateway") == 200
        served.wedged = True
        assert served.status("/-/gateway") == served.status("/-/gateway", "HEAD") == 503
    assert json.loads(alone.text("/-/gateway")) == {"wedged": True, "holders": [{"pid": 7}]}
    assert json.loads(guarded.text("/-/gateway")) == {"wedged": True}


def test_a_client_with_the_password_sees_names_from_anywhere(serving: Serving) -> None:
    served = serving(inventory=full_of_names(), show_sessions="authenticated", **with_users())
    assert SECRET in served.text("/", Host="reaper.example", Authorization=basic())


def test_bcrypt_runs_once_for_a_right_password_and_each_time_for_a_wrong_one_or_an_unknown_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[str] = []
    real = bcrypt.checkpw

    def counted(password: bytes, hashed: bytes) -> bool:
        checked.append(hashed.decode())
        return real(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    dearer = bcrypt.hashpw(b"x", bcrypt.gensalt(5)).decode()
    users = {"alice": HASH, "bob": dearer}
    passwords = Passwords()

    def right(users: dict[str, str], user: str, password: bytes) -> bool:
        return asyncio.run(passwords.verify(users, user, password))

    assert all(right(users, "alice", b"right") for _ in range(10))
    assert checked == [HASH]
    assert not any(right(users, "alice", b"wrong") for _ in range(3))
    assert checked == [HASH] * 4
    assert not right(users, "nobody", b"x")  # the right password of bob, whose hash is compared
    assert checked == [HASH] * 4 + [dearer]
    assert right(users, "alice", b"right")  # wrong passwords remove nothing from the cache
    assert len(checked) == 5
    changed = {"alice": bcrypt.hashpw(b"new", bcrypt.gensalt(4)).decode()}
    assert not right(changed, "alice", b"right")
    assert right(changed, "alice", b"new")
    assert passwords._remembered.keys() == {"alice"}


def test_only_the_first_72_bytes_of_a_password_count() -> None:
    def right(hashed: str, password: bytes) -> bool:
        return asyncio.run(Passwords().verify({"alice": hashed}, "alice", password))

    hashed = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert right(hashed, b"x" * 100)
    assert not right(hashed, b"x" * 71 + b"y" * 30)
    assert not right(hashed, b"\0")
    older = hashed.replace("$2b$", "$2y$")  # as htpasswd writes
    assert right(older, b"x" * 72)


def test_a_flood_of_passwords_is_refused_and_known_users_are_not(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serving(**with_users())
    assert served.status("/", Authorization=basic()) == 200
    go_on = threading.Event()
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: not go_on.wait(60))
    flood = [
        threading.Thread(target=served.status, kwargs={"Authorization": basic(password="wrong")})
        for _ in range(4)
    ]
    try:
        for thread in flood:
            thread.start()
        until(lambda: len(served.web._passwords._checks) == 4)
        turned_away = served.ask("/", Authorization=basic(password="other"))
        assert turned_away.status == 429
        assert turned_away.getheader("Retry-After") == "1"
        assert served.status("/", Authorization=basic()) == 200
        assert served.status("/-/healthy") == 200
    finally:
        go_on.set()
        for thread in flood:
            thread.join()


def test_a_client_that_disconnects_counts_until_its_password_is_checked(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise clients that disconnect can queue any number of checks."""
    served = serving(**with_users(), bounds=Bounds(answer_seconds=0.5))
    go_on = threading.Event()
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: not go_on.wait(60))
    wrong = basic(password="wrong")
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                connection = stack.enter_context(
                    socket.create_connection(("127.0.0.1", served.port))
                )
                connection.sendall(f"GET / HTTP/1.0\r\nAuthorization: {wrong}\r\n\r\n".encode())
            until(lambda: len(served.web._passwords._checks) == 4)
        until(lambda: not served.listener.connections)
        assert served.status("/", Authorization=wrong) == 429
    finally:
        go_on.set()
    until(lambda: served.status("/", Authorization=wrong) == 401)
    assert served.errors == 0


_PAIR = "tls_server_config:\n  cert_file: x\n  key_file: x\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must be a mapping of keys and values"),
        ("x: [", "invalid YAML"),
        ("\0", "invalid YAML"),
        ("x: !!python/object/apply:os.getpid []", "invalid YAML"),
        ("? [a]\n: b", "invalid YAML"),
        ("tls_config: {}", "tls_config is not supported; use one of tls_server_config"),
        ("rate_limit: {interval: 1s, burst: 20}", "rate_limit is not supported"),
        ("tls_server_config: {cert: x}", "cert is not supported"),
        ("tls_server_config: {cipher_suites: [x]}", "cipher_suites is not supported"),
        ("tls_server_config: {curve_preferences: [x]}", "curve_preferences is not supported"),
        ("tls_server_config: {cert_file: x}", "cert_file and key_file are required"),
        ("tls_server_config: {cert_file: no, key_file: no}", "must be text"),
        ("tls_server_config: {cert_file: absent, key_file: absent}", "cannot use"),
        ("tls_server_config: {cert_file: web.yml, key_file: web.yml}", "cannot use"),
        (
            "tls_server_config: {cert_file: x, key_file: x, client_auth_type: RequestClientCert}",
            "RequestClientCert is not supported; use one of NoClientCert",
        ),
        (
            "tls_server_config: {cert_file: x, key_file: x, client_ca_file: x}",
            "need a client_auth_type",
        ),
        (
            "tls_server_config: {cert_file: x, key_file: x, client_allowed_sans: [x]}",
            "need a client_auth_type",
        ),
        (
            _PAIR + "  client_auth_type: VerifyClientCertIfGiven",
            "needs a client_ca_file",
        ),
        ("tls_server_config: {cert_file: x, key_file: x, min_version: TLS11}", "TLS11 is not"),
        ("tls_server_config: {cert_file: x, key_file: x, min_version: 12}", "must be text"),
        (
            _PAIR + "  min_version: TLS13\n  max_version: TLS12",
            "min_version is above max_version",
        ),
        ("http_server_config: {http2: true}", "http2: not supported"),
        ("http_server_config: {headers: {Set-Cookie: x}}", "Set-Cookie is not supported"),
        ("http_server_config: {headers: {X-Frame-Options: x}}", "use one of deny, sameorigin"),
        ("http_server_config: {headers: {X-Frame-Options: 1}}", "X-Frame-Options: must be text"),
        ("http_server_config: {headers: []}", "headers: must be a mapping of keys and values"),
        ("http_server_config: {http2: maybe}", "http2: must be true or false"),
        ("tls_server_config: {1: x}", "tls_server_config: write each key in quotes"),
        ("tls_server_config: {client_allowed_sans: x}", "client_allowed_sans: must be a list"),
        ("tls_server_config: {client_allowed_sans: [1]}", "client_allowed_sans[0]: must be text"),
        ('"a\\nb - at `$.x`": 1', "the file: "),
        ("basic_auth_users: {alice: }", "basic_auth_users: alice: must be text"),
        ('basic_auth_users: {alice: ""}', "basic_auth_users: alice: not a bcrypt hash"),
        (
            'http_server_config: {headers: {X-XSS-Protection: "a\\r\\nb"}}',
            "must be printable ASCII",
        ),
        ("basic_auth_users: {alice: secret}", "not a bcrypt hash"),
        ("basic_auth_users: {alice: $2y$99$" + "x" * 53 + "}", "not a bcrypt hash"),
        ("basic_auth_users: {alice: 1}", "must be text"),
        ("basic_auth_users: {1: x}", "write 1 in quotes"),
        (f"basic_auth_users: {{alice: {HASH}, alice: {HASH}}}", "alice occurs twice"),
        ("basic_auth_users: [alice]", "a mapping of keys and values"),
        ("#" * 1024 * 1024 + "##", "larger than"),
    ],
)
def test_a_wrong_or_unsupported_web_config_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "web.yml"
    path.write_text(text)
    with pytest.raises(WebConfigError) as error:
        WebConfigFile(str(path), on_trouble=lambda _: None)
    assert message in str(error.value)
    assert "secret" not in str(error.value)  # a password that is not hashed


def test_a_missing_web_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WebConfigError, match="cannot read it: No such file"):
        WebConfigFile(str(tmp_path / "absent"), on_trouble=lambda _: None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "tls_server_config:\nbasic_auth_users:\nhttp_server_config:\n",
        "tls_server_config: {cert_file: , min_version: ''}\nhttp_server_config: {headers: }",
    ],
)
def test_an_empty_web_config_means_plain_http_for_everybody(tmp_path: Path, text: str) -> None:
    path = tmp_path / "web.yml"
    path.write_text(text)
    assert WebConfigFile(str(path), on_trouble=lambda _: None).current() == OPEN


def test_configured_headers_are_on_every_answer(serving: Serving, tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text(
        "http_server_config:\n  http2: false\n  headers:\n"
        "    Strict-Transport-Security: max-age=60\n    X-Frame-Options: sameorigin\n"
        "    Content-Security-Policy: ''\n"
    )
    served = serving(config=WebConfigFile(str(path), on_trouble=lambda _: None).current)
    for answer in (served.ask("/-/ready"), served.ask("/", "POST"), served.ask("/metrics")):
        assert answer.getheader("Strict-Transport-Security") == "max-age=60"
        assert answer.getheader("X-Frame-Options") == "sameorigin"
        assert answer.getheader("Content-Security-Policy")  # blank means unset: the default stays


# TLS


class Certificates:
    """A CA, and certificates for this machine that it signed, made with openssl."""

    def __init__(self, folder: Path) -> None:
        program("openssl")
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", "/CN=test ca", "-days", "2", "-out", self.ca, "-keyout", folder / "ca.key"),
            *("-addext", "keyUsage=critical,keyCertSign"),
        )

    def _openssl(self, *arguments: object) -> None:
        command = ["openssl", *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder)

    def make(self, name: str, sans: str = "DNS:localhost,IP:127.0.0.1") -> tuple[Path, Path]:
        """Write and return certificate and key; replace those of the same name."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        (self.folder / "extensions").write_text(f"subjectAltName={sans}\n")
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={name}", "-out", "csr", "-keyout", key),
        )
        self._openssl(
            *("x509", "-req", "-in", "csr", "-days", "2", "-CA", self.ca, "-CAkey", "ca.key"),
            *("-CAcreateserial", "-extfile", "extensions", "-out", certificate),
        )
        return certificate, key

    def client(self, *pair: Path) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        if pair:
            context.load_cert_chain(pair[0], pair[1])
        return context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    folder = tmp_path / "tls"
    folder.mkdir()
    return Certificates(folder)


def https(port: int, context: ssl.SSLContext, path: str = "/-/healthy", **headers: str) -> str:
    request = urllib.request.Request(f"https://127.0.0.1:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, context=context, timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
        return text


def served_certificate(port: int, context: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        return sock.getpeercert(binary_form=True) or b""


def tls_config(folder: Path, more: str = "") -> Path:
    path = folder / "web.yml"
    path.write_text(f"tls_server_config:\n  cert_file: web.pem\n  key_file: web.key\n{more}")
    return path


def test_with_tls_only_https_is_served(serving: Serving, certificates: Certificates) -> None:
    certificates.make("web")
    path = tls_config(certificates.folder, "  min_version: TLS13\n")
    served = serving(config=WebConfigFile(str(path), on_trouble=lambda _: None).current)
    client = certificates.client()
    assert https(served.port, client) == "OK\n"
    assert json.loads(https(served.port, client, "/api/v1/locks"))["locks"] == []
    assert b"HTTP" not in served.raw(b"GET / HTTP/1.1\r\n\r\n")
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError, match=r"(?i)version"):
        https(served.port, client)
    until(lambda: not served.listener.connections)
    assert served.errors == 0


def test_a_handshake_that_never_ends_is_cut_off(
    serving: Serving, certificates: Certificates
) -> None:
    certificates.make("web")
    path = tls_config(certificates.folder)
    config = WebConfigFile(str(path), on_trouble=lambda _: None)
    served = serving(config=config.current, bounds=Bounds(head_seconds=0.5))
    with socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE) as connection:
        assert connection.recv(1) == b""
    until(lambda: not served.listener.connections)


def test_an_answer_over_tls_ends_with_close_notify(
    serving: Serving, certificates: Certificates
) -> None:
    """Without it a client cannot notice that an answer was cut short."""
    certificates.make("web")
    path = tls_config(certificates.folder)
    served = serving(config=WebConfigFile(str(path), on_trouble=lambda _: None).current)
    with (
        socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE) as plain,
        certificates.client().wrap_socket(
            plain, server_hostname="localhost", suppress_ragged_eofs=False
        ) as sock,
    ):
        sock.sendall(b"GET /api/v1/locks HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.rstrip().endswith(b"}")


def test_client_certificates_are_required_verified_and_matched_by_name(
    serving: Serving, certificates: Certificates
) -> None:
    certificates.make("web")
    good = certificates.client(*certificates.make("good", "DNS:prometheus,IP:::1"))
    other_client = certificates.client(*certificates.make("other", "DNS:somebody"))
    path = tls_config(
        certificates.folder,
        "  client_ca_file: ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n"
        "  client_allowed_sans: ['prometheus', '0:0::1']\n",
    )
    served = serving(
        inventory=full_of_names(),
        show_sessions="authenticated",
        config=WebConfigFile(str(path), on_trouble=lambda _: None).current,
    )
    assert SECRET in https(served.port, good, "/api/v1/locks")
    for rejected in (certificates.client(), other_client):
        with pytest.raises((OSError, http.client.HTTPException)):
            https(served.port, rejected)


def test_an_optional_client_certificate_shows_names(
    serving: Serving, certificates: Certificates
) -> None:
    certificates.make("web")
    good = certificates.client(*certificates.make("good"))
    path = tls_config(
        certificates.folder,
        "  client_ca_file: ca.pem\n  client_auth_type: VerifyClientCertIfGiven\n",
    )
    served = serving(
        inventory=full_of_names(),
        show_sessions="authenticated",
        config=WebConfigFile(str(path), on_trouble=lambda _: None).current,
    )
    assert SECRET in https(served.port, good, "/")
    assert SECRET not in https(served.port, certificates.client(), "/")


def test_changed_files_are_read_again_and_broken_ones_keep_the_old_settings(
    tree: Tree, certificates: Certificates
) -> None:
    certificates.make("web")
    path = tls_config(certificates.folder)
    client = certificates.client()
    sidecar = Sidecar(tree.root, env={"REAPER_WEB_CONFIG": str(path)})
    port, journal = sidecar.port, sidecar.journal

    def errors() -> str:
        (line,) = re.findall(r'errors_total\{kind="web"\} (\S+)', https(port, client, "/metrics"))
        return str(line)

    before = served_certificate(port, client)
    # The certificate is renewed in place.
    certificates.make("web")
    after = served_certificate(port, client)
    assert after != before
    assert after == ssl.PEM_cert_to_DER_cert((certificates.folder / "web.pem").read_text())
    assert len(journal("web-config-read")) == 1
    # The file is broken: the settings stay, and the error is logged and counted once.
    path.write_text("tls_server_config: {cert: x}")
    assert [https(port, client) for _ in range(5)] == ["OK\n"] * 5
    (kept,) = journal("web-config-kept")
    assert "cert is not supported" in kept["why"]
    assert errors() == "1.0"
    # The file is missing, as while it is replaced: a second error.
    path.unlink()
    assert https(port, client) == "OK\n"
    assert len(journal("web-config-kept")) == 2
    # The certificate is broken: files that the configuration names are read again too.
    tls_config(certificates.folder, f"basic_auth_users: {{alice: {HASH}}}\n")
    certificate = (certificates.folder / "web.pem").read_text()
    (certificates.folder / "web.pem").write_text("")
    assert https(port, client, "/metrics")
    assert errors() == "3.0"
    (certificates.folder / "web.pem").write_text(certificate)
    with pytest.raises(OSError, match="401"):
        https(port, client, "/metrics")
    assert https(port, client, "/metrics", Authorization=basic())
    assert len(journal("web-config-read")) == 2
    assert sidecar.stop() == 0


def test_a_wrong_web_config_exits_1_with_one_line(tree: Tree, tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text("rate_limit: {burst: 1}")
    listen = ("--listen", "127.0.0.1:0", "--web-config", path)
    done = reap("watch", "--state-dir", tree.root, *listen)
    assert done.returncode == 1
    assert done.stderr.startswith(f"reaper: --web-config {path}: the file: rate_limit is not")
    assert len(done.stderr.splitlines()) == 1


def test_yaml_and_bcrypt_are_imported_only_with_a_web_config() -> None:
    program = (
        "import sys, reaper.web.app, reaper.cli\nassert not {'yaml', 'bcrypt'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Probe


def probe(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return reap("probe", *options, env=environment)


def test_probe_works_over_tls(serving: Serving, certificates: Certificates) -> None:
    certificates.make("web")
    path = tls_config(certificates.folder, f"basic_auth_users: {{alice: {HASH}}}\n")
    served = serving(config=WebConfigFile(str(path), on_trouble=lambda _: None).current)
    health = ("--url", f"https://127.0.0.1:{served.port}/-/healthy")
    assert probe(*health).returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in probe(*health).stderr
    assert probe(*health, SSL_CERT_FILE=str(certificates.ca)).stdout == "200 OK\n"
    assert probe(*health, "--insecure").stdout == "200 OK\n"
    assert probe("--url", f"https://127.0.0.1:{served.port}/metrics", "--insecure").returncode == 1


def test_probe_uses_no_proxy(serving: Serving) -> None:
    served = serving()
    nowhere = {"http_proxy": "http://127.0.0.1:1", "no_proxy": ""}
    assert probe("--url", f"http://127.0.0.1:{served.port}/-/healthy", **nowhere).returncode == 0


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://127.0.0.1:9789/-/healthy", ("127.0.0.1", 9789, "/-/healthy")),
        ("http://localhost", ("localhost", 80, "/")),
        ("https://[::1]/a?b=c", ("::1", 443, "/a?b=c")),
        ("http://[::1]:81/", ("::1", 81, "/")),
        ("file:///etc/passwd", None),
        ("http://", None),
        ("http://:80/", None),
        ("http://host:/", None),
        ("http://host:x/", None),
        ("http://host:65536/", None),
        ("http://user:secret@host/", None),
        ("http://host/ HTTP/1.1\r\nX: y", None),
        ("http://höst/", None),
        ("", None),
    ],
)
def test_a_url_to_probe_is_parsed_or_refused(url: str, asked: tuple[str, int, str] | None) -> None:
    if asked is None:
        with pytest.raises(ValueError, match="is not an http address"):
            client.Target(url)
    else:
        target = client.Target(url)
        assert (target.host, target.port, target.path) == asked


def test_a_plain_probe_imports_no_slow_module(serving: Serving) -> None:
    """It runs every 30 seconds in each container."""
    served = serving()
    program = (
        "import sys; sys.argv[0] = 'reaper'\n"
        "from reaper.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(*sorted({'re', 'typing', 'typer', 'ssl', 'http.client'} & sys.modules.keys()))"
    )
    url = f"http://127.0.0.1:{served.port}/-/healthy"
    for options in (
        ["--url", url],
        [f"--url={url}", "--timeout=5s", "--gateway"],
        ["--gateway", "--timeout", "5", "--url", url],
    ):
        command = [sys.executable, "-S", "-P", "-c", program, "probe", *options]
        path = os.pathsep.join(sys.path[1:])
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        answer = "200 {" if "--gateway" in options else "200 OK\n"
        assert done.stdout.startswith(answer), done.stderr
        assert done.stdout.endswith("\n\n"), done.stdout


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        (["--help"], {}),
        (["--url"], {}),
        (["--url", "https://127.0.0.1/"], {}),
        (["--url", "http://user@127.0.0.1/"], {}),
        (["--timeout", "500ms"], {}),
        (["--timeout", "0"], {}),
        (["--timeout", "-1"], {}),
        (["--gateway=yes"], {}),
        (["--insecure"], {}),
        (["more"], {}),
        ([], {"REAPER_PROBE_TIMEOUT": "1s"}),
        ([], {"REAPER_PROBE_URL": "https://127.0.0.1/"}),
    ],
)
def test_any_other_use_of_probe_is_left_to_the_full_command(
    options: list[str], environment: dict[str, str]
) -> None:
    assert client.plain_probe(options, environment) is None


def test_a_probe_never_waits_longer_than_its_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor() as threads:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.05)

        threads.submit(trickle)
        target = client.Target(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        with pytest.raises(TimeoutError):
            client.ask_plainly(target, 0.5)


def test_a_probe_that_fails_says_why_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    done = probe("--url", f"http://127.0.0.1:{port}/")
    assert (done.returncode, done.stdout) == (1, "")
    why = f"connection refused: is the sidecar running at 127.0.0.1:{port}?"
    assert done.stderr == f"reaper: http://127.0.0.1:{port}/: {why}\n"
    done = probe("--gateway", "--url", f"http://127.0.0.1:{port}/")
    assert done.returncode == 0
    assert "the state of the gateway is unknown" in done.stderr
    done = probe("--url", "http://no-such-host.invalid/")
    assert done.stderr.startswith(
        "reaper: http://no-such-host.invalid/: unknown host no-such-host.invalid"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        done = probe("--url", f"http://127.0.0.1:{port}/", "--timeout", "1")
    assert done.stderr == f"reaper: http://127.0.0.1:{port}/: no answer within 1 s\n"
    done = probe("--timeout", "0")
    assert done.returncode == 2
    assert "more than 0s" in done.stderr


def test_yaml_and_bcrypt_are_each_imported_in_one_module() -> None:
    """Only the module that imports it lazily imports it."""
    importing = {
        (path.name, module)
        for path in Path(app.__file__).parents[1].rglob("*.py")
        for module in re.findall(
            r"^\s*(?:import|from) (yaml|bcrypt)\b", path.read_text(), re.MULTILINE
        )
    }
    assert importing == {("config.py", "yaml"), ("passwords.py", "bcrypt")}
