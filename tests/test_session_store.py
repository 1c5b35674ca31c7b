"""What is read from a session store with any content, and how much memory that takes."""

import json
import mmap
import os
import shlex
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reaper.adapters.runs import session_store
from reaper.adapters.runs.session_store import Session, SessionStores
from reaper.core.evidence import Run, StoreStatus
from tests.conftest import Tree

MIB = 1 << 20
ANOTHER_UID = 4321


def asking(
    tree: Tree,
    session: str = "sid",
    stores: SessionStores | None = None,
    *,
    agent: str = "main",
    locks: Sequence[str] = (),
) -> tuple[Run, str]:
    """Return what the store says about a session, and if that is UNKNOWN the reason."""
    stores = stores or SessionStores()
    fd = os.open(tree.sessions(agent), os.O_RDONLY)
    try:
        asked = Session(str(tree.root), agent, session, fd, locks)
        run = stores.run(asked)
        return run, stores.problem_of_session(asked) if run.store is StoreStatus.UNKNOWN else ""
    finally:
        os.close(fd)


def read(tree: Tree, session: str = "sid", stores: SessionStores | None = None) -> Run:
    return asking(tree, session, stores)[0]


def write(tree: Tree, data: bytes) -> Path:
    path = tree.sessions() / "sessions.json"
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module", autouse=True, params=["at once", "one by one"])
def decoding(request: pytest.FixtureRequest) -> Iterator[None]:
    """Decode small stores in both ways; the result must be the same."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "one by one":
            patch.setattr(session_store, "_MOST_AT_ONCE", 0)
        yield


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a store count as written so long ago that its next write changes its time."""
    monkeypatch.setattr(session_store, "_TICK_NS", 0)


RUNNING = b'"r":{"sessionId":"sid","status":"running"}'


# Content


def test_the_store_has_status_and_times_by_session_id(tree: Tree) -> None:
    fields = {"sessionId": "sid", "status": "timeout", "startedAt": 5, "endedAt": 9}
    tree.store({"agent:main:x": fields, "other": {"sessionId": "sid2", "status": "running"}})
    run = read(tree)
    assert (run.store, run.store_started_ms, run.store_ended_ms) == (StoreStatus.ENDED, 5, 9)
    assert run.session_key == "agent:main:x"
    assert read(tree, "sid2").store is StoreStatus.RUNNING
    assert read(tree, "sid3").store is StoreStatus.NONE


def test_the_lock_of_a_topic_is_found_by_the_name_of_its_transcript(tree: Tree) -> None:
    file = "/elsewhere/agents/main/sessions/sid-topic-5.jsonl"
    tree.store({"k": {"sessionId": "sid", "sessionFile": file, "status": "running"}})
    assert read(tree, "sid-topic-5").store is StoreStatus.RUNNING
    assert read(tree).store is StoreStatus.RUNNING


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("done", StoreStatus.ENDED),
        ("failed", StoreStatus.ENDED),
        ("killed", StoreStatus.ENDED),
        ("running", StoreStatus.RUNNING),
        (None, StoreStatus.NONE),
        ("paused", StoreStatus.UNKNOWN),
        (True, StoreStatus.UNKNOWN),
        ({"running": 1}, StoreStatus.UNKNOWN),
        ("x" * 100_000, StoreStatus.UNKNOWN),
    ],
)
def test_each_status_means_one_of_four(tree: Tree, status: object, expected: StoreStatus) -> None:
    tree.store({"k": {"sessionId": "sid", "status": status, "endedAt": True}})
    run = read(tree)
    assert run.store is expected
    assert run.store_ended_ms is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [(b"7", 7), (b"7.0", 7), (b"1e400", None), (b"9" * 5000, None), (b"-1", None), (b'"7"', None)],
)
def test_a_time_is_a_whole_number_in_javascript(
    tree: Tree, written: bytes, expected: int | None
) -> None:
    write(tree, b'{"k":{"sessionId":"sid","status":"done","endedAt":' + written + b"}}")
    run = read(tree)
    assert (run.store, run.store_ended_ms) == (StoreStatus.ENDED, expected)


@pytest.mark.parametrize(
    "entry",
    [{"sessionId": " sid\ufeff"}, {"sessionId": "x", "sessionFile": "\t/s/sid.jsonl\n"}],
)
def test_both_names_are_trimmed_as_upstream_does(tree: Tree, entry: dict[str, str]) -> None:
    tree.store({"agent:main:main": entry | {"status": "running"}})
    assert read(tree).store is StoreStatus.RUNNING


def test_a_deleted_store_is_unknown_at_first(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = SessionStores()
    tree.store({"agent:main:main": {"sessionId": "sid", "status": "running"}})
    assert read(tree, stores=stores).store is StoreStatus.RUNNING
    (tree.sessions() / "sessions.json").unlink()
    now = 1000.0
    monkeypatch.setattr("reaper.adapters.runs.session_store.time.monotonic", lambda: now)
    assert read(tree, stores=stores).store is StoreStatus.UNKNOWN
    now += 59
    assert read(tree, stores=stores).store is StoreStatus.UNKNOWN
    now += 1
    assert read(tree, stores=stores).store is StoreStatus.NONE
    now += 1
    assert read(tree, stores=stores).store is StoreStatus.NONE


def test_of_two_entries_for_one_session_the_stricter_counts(tree: Tree) -> None:
    done = {"sessionId": "sid", "status": "done", "endedAt": 9}
    for entries in (
        [done, {"sessionId": "sid", "status": "running"}],
        [{"sessionId": "sid", "status": "running"}, done],
    ):
        tree.store({str(number): entry for number, entry in enumerate(entries)})
        assert read(tree).store is StoreStatus.RUNNING
    tree.store({"a": done, "b": done, "c": {"sessionId": "sid"}})
    assert (read(tree).store, read(tree).store_ended_ms) == (StoreStatus.ENDED, 9)


@pytest.mark.parametrize("status", ["done", "running"])
@pytest.mark.parametrize("other_status", ["done", "running"])
def test_two_different_entries_of_a_session_have_no_times(
    tree: Tree, status: str, other_status: str
) -> None:
    """Seen: two lanes of a gateway, with two keys, run on one session id at the same time."""
    entry = {"sessionId": "sid", "status": status, "startedAt": 5, "endedAt": 9}
    other_entry = {"sessionId": "sid", "status": other_status, "startedAt": 6}
    for entries in ({"a": entry, "b": other_entry}, {"a": other_entry, "b": entry}):
        tree.store(entries)
        run = read(tree)
        running = "running" in {status, other_status}
        assert run.store is (StoreStatus.RUNNING if running else StoreStatus.ENDED)
        assert (run.store_started_ms, run.store_ended_ms) == (None, None)


def test_of_two_entries_under_one_key_the_stricter_counts_too(tree: Tree) -> None:
    """A gateway reads the last one, but it is not known which one it writes next."""
    done = b'"r":{"sessionId":"sid","status":"done"}'
    for first, second in ((RUNNING, done), (done, RUNNING)):
        write(tree, b"{" + first + b"," + second + b"}")
        assert read(tree).store is StoreStatus.RUNNING


def test_white_space_and_an_empty_store_are_read_as_in_json(tree: Tree) -> None:
    write(tree, b' \r\n{ \t"k" :\n{"sessionId" : "sid" ,"status":\t"running" } \n} \n')
    assert read(tree).store is StoreStatus.RUNNING
    for empty in (b"{}", b" { \n} "):
        write(tree, empty)
        assert read(tree).store is StoreStatus.NONE


def test_without_a_store_there_is_no_status(tree: Tree) -> None:
    assert read(tree).store is StoreStatus.NONE


# Odd content


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 10_000,
        b"{" + RUNNING, b"{" + RUNNING + b",}", b"{," + RUNNING + b"}", b"{" + RUNNING + b"}}",
        b"{" + RUNNING + b"} x", b'{"a"}', b'{"a":}', b'{"a":"' + b"x" * 99, b"[{}," + RUNNING,
        b"\xef\xbb\xbf{" + RUNNING + b"}", b"\0" * 5000, b'{"a":}}', RUNNING,
    ],
    ids=range(21),
)  # fmt: skip
def test_a_store_that_is_malformed_is_unknown(tree: Tree, data: bytes) -> None:
    write(tree, data)
    run, problem = asking(tree)
    assert run.store is StoreStatus.UNKNOWN
    assert "half written" in problem


@pytest.mark.parametrize(
    "odd",
    [
        b"null", b"7", b"[]", b'""', b"{}", b'{"sessionId":7}', b'{"sessionFile":7}',
        b'{"sessionId":null,"sessionFile":"elsewhere"}', b'["sid"]', b'{"sessionId":["sid"]}',
        b'{"sessionId":"' + "🦀".encode() * 50_000 + b'"}',
        b'{"sessionFile":"' + b"/" * 100_000 + b'x.jsonl"}',
    ],
    ids=range(12),
)  # fmt: skip
def test_an_entry_without_a_session_counts_for_no_session(tree: Tree, odd: bytes) -> None:
    write(tree, b'{"a":' + odd + b"," + RUNNING + b',"b":' + odd + b"}")
    assert read(tree).store is StoreStatus.RUNNING
    assert read(tree, "another").store is StoreStatus.NONE


@pytest.mark.parametrize(
    "odd",
    [
        b'"\\ud83e"', b'"\\udd80\\ud83e"', b'"\xff\xc0\x80"', b'"\\u0000"', b"1e400", b"-0.0",
        b"9" * 10_000, b"[" * 500 + b"]" * 500, b'"' + b"\\n" * 100_000 + b'"',
        b'{"sessionId":"another","status":"done"}', b'"}{\\"sessionId\\":\\"another\\"[[["',
    ],
    ids=range(11),
)  # fmt: skip
def test_odd_values_beside_the_fields_that_count_change_nothing(tree: Tree, odd: bytes) -> None:
    entry = b'"k":{"x":' + odd + b',"sessionId":"odd","y":' + odd + b',"status":"done"}'
    write(tree, b"{" + entry + b"," + RUNNING + b"}")
    assert read(tree, "odd").store is StoreStatus.ENDED
    assert read(tree).store is StoreStatus.RUNNING
    assert read(tree, "another").store is StoreStatus.NONE


@pytest.mark.parametrize(
    "odd",
    [
        b"NaN", b"Infinity", b"tru", b"01", b"1.", b'"\x01"', b'"\\x"', b"[1,]", b"[1}",
        b"[" * 100_000 + b"]" * 100_000, b'"' + b"\\ud83e" * 50_000 + b'"',
    ],
    ids=range(11),
)  # fmt: skip
def test_an_unreadable_entry_may_belong_to_any_session_that_has_no_other(
    tree: Tree, odd: bytes
) -> None:
    entry = b'"odd key":{"sessionId":"odd","status":"done","x":' + odd + b"}"
    write(tree, b"{" + RUNNING + b"," + entry + b',"d":{"sessionId":"over","status":"done"}}')
    assert read(tree).store is StoreStatus.RUNNING
    assert read(tree, "over").store is StoreStatus.ENDED
    for session in ("odd", "without an entry"):
        run, problem = asking(tree, session)
        assert run.store is StoreStatus.UNKNOWN
        assert "odd key" in problem


def test_invalid_utf_8_in_a_name_is_replaced_as_node_does(tree: Tree) -> None:
    write(tree, b'{"\xff":{"sessionId":"a\xffb","status":"running"}}')
    run = read(tree, "a\ufffdb")
    assert (run.store, run.session_key) == (StoreStatus.RUNNING, "\ufffd")


def test_a_note_quotes_only_the_beginning_of_the_key_of_an_odd_entry(tree: Tree) -> None:
    for key in ("K" * 500, "\N{CRAB}" * 120, "\\ud83e" * 80):
        write(tree, f'{{"{key}":{{"x":nope}}}}'.encode())
        _, problem = asking(tree)
        assert "is not valid JSON" in problem
        assert len(problem.encode()) < 400
        assert key[:10] in problem


def test_a_session_keeps_16_keys_at_most(tree: Tree) -> None:
    tree.store({f"k{number}": {"sessionId": "sid"} for number in range(1000)})
    assert read(tree).session_keys == tuple(f"k{number}" for number in range(16))


def test_a_key_that_is_too_long_to_show_does_not_hide_its_entry(tree: Tree) -> None:
    tree.store({"k" * 1000: {"sessionId": "sid", "status": "running"}})
    run = read(tree)
    assert (run.store, run.session_key) == (StoreStatus.RUNNING, None)


texts = st.sampled_from(["\ud83e", "🦀", '"', "\\", '{"', "]}", "\n", "é"]) | st.text(max_size=5)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
odd_entries = json_values | st.fixed_dictionaries(
    {"x": json_values},
    optional={
        "sessionId": st.sampled_from(["sid", "sid", "other", 7]),
        "sessionFile": st.sampled_from(["sid.jsonl", "/a/b/sid.jsonl", "sid", None]),
        "status": st.sampled_from(["running", "done", "paused", None]) | json_values,
    },
)
stores = st.dictionaries(texts, odd_entries, max_size=4)


MEANINGS: dict[str | None, StoreStatus] = {
    None: StoreStatus.NONE,
    "running": StoreStatus.RUNNING,
    **dict.fromkeys(["done", "timeout", "failed", "killed"], StoreStatus.ENDED),
}


@given(stores, st.booleans(), st.sampled_from([None, 1]))
def test_every_store_is_read_as_json_reads_it(
    entries: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    """It may have lone surrogates, escapes, brackets in texts and empty containers."""
    text = json.dumps(entries, ensure_ascii=ascii_only, indent=indent)
    expected = set()
    for entry in entries.values():
        fields = entry if isinstance(entry, dict) else {}
        file = fields.get("sessionFile")
        named = isinstance(file, str) and file.split("/")[-1] == "sid.jsonl"
        if fields.get("sessionId") == "sid" or named:
            status = fields.get("status")
            is_text = status is None or isinstance(status, str)
            expected.add(
                MEANINGS.get(status, StoreStatus.UNKNOWN) if is_text else StoreStatus.UNKNOWN
            )
    data = text.encode("utf-8", "surrogatepass")
    run = understood(data).entries.get("sid")
    assert (run is None) is (not expected)
    if run is not None:
        assert run.store is min(expected, key=session_store._STRICTNESS.index)


@given(st.binary(max_size=60), st.data())
def test_inserted_bytes_make_a_store_unknown_at_worst(put: bytes, data: st.DataObject) -> None:
    store_bytes = b'{"a":{"sessionId":"sid","x":[1,{"y":"\\n"}]},"b":null}'
    cut = data.draw(st.integers(0, len(store_bytes)))
    store = understood(store_bytes[:cut] + put + store_bytes[cut:])
    assert (store.otherwise.store is StoreStatus.UNKNOWN) is bool(store.problem)


def understood(data: bytes) -> session_store.Store:
    held = mmap.mmap(-1, max(1, len(data)))
    held[: len(data)] = data
    return session_store._interpret(held, frozenset({"sid"}), "main")


# Bounds


def filled(head: bytes, unit: bytes, tail: bytes, size: int = 8 * MIB) -> bytes:
    return head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail


def entries(count: int, size: int) -> bytes:
    made = (b'"k%d":{"sessionId":"s%d","status":"done","x":"' % (n, n) for n in range(count))
    return b"{" + b",".join(entry.ljust(size, b"y") + b'"}' for entry in made) + b"}"


CRAB = "🦀".encode()
MOST_ENTRIES = session_store._MOST_ENTRIES
AND_RUNNING = b"," + RUNNING + b"}"
UNREAD, FOUND = StoreStatus.UNKNOWN, StoreStatus.RUNNING


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: filled(b"[", b"{},", b"{}]"), UNREAD),
        (lambda: filled(b"{", b'"k":{},', RUNNING + b"}"), UNREAD),
        (lambda: filled(b"{", b'"":0,', RUNNING + b"}"), UNREAD),
        (lambda: filled(b"{", RUNNING + b",", RUNNING + b"}"), UNREAD),
        (lambda: filled(b'{"k":[', b"{},", b"{}]" + AND_RUNNING), UNREAD),
        (lambda: filled(b'{"k":', b"[", b""), UNREAD),
        (lambda: filled(b'{"k":[', b"0,", b"0]" + AND_RUNNING), FOUND),
        (lambda: filled(b'{"k":["', b'","', b'"]' + AND_RUNNING), FOUND),
        (lambda: filled(b'{"k":"', b"x", b'"' + AND_RUNNING), FOUND),
        (lambda: filled(b'{"k":"', CRAB, b'"' + AND_RUNNING), FOUND),
        (lambda: filled(b'{"', CRAB, b'":0' + AND_RUNNING), FOUND),
        (lambda: filled(b'{"k":{"x":"', CRAB, b'"}' + AND_RUNNING), FOUND),
        (lambda: filled(b'{"k":{"status":"', CRAB, b'"}' + AND_RUNNING), FOUND),
        (lambda: filled(b'{"k":{"x":"', b"\\n", b'"}' + AND_RUNNING), FOUND),
        (lambda: filled(b'{"k":{"x":"', b"\xff", b'"}' + AND_RUNNING), FOUND),
        (lambda: filled(b'{"k":{"x":', b"9", b"}" + AND_RUNNING), FOUND),
        (lambda: filled(b'{"k":{', b'"status":"x",', b'"x":0}' + AND_RUNNING), FOUND),
        (lambda: entries(MOST_ENTRIES - 1, 80)[:-1] + AND_RUNNING, FOUND),
    ],
    ids=range(18),
)
def test_reading_any_store_takes_little_more_memory_than_the_file(
    tree: Tree, make: Callable[[], bytes], expected: StoreStatus
) -> None:
    path = write(tree, make())
    program = """
import os, sys
from reaper.adapters.runs.session_store import Session, SessionStores, _decoder
def peak():
    return int(next(row for row in open("/proc/self/status") if row.startswith("VmHWM")).split()[1])
_decoder(raw=True), _decoder(raw=False)
fd = os.open(sys.argv[2], os.O_RDONLY)
before = peak()
locks = [f"s{number}.jsonl.lock" for number in range(2000)]
run = SessionStores().run(Session(sys.argv[1], "main", "sid", fd, locks))
print(run.store.value, peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tree.root), str(path.parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    status, grown = done.stdout.split()
    assert status == expected.value
    assert int(grown) < (path.stat().st_size + 4 * MIB) / 1024


@pytest.mark.parametrize("entry", [b'"%x":{},', b'"%x":{"sessionId":[{},{},{},{}]},'])
def test_decoding_a_store_at_once_takes_at_most_25_times_its_size(entry: bytes) -> None:
    size = session_store._MOST_AT_ONCE or MIB // 4
    count = size // (len(entry) + 3)
    data = b"{" + b"".join(entry % number for number in range(count)) + RUNNING + b"}"
    assert size / 2 < len(data) <= size
    tracemalloc.start()
    try:
        assert understood(data).entries["sid"].store is StoreStatus.RUNNING
        assert tracemalloc.get_traced_memory()[1] < 25 * size
    finally:
        tracemalloc.stop()


def test_a_store_that_is_too_large_is_unknown_and_says_what_helps(tree: Tree) -> None:
    tree.store({"k": {"sessionId": "sid", "status": "running"}}, agent="$(rm -r x)")
    path = tree.sessions("$(rm -r x)") / "sessions.json"
    with path.open("ab") as file:
        file.truncate(session_store._MOST_BYTES + 1)
    run, problem = asking(tree, agent="$(rm -r x)")
    assert run.store is StoreStatus.UNKNOWN
    assert "larger than 32 MiB" in problem
    assert shlex.split(problem.split("`")[1])[-1] == "$(rm -r x)"


def test_a_store_is_unknown_only_with_more_entries_than_the_bound(tree: Tree) -> None:
    for count, expected in (
        (MOST_ENTRIES, StoreStatus.ENDED),
        (MOST_ENTRIES + 1, StoreStatus.UNKNOWN),
    ):
        write(tree, entries(count, 0))
        run, problem = asking(tree, f"s{MOST_ENTRIES - 1}")
        assert run.store is expected
        assert ("too many entries" in problem) is (expected is StoreStatus.UNKNOWN)


def test_only_the_entries_of_sessions_with_a_lock_are_kept(tree: Tree) -> None:
    write(tree, entries(1000, 0))
    stores = SessionStores()
    asking(tree, "s1", stores, locks=["s1.jsonl.lock", "s2.jsonl.lock", "none.jsonl.lock"])
    (store,) = stores._stores.values()
    assert store.entries.keys() == {"s1", "s2"}


# Changes


@pytest.mark.usefixtures("settled")
def test_a_store_is_read_again_only_after_it_changed(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = SessionStores()
    tree.store({"k": {"sessionId": "sid", "status": "running"}})
    assert read(tree, stores=stores).store is StoreStatus.RUNNING
    with monkeypatch.context() as patch:
        patch.setattr(session_store, "open_own_regular", None)  # reading fails
        assert read(tree, stores=stores).store is StoreStatus.RUNNING
    tree.store({"k": {"sessionId": "sid", "status": "done", "endedAt": 5}})
    assert read(tree, stores=stores).store is StoreStatus.ENDED
    stores.forget_all_but(set())
    assert stores._stores == {}


@pytest.mark.usefixtures("settled")
def test_new_locks_are_looked_up_and_all_others_are_remembered(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tree, entries(9, 0))
    stores = SessionStores()
    asking(tree, "s1", stores, locks=["s1.jsonl.lock", "s2.jsonl.lock"])
    assert read(tree, "s3", stores).store is StoreStatus.ENDED
    monkeypatch.setattr(session_store, "open_own_regular", None)
    for session in ("s1", "s2", "s3"):
        assert read(tree, session, stores).store is StoreStatus.ENDED


@pytest.mark.usefixtures("settled")
def test_the_memory_for_an_unchanged_store_is_bounded_for_any_number_of_locks(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_store, "_MOST_REMEMBERED", 10)
    write(tree, entries(100, 0))
    stores = SessionStores()
    for number in range(100):
        assert read(tree, f"s{number}", stores).store is StoreStatus.ENDED
        (store,) = stores._stores.values()
        assert len(store.entries) <= 11


def test_a_write_that_keeps_size_and_time_is_noticed(tree: Tree) -> None:
    """A write in the same tick of the file system's clock does that."""
    path = write(tree, b'{"k":{"sessionId":"sid","status":"running"}}')
    found = path.stat()
    stores = SessionStores()
    assert read(tree, stores=stores).store is StoreStatus.RUNNING
    write(tree, b'{"k":{"sessionId":"sid","status":"done"   }}')
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert read(tree, stores=stores).store is StoreStatus.ENDED


@pytest.mark.parametrize("meanwhile", [b"{}", b'{"k":{"sessionId":"sid","status":"done"}}', b""])
@pytest.mark.usefixtures("settled")
def test_a_store_that_changes_while_it_is_read_is_read_again(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, meanwhile: bytes
) -> None:
    content = b"{" + RUNNING + b"}"
    path = write(tree, content[:20])
    stores, preadv = SessionStores(), os.preadv

    def read_in_the_middle_of_a_write(fd: int, buffers: list[memoryview], offset: int) -> int:
        path.write_bytes(meanwhile)
        count = preadv(fd, buffers, offset)
        path.write_bytes(content)
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", read_in_the_middle_of_a_write)
        assert read(tree, stores=stores).store is StoreStatus.UNKNOWN
    assert read(tree, stores=stores).store is StoreStatus.RUNNING


@pytest.mark.usefixtures("settled")
def test_a_large_store_that_changes_all_the_time_does_not_keep_the_worker_busy(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_store, "_QUICK", 0.0)
    monkeypatch.setattr(session_store, "_WAIT_FACTOR", 1e9)
    stores = SessionStores()
    path = write(tree, b"{" + RUNNING + b"}")
    assert read(tree, stores=stores).store is StoreStatus.RUNNING
    assert read(tree, stores=stores).store is StoreStatus.RUNNING
    other_store = path.with_name("other")
    other_store.write_bytes(b"{}")
    for _ in range(2):  # the first content is not trusted when it returns
        os.rename(path, path.with_name("spare"))
        os.rename(other_store, path)
        os.rename(path.with_name("spare"), other_store)
        run, problem = asking(tree, stores=stores)
        assert run.store is StoreStatus.UNKNOWN
        assert "changes faster" in problem
    monkeypatch.setattr("time.monotonic", lambda: 1e12)
    assert read(tree, stores=stores).store is StoreStatus.RUNNING


# Location


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_store_of_another_file_type_is_unknown(tree: Tree, make: Callable[[Path], None]) -> None:
    make(tree.sessions() / "sessions.json")
    run, problem = asking(tree)
    assert run.store is StoreStatus.UNKNOWN
    assert "regular file" in problem


@pytest.fixture
def linked(tree: Tree, tmp_path: Path) -> tuple[Path, Path]:
    """Return a symlink in place of the store, and its target elsewhere."""
    target = tmp_path / "elsewhere.json"
    target.write_bytes(b"{" + RUNNING + b"}")
    link = tree.sessions() / "sessions.json"
    link.symlink_to(target)
    return link, target


def test_a_symlink_is_followed_if_it_and_its_target_belong_to_the_owner_of_the_state_directory(
    tree: Tree, linked: tuple[Path, Path]
) -> None:
    _, target = linked
    stores = SessionStores()
    assert read(tree, stores=stores).store is StoreStatus.RUNNING
    target.write_text('{"k": {"sessionId": "sid", "status": "done"}}')
    assert read(tree, stores=stores).store is StoreStatus.ENDED


@pytest.mark.root
@pytest.mark.parametrize("whose", ["link", "target", "state"])
def test_a_symlink_is_not_followed_if_another_uid_owns_it_or_its_target(
    tree: Tree, linked: tuple[Path, Path], whose: str, root_only: None
) -> None:
    link, target = linked
    path = {"link": link, "target": target, "state": tree.root}[whose]
    os.chown(path, ANOTHER_UID, -1, follow_symlinks=False)
    run, problem = asking(tree)
    assert run.store is StoreStatus.UNKNOWN
    assert "which owns the state directory" in problem


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, os.unlink, None])
def test_a_symlink_to_no_regular_file_is_unknown(
    tree: Tree, linked: tuple[Path, Path], make: Callable[[Path], Any] | None
) -> None:
    link, target = linked
    target.unlink()
    if make is None:
        target.symlink_to(link)
    elif make is not os.unlink:
        make(target)
    assert read(tree).store is StoreStatus.UNKNOWN


@pytest.mark.root
def test_a_store_that_may_not_be_read_says_who_may(public_tree: Tree, root_only: None) -> None:
    path = public_tree.store({"k": {"sessionId": "sid", "status": "done"}})
    path.chmod(0o600)
    program = """
import os, sys
from reaper.adapters.runs.session_store import Session, SessionStores
fd, stores = os.open(sys.argv[2], os.O_RDONLY), SessionStores()
asked = Session(sys.argv[1], "main", "sid", fd)
os.setuid(4321)
print(stores.run(asked).store.value, stores.problem_of_session(asked))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(public_tree.root), str(path.parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    advice = "Permission denied: run the reaper as uid 0, like the gateway"
    assert done.stdout == f"unknown {advice}\n"
