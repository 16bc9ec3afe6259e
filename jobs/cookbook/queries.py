"""Questions to a finished run, and the SQL that answers each; they are of the digits' network, its
group `conv2` and the class 3. The last three are of the tables that explain the scores."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Query:
    """A question in a user's words.

    Attributes:
        sql: in DuckDB's words, on the views of ``shapray.tables(RUN_DIR).duckdb()``.
        note: what to know of the answer.
    """

    question: str
    sql: str
    note: str


QUERIES = (
    Query(
        "Which units does the network need most, and how sure is that?",
        """
SELECT "group", unit, round(mean, 3) AS mean,
    round(mean - 2 * total_error, 3) AS low, round(mean + 2 * total_error, 3) AS high
FROM scores
ORDER BY scores.mean DESC
LIMIT 5
""",
        "`total_error` holds both what the sampling and what the choice of the calibration images "
        "may change.",
    ),
    Query(
        "Which units would the network be better without, beyond doubt?",
        """
SELECT "group", count(*) AS units,
    count(*) FILTER (mean < 0) AS below_0,
    count(*) FILTER (mean + 2 * total_error < 0) AS surely_below_0
FROM scores
GROUP BY ALL
ORDER BY surely_below_0 DESC, "group"
""",
        "A unit of negative score lowers the value on average over all coalitions; whether "
        "removing it alone helps the whole network is another question.",
    ),
    Query(
        "What goes from each group, and what share of the group's worth goes with it?",
        """
SELECT "group", n_units, count(removed.unit) AS n_removed,
    round(count(removed.unit) / n_units, 3) AS units_share,
    round(coalesce(sum(mean_abs) FILTER (removed.unit IS NOT NULL), 0) / sum(mean_abs), 3)
        AS worth_share
FROM scores JOIN groups USING ("group") LEFT JOIN removed USING ("group", unit)
GROUP BY "group", n_units
ORDER BY "group"
""",
        "`removed` has a row per unit that goes; `shapray.tables(RUN_DIR, cut=NAME)` takes those "
        "of another cut.",
    ),
    Query(
        "Which filters serve class 3?",
        """
WITH means AS (
    SELECT "group", unit, label, mean, total_error,
        (sum(mean) OVER units - mean) / (count(*) OVER units - 1) AS others
    FROM class_scores WINDOW units AS (PARTITION BY "group", unit)
)
SELECT "group", unit, round(mean, 3) AS on_class, round(total_error, 3) AS error,
    round(others, 3) AS on_others
FROM means
WHERE label = 3
ORDER BY mean - others DESC
LIMIT 5
""",
        "The score on the class's images beside the mean of the scores on the other classes'.",
    ),
    Query(
        "Which units serve one class, and which serve all alike?",
        """
WITH ranked AS (
    SELECT "group", unit, label, mean_abs,
        row_number() OVER (PARTITION BY "group", unit ORDER BY mean_abs DESC) AS place
    FROM class_scores
), two AS (
    SELECT "group", unit, max(label) FILTER (place = 1) AS label,
        max(mean_abs) FILTER (place = 1) AS most, avg(mean_abs) FILTER (place > 1) AS others
    FROM ranked
    GROUP BY "group", unit
)
SELECT "group", unit, label, round(most, 3) AS most, round(others, 3) AS others,
    round((most - others) / (most + others), 2) AS selectivity
FROM two
WHERE most + others > 0
ORDER BY (most - others) / (most + others) DESC
LIMIT 5
""",
        "0: all classes alike, 1: one class alone (Morcos et al. 2018). `ORDER BY ... ASC` shows "
        "the other end.",
    ),
    Query(
        "On which images did unit 19 of conv2 matter most, and which way?",
        """
SELECT image_id, label, round(shapley_value[19 + 1]::DOUBLE, 3) AS value,
    round(standard_error[19 + 1]::DOUBLE, 3) AS error
FROM images
WHERE "group" = 'conv2'
ORDER BY abs(shapley_value[19 + 1]) DESC, image_id
LIMIT 5
""",
        "Lists in SQL begin at 1. Of one unit this is quicker than to lay all out as `values`.",
    ),
    Query(
        "Which units of conv2 help on some images and harm on others?",
        """
SELECT unit, round(avg(shapley_value), 3) AS mean,
    round(count(*) FILTER (shapley_value > 0) / count(*), 2) AS helps,
    round(count(*) FILTER (shapley_value < 0) / count(*), 2) AS harms
FROM values
WHERE "group" = 'conv2'
GROUP BY unit
ORDER BY least(helps, harms) DESC, unit
LIMIT 5
""",
        "`values` has a row per group, image and unit; name the group, and only its shards are "
        "read.",
    ),
    Query(
        "What was exact, what was sampled, and what did it cost?",
        """
SELECT "group", estimator, count(*) AS images, round(avg(n_active), 1) AS active_units,
    sum(n_evaluations) AS evaluations
FROM images
GROUP BY ALL
ORDER BY ALL
""",
        "Images with few active units are enumerated, so that their values have no sampling error.",
    ),
    Query(
        "How many units lie so near the cut that other images might have decided otherwise?",
        """
WITH marked AS (
    SELECT scores.*, removed.unit IS NOT NULL AS gone
    FROM scores LEFT JOIN removed USING ("group", unit)
), cut AS (
    SELECT "group", max(mean_abs) FILTER (gone) AS last_gone,
        min(mean_abs) FILTER (NOT gone) AS first_kept
    FROM marked
    GROUP BY ALL
    HAVING bool_or(gone)
)
SELECT "group", count(*) FILTER (gone) AS removed,
    round((last_gone + first_kept) / 2, 4) AS score_at_the_cut,
    count(*) FILTER (abs(mean_abs - (last_gone + first_kept) / 2) < mean_abs_total_error)
        AS within_one_error
FROM marked JOIN cut USING ("group")
GROUP BY "group", last_gone, first_kept
ORDER BY "group"
""",
        "For a job that ranks by `mean_abs`, as the quickstart's does.",
    ),
    Query(
        "What does the cut cost, beside other criteria at the same size?",
        """
SELECT size, criterion, repair, count(*) AS networks, round(avg(top1), 4) AS top1,
    round(avg(loss), 4) AS loss, avg(multiply_adds)::BIGINT AS multiply_adds
FROM curve
WHERE size IS NULL OR size <= 0.5
GROUP BY size, criterion, repair
ORDER BY size DESC NULLS FIRST, loss
""",
        "Rivals are cut to as many multiply-adds; those at random are a mean over seeds.",
    ),
    Query(
        "Where in the network is class 3 served, and by units that serve hardly another?",
        """
SELECT "group", count(*) AS serving, round(max(selectivity), 2) AS most_selective,
    string_agg(unit, ' ' ORDER BY selectivity DESC) FILTER (selectivity > 0.5) AS hardly_another
FROM units
WHERE serves = 3
GROUP BY ALL
ORDER BY serving DESC, "group"
""",
        "A unit `serves` the class on whose images its score is largest; `selectivity` as above.",
    ),
    Query(
        "Where would sampling have cut other units than the exact values do?",
        """
SELECT "group", permutations, n_images AS exact_images, n_cut,
    round(another_cut, 2) AS draws_with_another_cut, round(n_other, 1) AS units_that_differ
FROM flips
ORDER BY ALL
""",
        "On the images that are exact; with `permutations` as the price of each. Of a group that "
        "loses none, half of the units.",
    ),
    Query(
        "Does it help to remove a unit whose score is negative?",
        """
SELECT "group", unit, round(mean, 4) AS score, round(loss_change, 4) AS loss_change,
    round(loss_low, 4) AS low, round(loss_high, 4) AS high,
    CASE WHEN loss_high < 0 THEN 'helps' WHEN loss_low > 0 THEN 'harms' ELSE 'not clear' END
        AS to_remove_it
FROM negatives
ORDER BY negatives.loss_change
LIMIT 5
""",
        "The change of the evaluation images' loss if this unit alone goes, with its 95% interval.",
    ),
)
