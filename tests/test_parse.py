"""How the record of a lock file is parsed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reaper.core.lock import READ_LIMIT, Record, Shape
from reaper.core.record import parse, parse_date

FULL = b'{\n  "pid": 7,\n  "createdAt": "2026-05-24T10:29:15.171Z",\n  "maxHoldMs": 1020000,\n'
FULL += b'  "starttime": 76698844\n}\n'
CREATED = 1779618555171


def test_a_full_record_is_read() -> None:
    assert parse(FULL) == Record(
        shape=Shape.RECORD,
        pid=7,
        created_at_ms=CREATED,
        max_hold_ms=1_020_000,
        starttime=76_698_844,
    )


@given(
    pid=st.integers(0, 10**17),
    year=st.integers(0, 9999),
    numbers=st.tuples(*(st.integers(0, most) for most in (13, 32, 25, 60, 60))),
    ms=st.integers(0, 999),
    longest=st.integers(0, 10**17),
    ticks=st.integers(0, 10**13),
)
def test_a_record_in_the_gateways_format_is_read_like_any_json(
    pid: int, year: int, numbers: tuple[int, ...], ms: int, longest: int, ticks: int
) -> None:
    month, day, hour, minute, second = (f"{number:02}" for number in numbers)
    created = f"{year:04}-{month}-{day}T{hour}:{minute}:{second}.{ms:03}Z"
    fields = {"pid": pid, "createdAt": created, "maxHoldMs": longest, "starttime": ticks}
    data = (json.dumps(fields, indent=2) + "\n").encode()
    assert parse(data) == parse(b" " + data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b'{"pid":7,"createdAt":"2026-05-24"}', (7, None, None), id="april"),
        pytest.param(b'{"pid":7,"maxHoldMs":300000}', (7, 300_000, None), id="macos"),
        pytest.param(b'{"pid":7,"starttime":1769000000000000}', (7, None, None), id="microseconds"),
        pytest.param(b'{"pid":7,"starttime":0}', (7, None, 0), id="first-tick"),
        pytest.param(b'{"pid":7.0,"maxHoldMs":3e5}', (7, 300_000, None), id="js-integers"),
        pytest.param(b'{"pid":1,"pid":7,"extra":{"pid":3}}', (7, None, None), id="last-key-wins"),
        pytest.param(b' \r\n\t{"pid":7} \n', (7, None, None), id="white-space"),
        pytest.param(b'{"pid":7,"x":"\xff\xfe"}', (7, None, None), id="invalid-utf8-in-a-string"),
        pytest.param(b'{"pid":7,"x":"\\ud800"}', (7, None, None), id="lone-surrogate"),
    ],
)  # fmt: skip
def test_each_field_is_read_independently(
    data: bytes, expected: tuple[int | None, int | None, int | None]
) -> None:
    read = parse(data)
    assert (read.pid, read.max_hold_ms, read.starttime) == expected


@pytest.mark.parametrize(
    "value",
    ["true", "false", "null", '"7"', "[7]", "{}", "0", "-1", "7.5", "-0", "1e999", "-1e999",
     "9007199254740993", "1" * 400, "1" * 5000, "0.1e1000000", "9007199254740994.0"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["pid", "maxHoldMs"])
def test_an_invalid_number_is_absent(name: str, value: str) -> None:
    read = parse(f'{{"starttime": 5, "{name}": {value}}}'.encode())
    assert read == Record(shape=Shape.RECORD, starttime=5)


@pytest.mark.parametrize("value", ["true", "-1", "1.5", "1e999", '"5"'])
def test_an_invalid_start_time_is_absent(value: str) -> None:
    assert parse(f'{{"starttime": {value}}}'.encode()) == Record(shape=Shape.RECORD)


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + FULL, FULL + b"x", FULL + b"\0", b"\0", b"NaN", b'{"pid":NaN}',
        b'{"pid":Infinity}', b'{"pid":-Infinity}', b"{", b'{"pid":7,}', b"[7]", b"7", b"null",
        b'"x"', b"\xff", b'{"x":"\n"}', b"{'pid':7}", b'{"pid":07}', b"[" * 60_000,
        b'{"a":' * 12_000, b'{"pid":7,"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b" ", b"\x0b{}", "\u00a0{}".encode(),
    ],
    ids=range(24),
)  # fmt: skip
def test_a_file_that_is_no_json_object_is_malformed(data: bytes) -> None:
    assert parse(data) == Record(shape=Shape.MALFORMED)


def test_an_empty_file_and_an_oversized_one_have_their_own_shapes() -> None:
    assert parse(b"") == Record(shape=Shape.EMPTY)
    assert parse(FULL + b" " * READ_LIMIT) == Record(shape=Shape.OVERSIZED)


@given(st.binary(max_size=400) | st.text().map(str.encode))
def test_parse_accepts_any_bytes(data: bytes) -> None:
    assert isinstance(parse(data), Record)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("pid", "createdAt", "maxHoldMs", "starttime", "x"), _JSON)
    )
)
def test_a_record_with_any_value_of_a_field_is_read_and_valid(fields: dict[str, object]) -> None:
    read = parse(json.dumps(fields).encode())
    assert read.shape is Shape.RECORD
    assert read.pid is None or (read.pid == fields["pid"] and 1 <= read.pid <= 2**53)
    assert read.max_hold_ms is None or 1 <= read.max_hold_ms <= 2**53
    assert read.starttime is None or read.starttime >= 0
    assert not isinstance(fields.get("pid"), bool) or read.pid is None


DATES: list[tuple[str, int | None]] = [
    ("2026-05-24T10:29:15.171Z", CREATED),
    ("2026-05-24T10:29:15Z", CREATED - 171),
    ("2026-05-24T10:29Z", CREATED - 15_171),
    ("2026-05-24T12:29:15.171+02:00", CREATED),
    ("2026-05-24T04:59:15.171-05:30", CREATED),
    ("2026-05-24T10:29:15.1719999Z", CREATED),
    ("2026-05-24T10:29:15.1Z", CREATED - 71),
    ("2026-05-24", 1779580800000),
    ("2026-05", 1777593600000),
    ("2026", 1767225600000),
    ("1970-01-01T00:00:00.000Z", 0),
    ("1969-12-31T23:59:59.999Z", -1),
    ("2026-02-30T00:00:00Z", 1772409600000),
    ("2026-05-24T24:00:00Z", 1779667200000),
    ("0000-01-01T00:00:00Z", -62167219200000),
    ("+275760-09-13T00:00:00.000Z", 8_640_000_000_000_000),
    ("-000001-01-01T00:00:00Z", -62198755200000),
    ("+275760-09-13T00:00:00.001Z", None),
    ("-000000-01-01T00:00:00Z", None),
    ("2026-13-01T00:00:00Z", None),
    ("2026-05-32", None),
    ("2026-05-00", None),
    ("2026-05-24T25:00:00Z", None),
    ("2026-05-24T24:00:01Z", None),
    ("2026-05-24T10:60Z", None),
    ("2026-05-24T10:29:60Z", None),
    ("2026-05-24T10:29:15+24:00", None),
    ("2026-05-24T10:29:15.Z", None),
    ("2026-05-24T10Z", None),
    ("\uff12\uff10\uff12\uff16", None),
    ("", None),
    ("yesterday", None),
    ("2026-05-24T10:29:15.171Z\n", None),
]


@pytest.mark.parametrize(("text", "expected"), DATES)
def test_a_date_is_read_as_in_javascript_or_not_at_all(text: str, expected: int | None) -> None:
    assert expected is None or parse_date(text) in {None, expected}


@pytest.mark.parametrize(("text", "expected"), DATES[:7])
def test_dates_with_a_time_and_a_zone_are_read(text: str, expected: int) -> None:
    assert parse_date(text) == expected


@pytest.mark.parametrize("text", ["2026-05-24T12:29:15.171", "2026-05-24", "2026", "20260524"])
def test_a_date_without_a_time_or_a_zone_is_none(text: str) -> None:
    assert parse_date(text) is None


@given(st.text(alphabet="0123456789-+:.TZ ", max_size=32))
def test_parse_date_accepts_any_text(text: str) -> None:
    ms = parse_date(text)
    assert ms is None or abs(ms) <= 8_640_000_000_000_000  # the largest date of JavaScript
