"""The job file: what is read, what is refused, and with which words."""

from pathlib import Path

import pytest
import yaml

from shapray.config import Job, load_job
from shapray.errors import JobError

ROOT = Path(__file__).parents[1]
MINIMAL = {
    "name": "x",
    "model": {"factory": "shapray.zoo:digits_cnn"},
    "data": {
        "calibration": {"source": "parquet", "path": "a.parquet"},
        "evaluation": {"source": "parquet", "path": "b.parquet"},
    },
    "output": "runs/x",
}
INT64 = 2**63 - 1


@pytest.fixture
def load(tmp_path):
    """A job from the minimal file, a section as a line of YAML, and overrides."""

    def load(*overrides: str, more: str = "") -> Job:
        file = tmp_path / "job.yaml"
        replaced = more.partition(":")[0]
        kept = {key: value for key, value in MINIMAL.items() if key != replaced}
        file.write_text(yaml.safe_dump(kept) + more)
        return load_job(file, overrides)

    return load


@pytest.mark.parametrize("file", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_jobs_that_are_shipped_load(file):
    assert load_job(file).name


# -- numbers


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("data.calibration.limit", 1, 2**31 - 1),
        ("data.calibration.seed", 0, INT64),
        ("data.evaluation.seed", 0, INT64),
        ("data.transform.resize", 1, 2**14),
        ("data.transform.crop", 1, 2**14),
        ("score.permutations", 2, 2**20),
        ("score.exact_max_players", 0, 24),
        ("score.seed", 0, INT64),
        ("cluster.workers", 1, 2**16),
        ("cluster.cpus_per_worker", 1, 1024),
        ("cluster.gpus_per_worker", 0, 1024),
        ("cluster.images_per_task", 1, 2**31 - 1),
        ("prune.min_units", 1, 2**31 - 1),
        ("prune.round_to", 1, 2**31 - 1),
    ],
)
def test_whole_numbers_have_bounds_and_the_message_says_them(load, key, least, most):
    for number in (least, most):
        load(f"{key}={number}")
    for number in (least - 1, most + 1, 10**40, ".inf", ".nan", "true", "[]", "many"):
        with pytest.raises(JobError) as caught:
            load(f"{key}={number}")
        [_, line] = str(caught.value).splitlines()
        assert line.startswith(f"  {key}: expected ")
        assert f"{most:,}" in line
        assert "(found " in line


def test_seeds_of_the_baselines_fit_their_column(load):
    assert load(f"prune.random_seeds=[0, {INT64}]").prune.random_seeds == (0, INT64)
    with pytest.raises(JobError, match=rf"random_seeds\.1: .* to {INT64:,} \(found {INT64 + 1}\)"):
        load(f"prune.random_seeds=[0, {INT64 + 1}]")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.transform.resize=[8]", r"a side or \[height, width\], each from 1 to 16,384"),
        ("data.transform.resize=[8, 16385]", "each from 1 to 16,384"),
        ("data.transform.mean=[0, .nan, 0]", r"mean\.1: expected a finite number \(found nan\)"),
        ("data.transform.mean=[0, 0, .inf]", r"mean\.2: expected a finite number"),
        ("data.transform.mean=0.5", r"mean: expected a list \(found 0\.5\)"),
        ("data.transform.mean=[0.5]", "mean has 1 numbers; mode RGB has 3 channels"),
        ("data.transform.std=[1, 0, 1]", r"std\.1: expected a finite number above 0 \(found 0\)"),
        ("data.transform.std=[1, 1, .nan]", r"std\.2: expected a finite number above 0"),
        ("score.permutations=7", "permutations is 7; .* must be even"),
        ("score.target_error=.inf", "expected a finite number above 0"),
        ("score.target_error=1" + "0" * 400, "expected a finite number above 0"),
        ("cluster.gpus_per_worker=1.5", "a whole number .* or a part of one GPU"),
        ("cluster.gpus_per_worker=0.00001", "a part of one GPU from 0.0001"),
        ("prune.ratio=1", "from 0 to below 1"),
        ("prune.ratio=.nan", "from 0 to below 1"),
        ("prune.curve=[0.1, 0]", r"curve\.1: expected a number between 0 and 1"),
        ("prune.curve=[0.1, 0.1]", "curve has an entry twice"),
        (
            f"data.calibration.where.fold={2**63}",
            r"where\.fold: expected text, true, false or a whole number below 9,223,372",
        ),
        ("data.calibration.where.fold=0.5", r"where\.fold: expected text, true, false or a whole"),
    ],
)
def test_other_numbers_that_are_refused(load, override, words):
    with pytest.raises(JobError, match=words):
        load(override)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("2GiB", 2**31),
        ("2 GB", 2 * 10**9),
        ("1.5gib", 3 * 2**29),
        ("1500MB", 1.5e9),
        ("2G", 2e9),
        ("1TiB", 2**40),
        ("2147483648", 2**31),
        ("2e9", 2e9),
    ],
)
def test_sizes(load, text, n_bytes):
    assert load(f"cluster.memory_per_worker={text}").cluster.memory_per_worker == n_bytes


@pytest.mark.parametrize(
    "text",
    [
        *("1.2.3GiB", "-2GiB", "", "''", "GiB", "2iB", "2 elephants", "2e9GiB"),
        *("500MB", "1025TiB", f"{10**99}GiB", "1e99", ".inf", "true", "[2GiB]"),
    ],
)
def test_sizes_that_are_none_or_out_of_bounds(load, text):
    with pytest.raises(JobError, match=r"memory_per_worker: expected a size from 1GiB to 1024TiB"):
        load(f"cluster.memory_per_worker={text}")


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 1e-3), ("1E5", 1e5), ("1.5e3", 1500.0), ("-.5e+2", -50.0), ("+.5", 0.5), ("7", 7)],
)
def test_numbers_are_numbers_where_nothing_says_what_they_are(load, text, number):
    for job in (
        load(f"model.kwargs.eps={text}"),
        load(f"model.kwargs={{eps: {text}}}"),
        load(more=f"model: {{factory: 'a:b', kwargs: {{eps: {text}}}}}\n"),
    ):
        found = job.model.kwargs["eps"]
        assert found == number
        assert type(found) is type(number)


@pytest.mark.parametrize("text", ["'1e-3'", "e3", "1e", "12e4f", "1-3", "v1.5e3"])
def test_what_only_looks_like_a_number_stays_text(load, text):
    assert load(f"model.kwargs.eps={text}").model.kwargs["eps"] == text.strip("'")


# -- names and places


@pytest.mark.parametrize(
    "output",
    [
        *("", "''", "'  '", ".", "./", "..", "../..", "runs/..", "/", "//", "'~'", "7"),
        *("file:///", "s3://", "s3://bucket/..", "memory://", "memory:///"),
    ],
)
def test_an_output_that_names_no_folder(load, output):
    with pytest.raises(JobError, match=r"output: names no folder for a run; right is runs/NAME"):
        load(f"output={output}")


@pytest.mark.parametrize(
    "output", ["runs", "../run", "/tmp/run", "~/run", "s3://bucket", "gs://b/run/", "memory://run"]
)
def test_an_output_that_names_one(load, output):
    assert load(f"output={output}").output == output


@pytest.mark.parametrize("value", ["''", "' '", "2024", "yes"])
@pytest.mark.parametrize("key", ["name", "model.weights", "data.calibration.path"])
def test_a_name_is_text_that_is_not_blank(load, key, value):
    with pytest.raises(JobError, match=rf"{key}: expected text, not blank .*found "):
        load(f"{key}={value}")


@pytest.mark.parametrize("key", ["image_column", "label_column", "id_column"])
def test_columns_have_names(load, key):
    with pytest.raises(JobError, match=r"data\.calibration\..*: expected text, not blank"):
        load(f"data.calibration.{key}=' '")


@pytest.mark.parametrize(("text", "output"), [("1", 1), ("scores", "scores"), ("null", None)])
def test_an_output_is_named_or_numbered(load, text, output):
    assert load(f"model.output={text}").model.output == output


@pytest.mark.parametrize("text", ["-1", "true", "1.5", "' '"])
def test_what_names_no_output(load, text):
    with pytest.raises(JobError, match=r"model\.output: expected an output's name, or its place"):
        load(f"model.output={text}")


@pytest.mark.parametrize("factory", ["resnet20", "a:b:c", ":net", "'net:'", "a b:c", "''"])
def test_a_factory_is_a_module_and_a_callable(load, factory):
    with pytest.raises(JobError, match=r"model\.factory: expected module:callable \(found '"):
        load(f"model.factory={factory}")


# -- sections and keys


@pytest.mark.parametrize("section", ["score", "cluster", "prune"])
def test_an_empty_section_is_an_empty_section(load, section):
    expected = load()
    assert load(more=f"{section}:\n") == expected
    assert load(f"{section}=") == expected
    given = getattr(expected, section).model_dump()
    key, value = next((key, value) for key, value in given.items() if value is not None)
    assert load(f"{section}.{key}={value}", more=f"{section}:\n") == expected


def test_one_target_says_how_small_the_network_gets(load):
    assert load().prune.target == load(more="prune:\n").prune.target == ("ratio", 0.3)
    assert load("prune.macs=0.4").prune.target == ("macs", 0.4)
    in_file = "prune: {ratio: 0.2, scope: group, rank_by: taylor, criteria: [random, taylor]}\n"
    prune = load(more=in_file).prune
    assert (prune.target, prune.allocation, prune.compared) == (
        ("ratio", 0.2),
        "uniform",
        ("random",),
    )
    assert load("prune.parameters=0.6", more=in_file).prune.target == ("parameters", 0.6)


def test_empty_sections_inside_others(load):
    expected = load()
    for key in ("data.transform", "data.calibration.where", "model.kwargs"):
        assert load(f"{key}=") == expected
    where = load("data.calibration.where=", "data.calibration.where.split=cal").data
    assert where.calibration.where == {"split": "cal"}
    with pytest.raises(JobError, match=r"model\.factory: this key is missing"):
        load("model=")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("prune=0.5", r"prune: expected a section \(found 0\.5\)"),
        ("name.first=x", "'name' is a value, not a section"),
        ("prune", "not an override; write section.key=value"),
        ("prune.criterion=shapley", "prune.criterion: unknown key; known here: macs, parameters"),
        (
            "score.target_standard_error=0.1",
            "score.target_standard_error: it is score.target_error now",
        ),
        ("scores.seed=1", "scores: unknown key; known here: name, model, data, score"),
        ("score.value=loss", "score.value: expected one of neg_cross_entropy, .*found 'loss'"),
        (
            "prune.rank_by=size",
            r"rank_by\.0: expected auto, mean, mean_abs, .*l1_norm, .*found 'size'",
        ),
        ("prune.rank_by=[]", r"rank_by is \[\]; name one criterion or several"),
        (
            "prune.rank_by=[random, mean]",
            "rank_by is .*; name one criterion or several, and random",
        ),
        ("prune.rank_by=[obs, auto]", "rank_by is .*; name one .*, and auto by itself"),
        ("prune.criteria=[taylor, taylor]", "criteria has an entry twice"),
        (
            "prune.repair=[finetune]",
            r"repair\.0: expected one of batchnorm, least_squares, distill",
        ),
        (
            "prune.repair=[distill, least_squares]",
            r"repair is .*; they are done in the order \['least_squares', 'distill'\]",
        ),
        ("prune={macs: 0.5, ratio: 0.3}", "macs: 0.5 and ratio: 0.3; one of them says how small"),
        ("prune={scope: layer}", "scope is called allocation now: measured, global or uniform"),
        ("prune.macs=0", r"macs: expected a number between 0 and 1"),
        ("score.groups=layer*", r"score.groups: expected a list \(found 'layer\*'\)"),
        ("data.calibration.source=hdf5", "source: .*'parquet', 'imagefolder'"),
        ("data.calibration.path=", "source 'parquet' needs the key 'path'"),
        ("data.calibration={source: callable}", "source 'callable' needs the key 'factory'"),
        ("name=[", "not YAML"),
        ("name=2024-13-45", "not YAML: month must be in 1..12"),
        ("name=" + "9" * 5000, "not YAML: .*4300 digits"),
        ("name={a: 1, a: 2}", "the key 'a' is there twice"),
    ],
)
def test_keys_and_sections_that_are_wrong(load, override, words):
    with pytest.raises(JobError, match=words):
        load(override)


def test_what_was_found_is_shown_but_not_pages_of_it(load):
    with pytest.raises(JobError) as caught:
        load("score.seed=" + "9" * 4000)
    assert len(str(caught.value)) < 500


def test_files_that_are_no_job(tmp_path):
    file = tmp_path / "job.yaml"
    with pytest.raises(JobError, match=r"job\.yaml: no such file"):
        load_job(file)
    for content, words in (
        (b"", "expected sections, found NoneType"),
        (b"- a", "expected sections, found list"),
        (b"a: [", "is not YAML"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8 text"),
    ):
        file.write_bytes(content)
        with pytest.raises(JobError, match=words):
            load_job(file)
