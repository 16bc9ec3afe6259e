"""The functions for a notebook: a job's numbers, nothing left behind, words for errors."""

import copy

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from networks import NETWORKS, randomise
from tiny import SCORED, Bright, write_job
from torch.nn.utils import weight_norm
from torchvision.ops import FrozenBatchNorm2d

import shapray
from shapray.config import load_job
from shapray.inputs.images import open_images
from shapray.inputs.model import build_model
from shapray.pruning.saved import load_pruned
from shapray.run import main

SETTINGS = {"permutations": 2, "precision": "float32", "progress": False}
OF_JOB = {"exact_max_players": 6, "images_per_task": 2}  # see `write_job`


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A job's network and images, opened as the job opens them."""
    path = write_job(tmp_path_factory.mktemp("digits"), score__permutations=2)
    job = load_job(path)
    model = build_model(job.model)
    calibration, evaluation = (
        open_images(section, job.data.transform, "images")
        for section in (job.data.calibration, job.data.evaluation)
    )
    return path, model, calibration, evaluation


def given(images):
    return images.load(0, len(images)), images.labels


def test_its_values_are_those_of_a_job_to_the_bit(digits, tmp_path):
    path, model, calibration, _ = digits
    output = f"memory://{tmp_path.name}"
    assert main([str(path), f"output={output}", "score.precision=float32", *SCORED]) == 0
    settings = {"ids": calibration.ids, "balanced": True, **SETTINGS, **OF_JOB}
    scores = shapray.score(model, *given(calibration), **settings)
    for name, table in {
        "scores.parquet": scores.scores,
        "class_scores.parquet": scores.class_scores,
        "groups.parquet": scores.groups,
    }.items():
        with fsspec.open(f"{output}/{name}") as file:
            assert pq.read_table(file).equals(table), name


@pytest.mark.slow
@pytest.mark.cluster
def test_workers_on_ray_give_the_same(digits, shared_ray):
    _, model, calibration, _ = digits
    apart = shapray.score(model, *given(calibration), groups="conv*", workers=2, **SETTINGS)
    alone = shapray.score(model, *given(calibration), groups="conv*", **SETTINGS)
    assert apart.images.equals(alone.images)
    assert apart.scores.equals(alone.scores)


def test_from_scores_to_a_smaller_network(digits, capsys):
    _, model, calibration, evaluation = digits
    images, labels = given(calibration)
    before, threads = copy.deepcopy(model.state_dict()), torch.get_num_threads()
    model.train()
    try:
        scores = shapray.score(model, images, labels.tolist(), groups=["conv3", "fc1"], **SETTINGS)
        cut = shapray.plan(scores, ratio=0.3)
        small = shapray.prune(model, cut, images[:1])
        quality = shapray.evaluate(small, *given(evaluation))
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.get_num_threads() == threads
    assert capsys.readouterr() == ("", "")

    assert cut.keys() == {"conv3", "fc1"}
    n_units = scores.scores.num_rows
    assert sum(map(len, cut.values())) == int(0.3 * n_units)
    worst = scores.to_pandas().sort_values("mean_abs").head(int(0.3 * n_units))
    assert {group: sorted(part["unit"]) for group, part in worst.groupby("group")} == {
        group: units for group, units in cut.items() if units
    }
    whole = shapray.evaluate(model, *given(evaluation))
    assert quality.parameters < whole.parameters
    assert quality.multiply_adds < whole.multiply_adds
    assert quality.n_images == len(evaluation)
    assert 0.5 < quality.top1 <= whole.top1 == pytest.approx(0.99, abs=0.02)
    for found in (quality, whole):
        assert found.top1_interval[0] < found.top1 <= found.top5 <= found.top1_interval[1] <= 1
        assert found.loss_interval[0] < found.loss < found.loss_interval[1]
    n_of = torch.bincount(given(evaluation)[1]).tolist()
    hits = [share * n for share, n in zip(quality.per_class, n_of, strict=True)]
    assert sum(hits) == pytest.approx(quality.top1 * quality.n_images)


def test_without_labels(digits):
    _, model, calibration, _ = digits
    images, _ = given(calibration)
    scores = shapray.score(model, images, groups="conv3", value="neg_kl_divergence", **SETTINGS)
    assert scores.class_scores.num_rows == 0
    assert scores.images["label"].null_count == len(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"permutations": 7}, "^permutations is 7; .* must be even"),
        ({"target_error": 0.1}, "^target_error: 0.1, and .* permutations is 2; auto chooses"),
        ({"permutation": 8}, "^permutation: no such argument; there are value, estimator"),
        ({"value": "accuracy"}, "^value: expected one of neg_cross_entropy"),
        ({"groups": "layer*"}, r"^groups: \['layer\*'\] leaves no group to score"),
        ({"estimator": "exact", "groups": "conv2"}, "^estimator: exact, but group conv2 has"),
        ({"device": "cuda"}, "^device: cuda, and this machine has no GPU; use cpu or auto"),
        ({"ids": ["one"]}, "^ids: 1, 1 of them different, for "),
        ({"labels": None}, "^labels: None, and the value neg_cross_entropy needs them"),
        ({"labels": [1, 2]}, r"^labels: shape \(2,\) for "),
        ({"labels": torch.full((20,), 10)}, "^labels: image '0' has label 10; .* 0..9"),
        ({"labels": torch.full((20,), -1)}, "^labels: -1 is among them"),
        ({"labels": torch.zeros(20)}, "^labels: their type is float32; integers"),
        ({"labels": ["7"] * 20}, "^labels: their type is <U1; integers"),
        ({"labels": [[1], [2, 3]]}, "^labels: not one list of integers"),
        ({"groups": None}, "^groups: a glob pattern or several are needed, found None"),
        ({"images": torch.zeros(20, 8, 8)}, r"^images: a tensor \(n, .* found shape \(20, 8, 8\)"),
        ({"images": torch.zeros(20, 1, 8, 8).byte()}, "^images: their type is torch.uint8"),
        (
            {"images": np.full((20, 1, 8, 8), np.nan)},
            "^images: number 0 holds values .* not finite",
        ),
        ({"images": torch.zeros(20, 3, 8, 8)}, r"^model: RuntimeError: Given groups=1.*in conv1"),
        ({"model": "resnet"}, "^model: a torch.nn.Module is needed, found a str"),
        (
            {"model": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(1))},
            "^model: .* logits",
        ),
    ],
)
def test_errors_name_arguments(digits, changes, message):
    _, model, calibration, _ = digits
    images, labels = given(calibration)
    arguments = {
        "model": model,
        "images": images[:20],
        "labels": labels[:20],
        **SETTINGS,
        **changes,
    }
    with pytest.raises(ValueError, match=message) as raised:
        shapray.score(**arguments)
    assert not any(f"{section}." in str(raised.value) for section in ("score", "cluster", "data"))


def test_errors_of_the_other_functions(digits):
    _, model, calibration, _ = digits
    images, labels = given(calibration)
    scores = shapray.score(model, images, labels, groups="conv3", **SETTINGS)
    for call, message in {
        lambda: shapray.plan(scores, ratio=1.5): "^ratio: expected a number from 0 .*1.5",
        lambda: shapray.plan(scores, rank_by="size"): r"^rank_by\.0: .*mean_abs",
        lambda: shapray.plan(scores, curve=[0.5]): "^curve: no such argument; there are macs",
        lambda: shapray.prune(
            model, {"fc2": [4]}, images[:1]
        ): "^cut: group 'fc2' cannot be cut: its units are the network's outputs",
        lambda: shapray.prune("model", {}, images[:1]): "^model: a torch.nn.Module is needed",
        lambda: shapray.prune(
            model, {}, torch.zeros(1, 3, 8, 8)
        ): "^example: RuntimeError: Given groups",
        lambda: shapray.evaluate("model", images, labels): "^model: a torch.nn.Module is needed",
        lambda: shapray.prune(model, {"conv9": [0]}, images[:1]): "^cut: group 'conv9'",
        lambda: shapray.prune(
            model, {"conv3": [99]}, images[:1]
        ): r"^cut: group 'conv3'.*\[0, 16\)",
        lambda: shapray.prune(model, {"conv3": [0]}, images[0]): "^example: one image",
        lambda: shapray.evaluate(model, images, None): "^labels: None",
        lambda: shapray.evaluate(model, images, labels + 9): "^labels: image '.*0..9",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_a_value_that_is_no_number_is_an_error_of_the_scoring():
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 10
    images[6] = 1.0
    with pytest.raises(RuntimeError, match=r"(?s)group first, image 6: the value is (nan|-?inf)"):
        shapray.score(Bright(30.0), images, [0] * 8, **SETTINGS)


def test_networks_of_half_precision_and_labels_of_any_integers(digits):
    _, model, calibration, _ = digits
    images, labels = given(calibration)
    half = copy.deepcopy(model).bfloat16()
    scores = shapray.score(
        half,
        images.numpy()[:, :, ::-1],
        labels.numpy().astype("uint16"),
        groups="conv3",
        **SETTINGS,
    )
    small = shapray.prune(half, shapray.plan(scores, ratio=0.5), images[:1])
    assert next(small.parameters()).dtype == torch.bfloat16
    assert shapray.evaluate(small, images, labels.to(torch.uint8)).n_images == len(images)


def test_images_that_the_network_changes_in_place_stay_as_they_were(digits):
    _, model, calibration, _ = digits

    class Shifting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def forward(self, x):
            x -= 0.1
            return self.network(x)

    images, labels = (tensor[:4] for tensor in given(calibration))
    before, exact = images.clone(), SETTINGS | {"estimator": "exact"}
    found = shapray.score(Shifting(), images, labels, groups="*conv3", **exact)
    assert torch.equal(images, before)
    right = shapray.score(model, before - 0.1, labels, groups="conv3", **exact)
    difference = found.scores["mean"].to_numpy() - right.scores["mean"].to_numpy()
    assert np.abs(difference).max() < 1e-4


def test_one_logit_is_scored_for_label_1_and_against_label_0():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 1)
    )
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = {"value": "logit_margin", "estimator": "exact", **SETTINGS}
    for_1, for_0 = (
        shapray.score(model, images, [label] * 4, **settings).scores["mean"].to_numpy()
        for label in (1, 0)
    )
    logits = model(images).detach()[:, 0] - model[3].bias.detach()
    assert np.isclose(for_1.sum(), logits.mean(), rtol=1e-4)
    assert np.allclose(for_0, -for_1)
    quality = shapray.evaluate(model, images, (model(images)[:, 0] > 0).long())
    assert quality.top1 == 1
    with pytest.raises(ValueError, match=r"^labels: "):
        shapray.score(model, images, [2] * 4, **settings)


def test_the_smaller_network_is_of_the_users_class_and_outputs():
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = weight_norm(torch.nn.Conv2d(3, 6, 3))
            self.norm = FrozenBatchNorm2d(6)
            self.fc = torch.nn.Linear(6, 3)

        def forward(self, x):
            features = self.norm(self.conv(x)).relu().mean((2, 3))
            return {"features": features, "logits": self.fc(features)}

    model, images = Both(), torch.randn(12, 3, 8, 8)
    names = list(model.state_dict())
    small = shapray.compress(model, images, ratio=0.5, repair=["batchnorm"], **SETTINGS)
    cut = shapray.prune(model, {"conv": [0, 5]}, images[:1])
    assert type(small) is type(cut) is Both
    assert small(images)["features"].shape == (12, 3)
    assert cut(images)["features"].shape == (12, 4)
    assert type(cut.norm) is torch.nn.BatchNorm2d
    assert list(model.state_dict()) == names  # left as it is
    both = (model(images), cut(images))
    kept = [found["features"] for found in both]
    torch.testing.assert_close(kept[0][:, 1:5], kept[1])
    found = shapray.evaluate(small, images, torch.zeros(12, dtype=torch.int64))
    assert found.n_images == 12


def test_a_head_that_only_training_uses_is_dropped_with_a_word(digits):
    class Aided(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.aid = digits[1], torch.nn.LazyLinear(10)

        def forward(self, x):
            logits = self.whole(x)
            if self.training and self.aid is not None:
                return logits, self.aid(self.whole.conv1(x).mean((2, 3)))
            return logits

    images, _ = given(digits[2])
    model = copy.deepcopy(Aided().train())
    model(images)
    with pytest.warns(UserWarning, match="^aid: no image reaches it; it is dropped$"):
        small = shapray.prune(model, {"whole.conv1": [0, 5]}, images[:1])
    assert small.training
    assert small(images).shape == (len(images), 10)
    assert model.aid is not None


@pytest.mark.slow
def test_compressed_in_rounds(digits, capsys):
    _, model, calibration, evaluation = digits
    images, labels = given(calibration)
    asked = {"rounds": 2, "groups": ["conv*", "fc1"], "ids": calibration.ids}
    small = shapray.compress(
        model, images, labels, macs=0.5, **asked, **SETTINGS | {"progress": True}
    )
    assert "round 2 of 2: Scores of " in capsys.readouterr().out
    quality, whole = (shapray.evaluate(net, *given(evaluation)) for net in (small, model))
    assert 0.47 < quality.multiply_adds / whole.multiply_adds <= 0.5
    assert quality.top1 > 0.9
    assert {name: getattr(small, name).weight.shape[0] for name in ("conv1", "fc1")} != {
        "conv1": 32,
        "fc1": 64,
    }


def test_it_cuts_in_rounds_as_a_job_does(digits, tmp_path):
    path, model, calibration, _ = digits
    output = f"memory://{tmp_path.name}"
    prune = "prune={macs: 0.5, rounds: 2, criteria: [], export: [], allocation: global}"
    asked = [f"output={output}", "score.precision=float32", prune]
    assert main([str(path), *asked]) == 0
    small = shapray.compress(
        model,
        *given(calibration),
        ids=calibration.ids,
        rounds=2,
        allocation="global",
        **SETTINGS,
        **OF_JOB,
    )
    there = load_pruned(output)
    shapes = {name: tensor.shape for name, tensor in there.state_dict().items()}
    assert {name: tensor.shape for name, tensor in small.state_dict().items()} == shapes
    for name, tensor in small.state_dict().items():
        torch.testing.assert_close(tensor, there.state_dict()[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ratio": 0.1, "rank_by": "batchnorm_scale"},
            "^rank_by: criterion batchnorm_scale, group fc1: it has",
        ),
        (
            {"ratio": 0.1, "rank_by": ["obs", "shapley_sampled"]},
            "^rank_by: shapley_sampled is for jobs",
        ),
        (
            {"ratio": 0.1, "repair": ["distill"]},
            "^repair: distill needs 20 calibration images, and there are 8$",
        ),
        ({"macs": 0.0001}, "^macs: 0.0001 cannot be met"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_scored(digits, capsys, changes, message):
    _, model, calibration, _ = digits
    images, labels = given(calibration)
    settings = SETTINGS | {"progress": True, "groups": ["conv3", "fc1"]}
    with pytest.raises(ValueError, match=message):
        shapray.compress(model, images[:8], labels[:8], **settings, **changes)
    assert capsys.readouterr().out == ""


def test_a_network_that_cannot_be_trained_is_refused_before_anything_is_scored(capsys):
    images = torch.randn(20, 3, 8, 8)
    settings = SETTINGS | {"progress": True}
    with pytest.raises(ValueError, match=r"^repair: distill: the network cannot be trained: "):
        shapray.compress(randomise(NETWORKS["Gated"]()), images, repair=["distill"], **settings)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "^rounds: expected a whole number from 1 to .*found 0"),
        ({"ratio": 0.5, "rounds": 500}, "^rounds: 500; .* 16 units in the 1 group to score 15 can"),
        ({"rounds": True}, "^rounds: expected a whole number"),
    ],
)
def test_rounds_that_cannot_be(digits, changes, message):
    _, model, calibration, _ = digits
    images, labels = given(calibration)
    with pytest.raises(ValueError, match=message):
        shapray.compress(model, images, labels, groups="conv3", **SETTINGS, **changes)


def test_wrappers_around_a_network_are_taken_off(digits):
    _, model, calibration, _ = digits
    images, labels = (tensor[:4] for tensor in given(calibration))
    wrapped = torch.nn.DataParallel(torch.compile(model))
    found = shapray.score(wrapped, images, labels, groups="fc1", **SETTINGS)
    right = shapray.score(model, images, labels, groups="fc1", **SETTINGS)
    assert found.scores.equals(right.scores)
    small = shapray.prune(wrapped, {"fc1": [3]}, images[:1])
    assert type(small) is type(model)
