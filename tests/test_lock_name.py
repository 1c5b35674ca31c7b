"""How the names that people type for a lock are parsed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reaper.core.lock_name import lock_names, session_keys

SID = "555b0189-2ff8-483b-87f5-ebab41995342"
LOCK = f"{SID}.jsonl.lock"


def fits(text: str, agent: str, file: str, *, cwd: str = "/") -> bool:
    """Return whether the text names the lock by more than its folder."""
    return any(name.fits(agent, file) for name in lock_names(text, cwd) if name.folder is None)


@pytest.mark.parametrize(
    "text",
    [
        SID,
        f"{SID}.jsonl",
        LOCK,
        f"agents/main/sessions/{LOCK}",
        f"/home/node/.openclaw/agents/main/sessions/{LOCK}",
        f"/home/node/.openclaw/agents/main/sessions/{SID}.jsonl",
        f"/home/node/.openclaw/agents/main/sessions/{SID}",
        f"/home/node//.openclaw/./agents/main/sessions/../sessions/{LOCK}",
        f"C:\\Users\\ada\\.openclaw\\agents\\main\\sessions\\{LOCK}",
        f"C:\\\\Users\\\\ada\\\\.openclaw\\\\agents\\\\main\\\\sessions\\\\{SID}.jsonl",
        f"/home/node/.openclaw/agents/main/sessions/{LOCK}:",
        f"'/home/node/.openclaw/agents/main/sessions/{LOCK}',",
        f"“{SID}”",
        f"({SID}.jsonl).",
        f" {SID}\n",
        f"pid=7 /root/.openclaw/agents/main/sessions/{LOCK}: code=OPENCLAW_TIMEOUT",
        f"session file locked (timeout 60000ms): pid=7 /root/.openclaw/agents/main/sessions/{LOCK}",
        f"EACCES: permission denied, open '/root/.openclaw/agents/main/sessions/{LOCK}'",
    ],
)
def test_each_form_of_a_name_is_understood(text: str) -> None:
    assert fits(text, "main", LOCK)
    assert not fits(text, "main", "other.jsonl.lock")


@pytest.mark.parametrize(
    "text",
    [
        f"/home/node/.openclaw/agents/ops/sessions/{LOCK}",
        f"C:\\Users\\ada\\.openclaw\\agents\\ops\\sessions\\{LOCK}",
        f"/agents/main/sessions/archive/{LOCK}",
        f"/myagents/main/sessions/{LOCK}",
        f"/agents/main/sub/sessions/{LOCK}",
        f"/tmp/{LOCK}",
        f"./{LOCK}",
        f"main/sessions/{LOCK}",
        SID.upper(),
        SID[:8],
    ],
)
def test_another_agents_lock_and_an_unrelated_path_do_not_fit(text: str) -> None:
    assert not fits(text, "main", LOCK)


def test_the_text_as_typed_comes_before_the_text_without_punctuation() -> None:
    files = [name.file for name in lock_names(f"{SID}.", "/")]
    assert files.index(f"{SID}..jsonl.lock") < files.index(LOCK)


def test_a_file_name_comes_before_a_session_id_that_looks_like_one() -> None:
    files = [name.file for name in lock_names("s.jsonl", "/")]
    assert files.index("s.jsonl.lock") < files.index("s.jsonl.jsonl.lock")


def test_the_topics_of_a_session_are_found_by_its_id_after_its_own_lock() -> None:
    topic = f"{SID}-topic-5.jsonl.lock"
    own, topics, *_ = lock_names(SID, "/")
    assert own.fits("main", LOCK)
    assert not own.fits("main", topic)
    assert topics.fits("main", topic)
    assert not topics.fits("main", LOCK)
    assert not topics.fits("main", f"{SID}-topic-5.jsonl")
    assert fits(topic, "main", topic)
    assert not fits(LOCK, "main", topic)


def test_a_relative_path_is_read_from_the_working_directory() -> None:
    for text, cwd in (
        (f"sessions/{LOCK}", "/x/agents/main"),
        (f"./{LOCK}", "/x/agents/main/sessions"),
        (f"../sessions/{SID}.jsonl", "/x/agents/main/agent"),
    ):
        assert fits(text, "main", LOCK, cwd=cwd)
        assert not fits(text, "ops", LOCK, cwd=cwd)


def test_a_file_name_in_a_sessions_folder_means_the_lock_in_that_folder() -> None:
    cwd = "/x/agents/main/sessions"
    for text in (LOCK, f"{SID}.jsonl"):
        assert lock_names(text, cwd)[0].folder == cwd
        assert fits(text, "main", LOCK, cwd=cwd)
        assert not fits(text, "ops", LOCK, cwd=cwd)
    assert fits(SID, "ops", LOCK, cwd=cwd), "a session id is not a file name"


@pytest.mark.parametrize("name", ["a b", "a\nb", "a'b", "a\\b", " a ", "a:", "[a]", "-rf", "é"])
def test_odd_names_are_read_as_they_are(name: str) -> None:
    for text in (name, f"{name}.jsonl", f"{name}.jsonl.lock"):
        assert fits(text, "main", f"{name}.jsonl.lock")
        assert fits(f"/x/agents/main/sessions/{text}", "main", f"{name}.jsonl.lock")
        assert fits(f"/x/agents/a b\n/sessions/{text}", "a b\n", f"{name}.jsonl.lock")


def test_a_session_key_is_read_as_typed_and_without_punctuation() -> None:
    key = "agent:main:telegram:group:-100:topic:5"
    for text in (key, f"{key}:", f"'{key}',", f'"{key}"', f" {key}\n"):
        assert key in session_keys(text)
        assert session_keys(text)[0] == text
    assert key not in session_keys(key.upper())


@given(st.text(), st.sampled_from(["/", "/x/agents/main/sessions"]))
def test_any_text_is_parsed_and_ids_fit_their_own_lock(text: str, cwd: str) -> None:
    names = lock_names(text, cwd)
    assert all(name.file and "/" not in name.file for name in names)
    if text and "/" not in text and not text.endswith((".jsonl", ".jsonl.lock")):
        best = next(name for name in names if name.folder is None)
        assert best.fits("anyone", f"{text}.jsonl.lock")


def test_a_root_or_an_empty_text_names_no_lock() -> None:
    for text in ("", "/", "\\", "//", "../.."):
        assert not any(name.fits("main", ".jsonl.lock") for name in lock_names(text, "/x"))
