"""The page: all sections of a run's report in a reader's order."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from shapray.report import (
    cards,
    classes,
    correlations,
    curves,
    groups,
    interactions,
    negatives,
    order,
    parts,
    provenance,
    sampling,
    scores,
    sizes,
    verdict,
    wording,
)
from shapray.report.parts import Section
from shapray.report.read import Run, read_run
from shapray.storage import names
from shapray.storage.run_directory import RunDirectory
from shapray.text import shown


def _sentence(criterion: str) -> str:
    meaning = order.MEANINGS[criterion]
    return meaning[0].upper() + meaning[1:]


_WORDS = (
    ("unit", "What can be removed: a filter of a convolution, or a neuron of a hidden layer."),
    ("group", "Units of layers that can only be cut together; named after its first module."),
    ("coalition", "A set of units that is kept while the other units of the group are masked."),
    (
        "value",
        "How well the network does on an image with a coalition; unless the job says otherwise, "
        "minus the cross-entropy, in nats. Larger is better.",
    ),
    ("marginal contribution", "What the value rises by when a unit joins a coalition."),
    (
        "Shapley value",
        "A unit's mean marginal contribution over all orders in which the units could join. On "
        "each image they sum up to what all units together add. Positive: the network needs the "
        "unit.",
    ),
    ("score", "The mean of a unit's Shapley values over the calibration images; also “mean”."),
    ("mean_abs", f"{_sentence('mean_abs')}."),
    ("obs", f"{_sentence('obs')}."),
    ("taylor", f"{_sentence('taylor')}."),
    (
        "class selectivity",
        "How much more a unit does for one class than for the mean of the others (Morcos et al. "
        "2018): 0 serves all alike, 1 one alone.",
    ),
    (
        "ranking",
        "The order in which the units of a group stay: what is ranked last goes first. By several "
        f"criteria, {order.SEVERAL}.",
    ),
    (
        "total error",
        "Standard error of a score against the mean over all images of the kind: from the choice "
        "of the calibration images and from the sampling of coalitions together, the root of the "
        "sum of their squares. ± is one such error, whiskers and bands are 95% intervals. The "
        "spread that errors are compared with is the standard deviation of a group's scores.",
    ),
    (
        "wrong side of the cut",
        "Where a unit lies that would be kept instead of removed, or the other way round, if its "
        "score were known without error. Whoever is kept by mistake takes the place of one that is "
        "removed by mistake: of both together, half are removed.",
    ),
    (
        "calibration and evaluation images",
        "Those that score, and those that judge: never the same.",
    ),
    ("multiply-adds", "Multiplications with an addition that one image takes."),
    ("repair", "Adapting the weights that stay to what is gone, without labels."),
)


@dataclass(frozen=True)
class Part:
    """What stands under a heading of the first rank; `nav`: its name at the top of the page."""

    key: str
    title: str
    nav: str
    html: Markup
    sections: Sequence[Section] = ()


def report(store: RunDirectory) -> bytes:
    """The report of a run as one HTML page that loads nothing.

    What is not there is named in its place, with the command that makes it.

    Raises:
        JobError: there is no run, or one of its files is damaged; the message names it.
        StorageError: a file cannot be read, or is damaged.
    """
    run = read_run(store)
    first = [one.section(run) for one in (verdict, groups, curves, scores, cards)]
    mechanism = [
        one.section(run)
        for one in (correlations, classes, interactions, sizes, negatives, sampling)
    ]
    last = provenance.section(run)
    found = [
        *(Part(one.key, one.title, nav, one.html()) for nav, one in zip(_FIRST, first)),
        Part("mechanism", "How the criterion decides", "Mechanism", _MECHANISM, mechanism),
        Part(last.key, last.title, "Provenance", last.html()),
    ]
    page = parts.page(
        found,
        title=shown(f"{run.record.name}: report"),
        name=wording.named(run.record.name),
        subtitle=_subtitle(run),
        words=_WORDS,
        version=shown(run.record.versions.get("shapray") or ""),
        shown=wording.named(run.shown),
    )
    return page.encode("utf-8")


def publish_report(store: RunDirectory) -> str:
    """Write ``report.html`` into the run directory; returns where it is. Raises as `report`."""
    store.publish(names.REPORT, report(store))
    return f"{store.shown}/{names.REPORT}"


_FIRST = ("Verdict", "What stays", "By size", "Scores", "Filter cards")
_MECHANISM = Markup(
    "<p>Not only which units matter, but how the criterion comes to say so: what its order of the "
    "units goes along with, whom they serve, and where it errs.</p>"
)


def _subtitle(run: Run) -> str:
    words = ["What was cut from the network, what it cost, and why these units"]
    if run.record.started:
        words.append(shown(run.record.started[:10]))
    return " · ".join(words)
