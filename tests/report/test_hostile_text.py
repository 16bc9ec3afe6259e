"""Whatever names a job has, they are shown and do nothing."""

import re

import pytest
from report.reading import Page
from simulated_run import simulated_run

from shapray.report.page import report

SCRIPT = "<script>alert('x')</script>"
NAMES = [
    SCRIPT,
    "\"' onmouseover='alert(1)' x=\"",
    "</style></svg></title>--><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{0}$ and $x",
    "مرحبا \u202e backwards",
    "🦜🏳️‍🌈",
    "lone \ud800 surrogate",
    "a" * 300,
]


@pytest.fixture(scope="module")
def page():
    sizes = {name.replace("\ud800", "!"): 5 for name in NAMES}  # no Parquet file could hold it
    return Page(report(simulated_run("memory://report/hostile", sizes, NAMES, 8, SCRIPT * 3)))


def test_only_the_page_s_own_script_is_there(page):
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert all(not key.startswith("on") for _, found in page.tags for key in found)


def test_names_are_shown_as_they_are(page):
    for name in (NAMES[0], NAMES[1], NAMES[2], NAMES[3], NAMES[4], NAMES[6], NAMES[8]):
        assert " ".join(name.split()) in page.text


def test_what_would_turn_the_direction_of_writing_is_spelled_out(page):
    assert "\u202e" not in page.text
    assert "مرحبا \\u202e backwards" in page.text
    assert "lone \\ud800 surrogate" in page.text


def test_names_are_isolated_from_the_direction_of_what_is_around_them(page):
    assert len(page.all("bdi")) > 2 * len(NAMES)


def test_ids_hold_nothing_of_a_name(page):
    assert all(re.fullmatch(r"[a-z0-9_-]+", one) for one in page.ids)
