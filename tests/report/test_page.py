"""What the report of a whole run says."""

import pyarrow.compute as pc
import pytest
from report.reading import Page
from simulated_run import CLASSES, SIZES, simulated_run

from shapray.report.page import publish_report, report


@pytest.fixture(scope="module")
def store():
    return simulated_run("memory://report/whole")


@pytest.fixture(scope="module")
def page(store):
    return Page(report(store))


def test_the_verdict_says_what_was_cut_and_what_it_cost(page):
    assert (
        "27 of 84 filters are gone, and with them 50% of the multiply-adds. Accuracy went from "
        "81.3% to 74.2% (25.5% before the repair), on 2,000 images" in page.text
    )
    assert "the 95% interval is 72.4% to 75.9%" in page.text
    assert "At the same size, random cuts of the same size 62.0%; taylor 72.0%." in page.text


@pytest.mark.parametrize(
    "number", ["40.6\u202fM", "20.3\u202fM", "270\u202fk", "1.09 MB", "547 kB", "4.49 ms", "0.833"]
)
def test_the_verdict_shows_size_and_speed_before_and_after(page, number):
    assert number in "".join(page.said)


def test_a_rival_stands_with_how_far_it_is_behind(page):
    assert "+2.1 +0.4 to +3.8" in page.text


def test_every_section_has_a_place_that_the_navigation_leads_to(page):
    links = [link["href"] for link in page.all("a") if link["href"].startswith("#")]
    assert links[:7] == [
        "#verdict",
        "#groups",
        "#curves",
        "#scores",
        "#cards",
        "#mechanism",
        "#provenance",
    ]
    assert {link[1:] for link in links} <= set(page.ids)


def test_no_two_elements_have_the_same_id(page):
    assert len(page.ids) == len(set(page.ids))


def test_what_figures_refer_to_is_there(page, store):
    source = report(store).decode()
    used = {part.split(")")[0] for part in source.split("url(#")[1:]}
    used |= {found["xlink:href"][1:] for found in page.all("use") if "xlink:href" in found}
    used |= {found["href"][1:] for found in page.all("use") if "href" in found}
    assert used
    assert used <= set(page.ids)


def test_nothing_is_loaded_and_no_script_but_its_own_may_run(store):
    page = Page(report(store))
    loaded = [found.get(key) for _, found in page.tags for key in ("src", "href", "xlink:href")]
    assert all(one.startswith(("#", "data:")) for one in loaded if one)
    assert b"http://" not in report(store).replace(b"http-equiv", b"")
    assert b"https://" not in report(store)
    [policy] = [one["content"] for one in page.all("meta") if one.get("http-equiv")]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert len(page.all("script")) == 1


def test_the_same_files_make_the_same_page(store):
    assert report(store) == report(store)


def test_every_figure_says_its_facts_in_words(page):
    assert all(page.figures)
    [accuracy] = [one for one in page.figures if one.startswith("Accuracy on the evaluation")]
    assert "whole 81.3%; not repaired 25.5%; repaired 74.2%; random 62.0%; taylor 72.0%" in accuracy
    [scores] = [one for one in page.figures if one.startswith("12 units, sorted by score")]
    assert "4 removed" in scores
    [flips] = [one for one in page.figures if one.startswith("Share of draws")]
    assert "2 permutations" in flips


def test_a_group_shows_how_many_of_its_units_stay_and_which_are_unsure(page, store):
    chances = store.read_table("explain/units.parquet")
    of = chances.filter(pc.equal(chances["group"], "fc1"))
    unsure = pc.sum(pc.greater_equal(of["misplaced"], 0.05)).as_py()
    row = page.text[page.text.index("layer2.0.conv1 32 22") :].split(" fc1 ")[1].split()
    assert row[:4] == ["24", "16", "66.7%", str(unsure)]


def test_a_class_is_found_by_its_name_with_the_units_that_serve_it_most(page, store):
    table = store.read_table("class_scores.parquet")
    ship = table.filter(pc.equal(table["label"], CLASSES.index("ship")))
    best = ship.sort_by([("mean", "descending")]).slice(0, 5).to_pylist()
    of_ship = page.text[page.text.index("largest mean airplane") :].split(" ship ")[1][:220]
    for row in best:
        assert f"{row['group']} / {row['unit']} {row['mean']:.3g}"[:18] in of_ship


def test_excluded_groups_stand_with_their_reasons(page):
    assert "stem pruning fails: shapes differ 16" in page.text


def test_cards_show_images_where_the_unit_acts_and_its_kernel(page):
    said = page.figures
    assert sum(one.startswith("Image of ") for one in said) == len(SIZES) * 6 * 6
    assert sum(one.startswith("Adds most to the logit at the ") for one in said) == len(SIZES) * 36
    assert sum(one.startswith("Its kernel") for one in said) == 6
    assert len(page.all("image")) == len(SIZES)
    assert "Coupled with conv1, conv1.bn, conv1.next" in page.text


def test_the_mechanism_is_told_in_words(page):
    assert "helps for " in page.text
    assert "are clearly redundant" in page.text
    assert "most like that by" in page.text
    assert "In the group in the middle, sampling would have removed other units" in page.text


def test_words_are_explained_where_they_first_stand(page):
    defined = {"multiply-add", "Repair", "unit", "group", "Shapley value", "total error"}
    defined |= {"coalition", "marginal contribution", "interaction", "permutations"}
    assert len(page.all("dfn")) >= len(defined)
    for word in defined:
        assert word in page.text


def test_provenance_names_network_images_versions_and_times(page):
    for fact in (
        "package.networks:resnet20",
        "data/calibration.parquet",
        "coalitions evaluated 385,552",
        "torch 2.9.0",
        "precision float32",
        "2 min 0 s",
        "0123456789abcdef",
    ):
        assert fact in page.text


def test_a_label_without_a_name_is_called_by_its_number():
    store = simulated_run("memory://report/nameless", class_names=[], n_classes=3)
    assert "class 2" in Page(report(store)).text


def test_the_report_is_published_beside_the_tables(store):
    assert publish_report(store).endswith("report.html")
    assert store.read("report.html") == report(store)
