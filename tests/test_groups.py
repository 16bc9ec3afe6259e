"""The command that shows a network's groups."""

import io
import json

import pytest
from tiny import SCORED, write_job

from shapray import run
from shapray.driver.console import PlainConsole
from shapray.driver.overview import by_parent, of_job, show
from shapray.groups import main


def test_a_jobs_network(tmp_path, capsys):
    assert main([str(write_job(tmp_path))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "shapray.zoo:digits_cnn: 19,082 parameters, 686,720 multiply-adds for an image of 1 x 8 x 8"
    )
    at = lines.index("  conv1: 32 units, conv, flat, tail of 668,288 multiply-adds (97%)")
    # conv1 and bn1 have 9 * 32 and 64 parameters, conv2 reads it by 32 * 32 * 9
    assert (
        lines[at + 1]
        == f"    with bn1, conv2; {(9 * 32 + 64 + 9216) / 19082:.1%} of the parameters"
    )
    assert "  fc2: 10 units, linear, not scored: its units are the network's outputs" in lines
    assert lines[-1].startswith("scored: 144 of 144 hidden units (100.0%), 4 of 4 groups; 1 more: ")
    assert not (tmp_path / "out").exists()


def test_groups_that_the_job_leaves_out(tmp_path, capsys):
    assert main([str(write_job(tmp_path)), "score.groups=[conv*]"]) == 0
    said = capsys.readouterr().out
    assert "fc1: 64 units, linear, not scored: not among score.groups" in said
    assert "scored: 80 of 144 hidden units (55.6%), 3 of 4 groups" in said
    assert main([str(write_job(tmp_path)), "score.groups=[nothing]"]) == 0
    assert "scored: 0 of 144 hidden units" in capsys.readouterr().out


def test_a_tree_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = PlainConsole(io.StringIO(), force_terminal=True, color_system=None, soft_wrap=True)
    show(of_job(str(write_job(tmp_path)), [], console), console)
    said = console.file.getvalue()
    assert "├── conv1: 32 units" in said
    assert "└── with bn1, conv2" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "units", "words"),
    [
        ("timm:test_resnet", "672 of 672", "for an image of 3 x 160 x 160"),
        ("torchvision:mobilenet_v3_small", "4,872 of 4,872", "deep"),
        ("torchvision:shufflenet_v2_x0_5", "2,944 of 2,944", "as a program of its layers"),
    ],
)
def test_larger_networks(name, units, words, capsys):
    assert main([name]) == 0
    said = capsys.readouterr().out
    assert f"scored: {units} hidden units" in said
    assert words in said
    assert "random weights, and 2 random images" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["torchvision:resnet51"], "model: there is no network 'torchvision:resnet51'; close to"),
        (["shapray.zoo:digits_cnn"], "right is torchvision:NAME, timm:NAME"),
        (["nothing.yaml"], "nothing.yaml"),
        (["timm:test_resnet", "score.seed=1"], "timm:test_resnet is a network's name, without"),
    ],
)
def test_what_is_no_network(arguments, words, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def test_modules_of_one_parent_stand_together():
    names = ["conv1", "bn1", "layer1.0.bn1", "layer1.0.conv2", "layer1.1.conv1"]
    assert by_parent(names) == ["conv1, bn1", "layer1.0.(bn1, conv2)", "layer1.1.conv1"]


def test_a_run_keeps_what_its_planning_took(tmp_path, in_process):
    assert run.main([str(write_job(tmp_path)), *SCORED, "score.groups=[fc1]"]) == 0
    assert json.loads((tmp_path / "out/run.json").read_text())["planning"]["seconds"] > 0
