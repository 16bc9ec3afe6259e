"""The cookbook's questions, asked of a run; and its page, which must hold the same ones."""

import pyarrow as pa
import pytest
from simulated_run import simulated_run

import shapray
from jobs.cookbook.make import README, markdown
from jobs.cookbook.queries import QUERIES

COLUMNS = (  # of each answer
    ("group", "unit", "mean", "low", "high"),
    ("group", "units", "below_0", "surely_below_0"),
    ("group", "n_units", "n_removed", "units_share", "worth_share"),
    ("group", "unit", "on_class", "error", "on_others"),
    ("group", "unit", "label", "most", "others", "selectivity"),
    ("image_id", "label", "value", "error"),
    ("unit", "mean", "helps", "harms"),
    ("group", "estimator", "images", "active_units", "evaluations"),
    ("group", "removed", "score_at_the_cut", "within_one_error"),
    ("size", "criterion", "repair", "networks", "top1", "loss", "multiply_adds"),
    ("group", "serving", "most_selective", "hardly_another"),
    (
        *("group", "permutations", "exact_images", "n_cut"),
        *("draws_with_another_cut", "units_that_differ"),
    ),
    ("group", "unit", "score", "loss_change", "low", "high", "to_remove_it"),
)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    store = simulated_run(str(tmp_path_factory.mktemp("simulated")))
    return shapray.tables(store.root).duckdb()


@pytest.mark.parametrize(("query", "columns"), zip(QUERIES, COLUMNS, strict=True))
def test_a_question_is_answered(finished, simulated, query, columns):
    """Of a real run; where that has no image that is exact and needs sampling, of another."""
    answer = shapray.tables(str(finished)).duckdb().sql(query.sql)
    assert tuple(answer.columns) == columns
    if "FROM flips" in query.sql:
        answer = simulated.sql(query.sql)
    assert len(answer.fetchall()) > 0


def test_the_page_holds_the_questions_as_they_are():
    page = README.read_text()
    for query in QUERIES:
        assert query.question in page
        assert query.sql.strip() in page
        assert query.note in page


def test_an_answer_is_a_table_in_markdown():
    table = pa.table({"group": ["a", "b"], "mean": [0.5, None]})
    assert markdown(table) == "| group | mean |\n| --- | --: |\n| a | 0.5 |\n| b |  |"
