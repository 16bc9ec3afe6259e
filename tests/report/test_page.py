"""What the report of a whole run says."""

import pyarrow as pa
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
        "27 of the 84 filters that could be cut are gone, and with them 50% of the multiply-adds. "
        "Accuracy went from 81.3% to 74.2% (25.5% before the repair), on 2,000 evaluation images"
        in page.text
    )
    assert "its 95% interval is 72.4% to 75.9%" in page.text
    assert "Random cuts of that size keep 62.0% (12.2 points less)." in page.text
    assert (
        "By taylor it is 72.0%: 2.10 points less (95% interval +0.40 to +3.80), so clearly worse."
        in page.text
    )


@pytest.mark.parametrize(
    ("behind", "said"),
    [
        (
            (0.0065, -0.0081, 0.0211),
            "0.65 points less (95% interval −0.81 to +2.11), so not",
        ),
        (
            (-0.03, -0.05, -0.01),
            "3.00 points more (95% interval +1.00 to +5.00), so clearly",
        ),
        (None, "By taylor it is 72.0%: 2.2 points less."),
    ],
)
def test_a_rival_is_told_from_the_job_s_own_only_where_that_is_clear(behind, said):
    store = simulated_run("memory://report/rival", {"conv1": 6}, CLASSES[:3], side=8)
    metrics = store.read_json("prune/metrics.json")
    names = ("difference", "low", "high")
    metrics["criteria"][0]["behind"] = dict(zip(names, behind)) if behind else None
    store.publish_json("prune/metrics.json", metrics)
    assert said in Page(report(store)).text


def test_what_the_order_is_by_is_explained(store, page):
    assert "ranked by mean_abs (the mean of the unit's absolute Shapley values)" in page.text
    assert "The score alone does not decide the cut" in page.text
    assert "ranked last" in page.text
    assert "worth least" not in page.text
    several = simulated_run("memory://report/several", {"conv1": 6}, CLASSES[:3], side=8)
    metrics = several.read_json("prune/metrics.json") | {"criterion": "obs & mean_abs"}
    several.publish_json("prune/metrics.json", metrics)
    text = Page(report(several)).text
    assert "obs (what of a unit the others cannot make up for by least squares) and" in text
    assert "a unit's places by each of them are added up" in text
    assert "The job ranks by more than them: obs" in text


def test_units_that_are_ranked_by_their_score_are_worth_most_or_least():
    store = simulated_run("memory://report/by-mean", {"conv1": 6}, CLASSES[:3], side=8)
    record = store.read_json("run.json")
    record["job"]["prune"]["rank_by"] = ["mean"]
    store.publish_json("run.json", record)
    text = Page(report(store)).text
    assert "worth least" in text
    assert "does not decide the cut" not in text


@pytest.mark.parametrize(
    "number", ["40.6\u202fM", "20.3\u202fM", "270\u202fk", "1.09 MB", "547 kB", "4.49 ms", "0.833"]
)
def test_the_verdict_shows_size_and_speed_before_and_after(page, number):
    assert number in "".join(page.said)


def test_a_rival_stands_with_how_far_it_is_behind(page):
    assert "+2.10 +0.40 to +3.80" in page.text


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


@pytest.mark.slow
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
    total = page.text[page.text.index("all groups") :].split()
    n_unsure = pc.sum(pc.greater_equal(chances["misplaced"], 0.05)).as_py()
    assert total[2:6] == ["84", "57", "67.9%", str(n_unsure)]


def test_a_class_is_found_by_its_name_with_the_units_that_serve_it_most(page, store):
    table = store.read_table("class_scores.parquet")
    ship = table.filter(pc.equal(table["label"], CLASSES.index("ship")))
    best = ship.sort_by([("mean", "descending")]).slice(0, 5).to_pylist()
    of_ship = page.text[page.text.index("largest mean airplane") :].split(" ship ")[1][:220]
    for row in best:
        assert f"{row['group']} / {row['unit']} {row['mean']:.3g}"[:18] in of_ship


def test_excluded_groups_stand_with_their_reasons(page):
    assert (
        "stem could not be cut by the method; the reason it gave: pruning fails: shapes differ 16"
        in page.text
    )


def test_cards_show_images_where_the_unit_acts_and_its_kernel(page):
    said = page.figures
    assert sum(one.startswith("Image of ") for one in said) == len(SIZES) * 6 * 6
    assert sum(one.startswith("Adds most to the logit at the ") for one in said) == len(SIZES) * 36
    assert sum(one.startswith("Its kernel") for one in said) == 6
    assert len(page.all("image")) == len(SIZES)
    assert "Coupled with conv1, conv1.bn, conv1.next" in page.text


def test_the_mechanism_is_told_in_words(page):
    assert "units below 0 were put to the test" in page.text
    assert "better for " in page.text
    assert "are clearly redundant" in page.text
    assert "most like that by" in page.text
    assert "In the group in the middle, sampling would have removed other units" in page.text


def test_units_that_serve_a_class_are_named_with_how_they_were_chosen(page):
    assert "These are 8 units, 10% of all: those whose mean Shapley value on the class" in page.text
    assert "ship conv1 / 0" in page.text.split("Units that were removed for each class")[1]
    assert "on 2,000 evaluation images (at most" in page.text
    assert "airplane falls from 80% to 20%, other classes fall by 12.0 points" in page.text


def test_a_unit_that_does_nothing_serves_no_class():
    store = simulated_run("memory://report/idle", {"conv1": 6}, CLASSES[:3], side=8)
    units = store.read_table("explain/units.parquet")
    rows = [row | {"positive": 0.0, "negative": 0.0} for row in units.to_pylist()]
    table = pa.Table.from_pylist(rows, schema=units.schema)
    store.publish_table("explain/units.parquet", [table], table.schema)
    text = Page(report(store)).text
    assert "serves car most" not in text
    assert "serves bird most" not in text


def test_a_table_of_units_shows_all_of_them_up_to_a_size():
    sizes = {"conv1": 128, "conv2": 129}
    text = Page(report(simulated_run("memory://report/units", sizes, CLASSES[:3], side=8))).text
    assert "The 10 units at each end of 129; all are in scores.parquet." in text
    assert "units at each end of 128" not in text


def test_a_stage_that_found_all_of_its_tasks_done_was_there_already():
    store = simulated_run("memory://report/there", {"conv1": 6}, CLASSES[:3], side=8)
    record = store.read_json("run.json")
    record["stages"]["score"] |= {"tasks": 144, "tasks_found_done": 144}
    store.publish_json("run.json", record)
    assert "score there already" in Page(report(store)).text


def test_names_are_broken_into_lines_only_behind_what_parts_them(store):
    assert b"<bdi>layer1.<wbr>0.<wbr>conv1</bdi>" in report(store)


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


def test_of_negative_scores_it_says_how_many_were_put_to_the_test():
    store = simulated_run("memory://report/below", {"conv1": 40}, CLASSES[:3], side=8)
    table = store.read_table("explain/negatives.parquet")
    n = table.num_rows
    assert n > 1
    assert f"all {n} units below 0 were put to the test" in Page(report(store)).text
    store.publish_table("explain/negatives.parquet", [table.slice(0, 1)], table.schema)
    said = f"1 of the {n} units below 0 were put to the test (the most negative of each group)"
    assert said in Page(report(store)).text
