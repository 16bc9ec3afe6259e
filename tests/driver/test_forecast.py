"""Looking ahead: what a plan counts is what the run does, and a budget is kept."""

import itertools
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import SCORED, write_job

from shapray.cluster.needs import workers_here
from shapray.config import Explain, Prune, load_job
from shapray.driver.budget import Choice, fitting
from shapray.driver.cutting_costs import CuttingCosts
from shapray.driver.explaining_costs import ExplainingCosts
from shapray.driver.forecast import Forecast, make_forecast
from shapray.driver.prediction import makespan
from shapray.driver.preview import parse_time
from shapray.driver.prices import read_prices
from shapray.driver.tasks import evaluated_slices
from shapray.errors import JobError
from shapray.run import main
from shapray.storage.run_directory import RunDirectory
from shapray.storage.shards import list_shards
from shapray.worker.costs import GroupCosts
from shapray.worker.survey import spread

MIXED = {"exact_max_players": 14, "precision": "float32"}  # some images exact, some sampled
OUTPUT = "memory://forecast-test"  # in memory: the run is in this process, too


@pytest.fixture
def memory():
    """The run directory in memory, empty before and after."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield RunDirectory(OUTPUT)
    fs.store.clear()


@pytest.fixture(scope="module")
def forecast(tmp_path_factory):
    job = load_job(write_job(tmp_path_factory.mktemp("forecast"), score=MIXED, output=OUTPUT))
    return make_forecast(job, (2, 4, 8, 16, 32))


def test_the_run_does_what_the_plan_counted(tmp_path, memory, forecast):
    assert main([str(write_job(tmp_path, score=MIXED, output=OUTPUT))]) == 0
    prediction = forecast.at("auto")
    shards = {}
    for path in list_shards(memory):
        with memory.fs.open(f"{memory.root}/{path}") as file:
            table = pa.parquet.read_table(file)
        shards.setdefault(table["group"][0].as_py(), []).append(table)
    assert {group.name for group in prediction.groups} == set(shards)
    for group in prediction.groups:
        done = pa.concat_tables(shards[group.name]).to_pandas()
        assert len(shards[group.name]) == len(group.tasks)
        assert group.n_evaluations == done["n_evaluations"].sum()
        assert group.exact == (done["estimator"] == "exact").mean()
        assert group.n_active == done["n_active"].mean()
    record = memory.read_json("run.json")["stages"]
    assert record["score"]["tasks"] == prediction.n_tasks
    assert record["score"]["evaluations"] == sum(group.n_evaluations for group in prediction.groups)
    n_images = len(forecast.planned.setup.evaluation)
    assert record["evaluate"]["networks"] == len(forecast.repaired)
    assert record["evaluate"]["tasks"] == sum(
        len(evaluated_slices(n_images, repaired)) for repaired in forecast.repaired
    )
    assert any(0 < group.exact < 1 for group in prediction.groups), "both estimators are at work"
    prices = read_prices(memory)
    assert prices == {group.name: group.price for group in prediction.groups}
    assert {found.n_images for found in prices.values()} == {24}


@pytest.mark.parametrize("asked", ["auto", 2])
def test_a_plan_with_images_to_spare_has_the_prices_of_the_run(tmp_path, memory, asked):
    score = MIXED | {"groups": ["conv3", "fc1"], "permutations": asked, "target_error": 0.9}
    path = write_job(tmp_path, score=score, output=OUTPUT)
    to_spare = "data.calibration.limit=auto"
    planned = make_forecast(load_job(path, [to_spare]), (2, 4)).at(asked).groups
    assert main([str(path), to_spare, *SCORED]) == 0
    assert {name: found.price for name, found in read_prices(memory).items()} == {
        group.name: group.price.price for group in planned
    }


def test_a_plan_says_what_it_is_and_leaves_nothing(tmp_path, memory, capsys):
    job = write_job(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main([str(job), "--plan", "score.permutations=4"]) == 0
    said = capsys.readouterr().out
    for word in ("conv1", "conv2", "conv3", "fc1", "nothing is written", "permu-", "total"):
        assert word in said
    assert "fc2 (10 units): " in said
    assert "counted on 24 of 24 calibration images" in said
    assert sorted(tmp_path.rglob("*")) == before
    assert not memory.fs.store


def test_a_distillation_is_counted_by_its_steps(forecast):
    def predicted(repair, steps):
        setup = forecast.planned.setup
        distill = setup.job.prune.distill.model_copy(update={"steps": steps})
        prune = setup.job.prune.model_copy(update={"repair": repair, "distill": distill})
        job = setup.job.model_copy(update={"prune": prune})
        planned = replace(forecast.planned, setup=replace(setup, job=job))
        found = Forecast(planned, forecast.survey, 1, forecast.where, forecast.planning)
        return found.at(8).worker_seconds("evaluate")

    without = predicted(("least_squares",), 100)
    few, many, more = (predicted(("least_squares", "distill"), steps) for steps in (100, 200, 400))
    assert without < few
    assert more - many == pytest.approx(2 * (many - few))


def test_a_larger_budget_never_means_fewer_permutations(forecast):
    times = [forecast.at(n).seconds(forecast.n_workers) for n in (2, 8, 10, 64, 300, 1024)]
    chosen = [fitting(forecast, seconds + 1e-9) for seconds in sorted(times)]
    for (smaller, larger), seconds in zip(itertools.pairwise(chosen), sorted(times)):
        assert smaller[0].permutations <= larger[0].permutations
        assert smaller[1].seconds(forecast.n_workers) <= seconds + 1e-9
    assert chosen[-1][0] == Choice(24, 1024)
    assert chosen[-1][2] is None
    assert all(choice.permutations % 2 == 0 for choice, _, _ in chosen)


@pytest.mark.slow
def test_a_budget_that_nothing_fits_names_the_numbers(tmp_path, memory, capsys):
    assert main([str(write_job(tmp_path)), "--budget", "1s"]) == 2
    said = capsys.readouterr().err
    assert "1.0 s is too short; 2 permutations of 24 images, the fewest, are predicted" in said
    assert "exact images" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_budget_of_a_begun_run_keeps_its_permutations(tmp_path, memory, capsys):
    job = str(write_job(tmp_path, output=OUTPUT))
    assert main([job, "score.permutations=4", *SCORED]) == 0
    assert main([job, "--budget", "1h", *SCORED]) == 0
    assert "begun with 4 permutations" in capsys.readouterr().out
    assert memory.read_json("run.json")["job"]["score"]["permutations"] == 4


@pytest.mark.slow
def test_the_plan_of_a_budget_shows_the_choice(tmp_path, memory, capsys):
    assert main([str(write_job(tmp_path, output=OUTPUT)), "--plan", "--budget", "1d"]) == 0
    assert "--budget 1d: 1024 permutations per image of 24 images" in capsys.readouterr().out
    assert not memory.fs.store


def test_exact_scores_have_no_permutations_to_choose(tmp_path, capsys):
    job = write_job(tmp_path, score__estimator="exact", score__groups=["conv3"])
    assert main([str(job), "--budget", "1h"]) == 2
    assert "draws none" in capsys.readouterr().err


def test_exact_scores_that_are_out_of_reach_are_refused(tmp_path, capsys):
    job = write_job(tmp_path, score__estimator="exact")
    assert main([str(job), "--plan"]) == 2
    assert "has 32 active units on image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30min", 1800), ("2h", 7200), ("1.5d", 129600)]
)
def test_times_of_a_budget(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["2", "2 hours", "h", "0s", "-1h", ""])
def test_what_is_not_a_time_is_refused(text):
    with pytest.raises(JobError, match="90s, 30min, 2h or 1d"):
        parse_time(text)


def test_a_stage_is_never_shorter_than_its_longest_task():
    tasks = [(1.0, np.array([4.0, 2.0, 2.0])), (0.0, np.array([3.0]))]
    assert makespan(tasks, 1) == 12  # prepared once
    assert makespan(tasks, 2) == 7  # 5 + 2 and 3 + 3: each worker prepares itself
    assert makespan(tasks, 100) == 5


def test_time_grows_with_what_is_evaluated():
    costs = GroupCosts(
        prepare=0,
        image=1,
        tables=2,
        rows=16,
        coalition=0.5,
        permutations=(2, 4, 8),
        books=(1, 2, 6),
        subset_image=3,
        subset=0.25,
        row=0,
        aggregate=0,
        shard_bytes=1,
        scores_bytes=1,
        label_bytes=1,
    )
    exact, n = np.array([True, False]), np.array([16.0, 10.0])
    assert costs.seconds(exact, n, 4).tolist() == [1 + 3 + 4, 1 + 2 + 5 + 2]
    assert costs.seconds(exact, n, 6)[1] == 1 + 2 + 5 + 4  # between two that were timed
    assert costs.seconds(exact, n, 32)[1] == 1 + 2 * 2 + 5 + 30  # behind; the tables twice


def test_the_sample_has_all_labels_evenly():
    labels = torch.arange(10).repeat(20)
    chosen = spread(labels, 200, 20)
    assert torch.bincount(labels[chosen]).tolist() == [2] * 10
    assert spread(None, 5, 5).tolist() == [0, 1, 2, 3, 4]


def test_workers_of_this_machine_need_their_processors(forecast):
    cluster = forecast.planned.setup.job.cluster
    one = workers_here(cluster)
    assert workers_here(cluster.model_copy(update={"cpus_per_worker": 2})) == one // 2


@pytest.mark.slow
@pytest.mark.cluster
def test_on_a_cluster_its_workers_are_timed_and_counted(shared_ray, tmp_path, monkeypatch):
    job = load_job(write_job(tmp_path, cluster__workers="auto", score__groups=["conv3"]))
    monkeypatch.setenv("RAY_ADDRESS", "the one this process has joined")
    forecast = make_forecast(job, (8,))
    assert forecast.n_workers == 3
    assert forecast.where == "this cluster (cpu)"
    assert forecast.survey.n_active.shape == (24, 1)


def costs(forecast, **settings):
    """Of what comes behind the scores, with other settings of the section `prune`."""
    job = forecast.planned.setup.job
    prune = Prune(**{"criteria": [], "repair": []} | settings)
    job = job.model_copy(update={"prune": prune})
    held_back = forecast.planned.setup.calibration.first(4) if prune.min_accuracy else None
    setup = replace(forecast.planned.setup, job=job, held_back=held_back)
    return CuttingCosts(
        replace(forecast.planned, setup=setup),
        forecast.survey,
        {group.name: 8 for group in setup.groups},
    )


def seconds(parts):
    return sum(prepare + tasks.sum() for prepare, tasks in parts)


def test_criteria_repairs_and_searches_have_their_price(forecast):
    forward, n_images = forecast.survey.forward, 24

    def criteria(*names):
        return seconds(costs(forecast, criteria=names).criteria())

    assert criteria() == criteria("l1_norm") == criteria("random", "mean") == 0
    assert criteria("taylor") == pytest.approx(3 * n_images * forward)
    assert criteria("taylor", "apoz") == pytest.approx(4 * n_images * forward)
    coalitions = sum(
        of.image + n * forecast.survey.groups[group.name].coalition
        for group, n in zip(
            forecast.planned.setup.groups, forecast.survey.n_active.mean(0), strict=True
        )
        for of in [forecast.survey.groups[group.name]]
    )
    assert criteria("leave_one_out") == pytest.approx(n_images * coalitions)
    assert criteria("obs") > 10 * n_images * forward
    assert criteria("shapley_sampled") > criteria("leave_one_out")

    assert costs(forecast).repair(24) == 0
    few, many = (
        costs(forecast, repair="distill", distill={"steps": n}).repair(24) for n in (10, 110)
    )
    assert many - few == pytest.approx(100 * 24 * 4 * forward)
    repairs = [{"repair": "least_squares"}, {"repair": "least_squares", "curve": [0.5]}]
    one, two = (seconds(costs(forecast, ratio=0.3, **asked).evaluation()) for asked in repairs)
    assert two - one > costs(forecast, repair="least_squares").repair(24) > 0

    assert costs(forecast, macs=0.5).search() == []
    searched = seconds(costs(forecast, min_accuracy=0.5, repair="least_squares").search())
    assert searched > 8 * costs(forecast, repair="least_squares").repair(20)
    fast, plain = (seconds(costs(forecast, **{key: 0.5}).latency()) for key in ("latency", "macs"))
    assert plain >= 4
    assert fast > plain + 4 * 8


def test_explaining_takes_longer_where_images_have_few_units(forecast):
    """These are sampled over and over, to hold the samples against what is exact."""
    cutting = costs(forecast)
    setup = cutting.planned.setup
    job = setup.job.model_copy(update={"explain": Explain(images=8)})

    def of(n_active):
        survey = replace(forecast.survey, n_active=np.full_like(forecast.survey.n_active, n_active))
        planned = replace(cutting.planned, setup=replace(setup, job=job))
        found = CuttingCosts(planned, survey, cutting.permutations)
        return seconds(ExplainingCosts(found, [1.0] * len(setup.groups)).parts())

    assert (
        seconds(ExplainingCosts(cutting, [1.0] * len(setup.groups)).parts()) == 0
    )  # not asked for
    assert of(8) > 1.2 * of(32) > 0


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_a_plan_without_losses_to_measure(tmp_path, capsys, allocation):
    job = str(write_job(tmp_path))
    asked = [f"prune.allocation={allocation}", "prune.criteria=[apoz]"]
    assert main([job, "--plan", *asked]) == 0
    said = capsys.readouterr().out
    assert "losses" not in said
    assert "search" not in said
    assert {"criteria", "evaluate", "latency"} <= {
        line.split()[0] for line in said.splitlines() if line.split()
    }


def test_a_plan_of_several_rounds_says_the_most_that_they_take(tmp_path, memory, capsys, forecast):
    job = write_job(tmp_path, score=MIXED, output=OUTPUT, prune={"macs": 0.5, "rounds": 3})
    assert main([str(job), "--plan"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "prune.rounds: 3: what is left after a round is scored again" in said
    assert "at most 3 times the scoring" in said
    assert not memory.fs.store
    one = forecast.at(8).work
    asked = forecast.planned.setup.job.model_copy(update={"prune": load_job(job).prune})
    setup = replace(forecast.planned.setup, job=asked)
    planned = replace(forecast.planned, setup=setup)
    of_three = Forecast(planned, forecast.survey, 1, "here", 0.0).at(8)
    scoring = forecast.at(8).worker_seconds("score")
    assert not any(name.startswith("round ") for name in one)
    assert of_three.worker_seconds("score") == scoring
    assert of_three.worker_seconds("round 2") == of_three.worker_seconds("round 3") > scoring
