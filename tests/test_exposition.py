"""What a scraper is sent is what prometheus_client would have sent, byte for byte."""

import gzip
import os
from collections.abc import Callable

import pytest
from prometheus_client import generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from reaper.core.evidence import Holder, HolderState, HoldProof
from reaper.core.finding import Skipped
from reaper.reports.exposition import exposition
from reaper.reports.metrics import Knowledge, Metrics
from tests.test_metrics import a_lock, made

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
ACCEPTS = (
    "",
    "*/*",
    "text/plain;version=0.0.4",
    "text/plain;version=1.0.0;escaping=allow-utf-8",
    "text/plain;version=1.0.0;escaping=dots",
    "text/plain;version=1.0.0;escaping=values",
    "application/openmetrics-text",
    f"{OPENMETRICS};escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    f"{OPENMETRICS};escaping=underscores",
    f"{OPENMETRICS};escaping=dots",
    f"{OPENMETRICS};escaping=values",
    "application/openmetrics-text;version=2.0.0",
)
HOSTILE = (
    'quo"ted',
    "back\\slash",
    "line\nfeed",
    "{brace}",
    'a"} 1\nreaper_locks{agent="b',
    "100 % %s %(x)s",
    "ünïcode-狼",
    os.fsdecode(b"\xff\xfe"),
    "x" * 500,
    "a b",
    "",
)


def nothing() -> Metrics:
    return made(Knowledge())


def one_agent() -> Metrics:
    knowledge = Knowledge()
    knowledge.put(1, a_lock())
    return made(knowledge)


def much() -> Metrics:
    """Agents of hostile names, some beyond the cap, locks of several verdicts, huge numbers."""
    knowledge = Knowledge()
    knowledge.set_skipped([Skipped(path="/x", reason="symlink", failed=True)])
    gone = Holder(state=HolderState.GONE)
    for number, agent in enumerate([*HOSTILE, *map(str, range(5))]):
        knowledge.put((number, 1), a_lock(agent, age=1e9))
        knowledge.put((number, 2), a_lock(agent, proof=HoldProof.NOT_OPEN, holder=gone))
    metrics = made(knowledge, max_agents=len(HOSTILE) + 1)
    metrics.hold.observe(0.3)
    metrics.last_sweep.set_to_current_time()
    return metrics


@pytest.mark.parametrize("known", [nothing, one_agent, much])
@pytest.mark.parametrize("accept", ACCEPTS)
def test_each_format_is_that_of_prometheus_client(
    accept: str, known: Callable[[], Metrics]
) -> None:
    registry = known().registry
    encode, content_type = choose_encoder(accept)
    body, headers = exposition(registry, accept=accept, accept_encoding="", query="")
    assert body == encode(registry)
    assert headers == {"Content-Type": content_type}


def test_its_parsers_read_back_what_is_known() -> None:
    metrics = much()
    for accept, parse in (("", parse_text), (OPENMETRICS, parse_openmetrics)):
        body, _ = exposition(metrics.registry, accept=accept, accept_encoding="", query="")
        read = {
            (it.name, *sorted(it.labels.items())): it.value
            for family in parse(body.decode())
            for it in family.samples
        }
        told = {
            (it.name, *sorted(it.labels.items())): it.value
            for family in metrics.registry.collect()
            for it in family.samples
        }
        assert read == told
        assert ("reaper_stuck_locks", ("agent", 'quo"ted'), ("state", "s")) in read
        locks = [value for (name, *_), value in read.items() if name == "reaper_locks"]
        assert sum(locks) == 2 * (len(HOSTILE) + 5)


def test_compressed_it_is_the_same_and_names_choose_families() -> None:
    registry = one_agent().registry
    plain, _ = exposition(registry, accept="", accept_encoding="", query="")
    small, headers = exposition(registry, accept="", accept_encoding="br, gzip;q=1", query="")
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(small) == plain
    query = "name[]=reaper_events_total&name[]=reaper_build_info"
    chosen, _ = exposition(registry, accept="", accept_encoding="", query=query)
    names = ["reaper_events_total", "reaper_build_info"]
    assert sorted(chosen.splitlines()) == sorted(
        generate_latest(registry.restricted_registry(names)).splitlines()
    )
