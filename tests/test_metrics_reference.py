from tests.metrics_reference import PAGE, with_table


def test_the_metrics_page_matches_the_code() -> None:
    page = PAGE.read_text()
    assert page.count("reaper_") > 20
    assert with_table(page) == page, "out of date: make pages"


def test_a_missing_or_surplus_metric_on_the_page_is_noticed() -> None:
    page = PAGE.read_text()
    assert with_table(page.replace("`reaper_locks`", "`reaper_gone`")) == page
    lines = [line for line in page.splitlines(keepends=True) if "`reaper_locks`" not in line]
    assert with_table("".join(lines)) == page
