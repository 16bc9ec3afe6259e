"""A whole job on a small member of every family of networks: scored, cut, repaired, read back and
trained."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from families import FAMILIES, SIZES, network, noise
from tiny import start, write_job
from torch import nn
from torch.nn import functional as F

from shapray import again
from shapray.config.sections import Model
from shapray.inputs.model import build_model
from shapray.network.check import masked_outputs, relative_error
from shapray.network.cuttable import as_program
from shapray.network.find import find_groups, is_hidden
from shapray.network.surgery import prune_model
from shapray.pruning.evaluate import count_macs
from shapray.pruning.saved import load_pruned
from shapray.run import main

# share of the hidden units that is scored, where it is not all: of drawn weights a tail and the
# network differ by rounding in float32, a little more than they may
LEAST = {"inception": 0.7}


def job(folder: Path, family: str) -> Path:
    size = SIZES.get(family, 32)
    images = {"source": "callable", "factory": "families:noise"}
    return write_job(
        folder,
        model={"factory": "families:network", "kwargs": {"family": family}},
        data={
            name: images | {"kwargs": {"n_images": n_images, "size": size}}
            for name, n_images in (("calibration", 32), ("evaluation", 20))
        },
        score={"permutations": 2, "exact_max_players": 4, "precision": "float32"},
        cluster={"workers": 2, "images_per_task": 16, "device": "cpu"},
        prune={
            "macs": 0.8,
            "repair": ["batchnorm", "least_squares"],
            "criteria": [],
            "export": ["pt2"],
        },
    )


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_job(family, tmp_path):
    assert main([str(job(tmp_path, family))]) == 0
    check(tmp_path / "out", family)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("family", ["shufflenet", "convnext"])
def test_a_job_on_ray(family, tmp_path):
    process = start(job(tmp_path, family))
    printed = process.communicate()
    assert process.returncode == 0, printed
    check(tmp_path / "out", family)


def check(out: Path, family: str) -> None:
    scored(out, family)
    whole = network(family)
    images = torch.stack([image for image, _ in noise(20, SIZES.get(family, 32))])
    small = load_pruned(out)
    assert all(tensor.dtype == torch.float32 for tensor in small.parameters())
    outputs = small(images).detach()
    assert outputs.isfinite().all()
    metrics = json.loads((out / "prune/metrics.json").read_text())
    before, after = (count_macs(each, images[:1])[1] for each in (whole, small))
    assert (before, after) == tuple(metrics[key]["multiply_adds"] for key in ("before", "after"))
    assert after <= 0.8 * before
    right = [outputs[i].argmax() == i % 10 for i in range(len(images))]
    assert metrics["after"]["top1"] == pytest.approx(sum(right) / len(right))
    program = torch.export.load(out / "prune/model.pt2").module()
    assert relative_error(program(images), outputs) <= 1e-5
    trained(small, images)
    # from all groups, and nothing done to repair it
    settings = ["prune.allocation=uniform", "prune.repair=[]"]
    assert again.main([str(out), *settings, "--name", "uniform"]) == 0
    cut_is_masked(out, family, images)


def scored(out: Path, family: str) -> None:
    rows = pq.read_table(out / "groups.parquet").to_pylist()
    example = torch.zeros(1, 3, *[SIZES.get(family, 32)] * 2)
    hidden = {group.name for group in find_groups(network(family), example) if is_hidden(group)}
    rows = [row for row in rows if row["group"] in hidden]
    n_scored = sum(row["n_units"] for row in rows if row["status"] == "scored")
    excluded = {row["group"]: row["reason"] for row in rows if row["status"] == "excluded"}
    assert n_scored >= LEAST.get(family, 1) * sum(row["n_units"] for row in rows), excluded


def cut_is_masked(out: Path, family: str, images: torch.Tensor) -> None:
    """The cut network that was saved, without repair, is the whole one masked."""
    plan = json.loads((out / "prune/uniform/plan.json").read_text())
    sizes = {name: (entry["n_units"], entry["removed"]) for name, entry in plan["groups"].items()}
    blocks = pq.read_table(out / "groups.parquet").select(["group", "blocks"]).to_pylist()
    n_blocks = {row["group"]: len(set(row["blocks"] or [0])) for row in blocks}
    enough = [name for name, (n_units, _) in sizes.items() if n_units >= 16 * n_blocks[name]]
    assert not [name for name in enough if not sizes[name][1]]
    whole = build_model(Model(factory="families:network", kwargs={"family": family}))
    if plan["program"]:
        whole = as_program(whole, images[:1])
    groups = find_groups(whole, images[:1])
    cut = [(group, sizes[group.name][1]) for group in groups if group.name in sizes]
    masked = masked_outputs(whole, cut, images)
    found = load_pruned(out, name="uniform")(images)
    assert relative_error(found, masked) <= 1e-5
    removed = {group.name: units for group, units in cut}
    assert torch.equal(prune_model(whole, groups, removed)(images), found)


def trained(small: nn.Module, images: torch.Tensor) -> None:
    """A step of training reaches every layer, and changes the loss."""
    labels = torch.arange(len(images)) % 10

    def loss() -> torch.Tensor:
        heads = small(images)  # several while it is trained, of GoogLeNet and Inception
        heads = [heads] if isinstance(heads, torch.Tensor) else heads
        return torch.stack([F.cross_entropy(outputs, labels) for outputs in heads]).sum()

    before = loss().item()
    optimiser = torch.optim.SGD(small.train().parameters(), 1e-2)
    loss().backward()
    optimiser.step()
    after = small.eval() and loss().item()
    assert after != before
    assert torch.tensor(after).isfinite()
    for name, tensor in small.named_parameters():
        assert tensor.requires_grad, name
        assert tensor.grad is not None, name
        if tensor.ndim > 1:  # a bias may lie before a BatchNorm
            assert tensor.grad.any(), name  # a step may be less than a large weight's last digit
