"""The user's code: imported and called, and in words what goes wrong in it."""

import sys
import textwrap

import pytest

from shapray.errors import JobError
from shapray.inputs.user_code import call, import_callable, user_code

KEY = "model.factory"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("no.such.place:net", "cannot import module 'no.such.place'.*ModuleNotFoundError"),
        ("shapray.zoo:resnet21", "has no 'resnet21'; close to it: .*resnet20"),
        ("shapray.zoo:F", "is a module, not a callable"),
        ("resnet20", "not of the form module:callable"),
    ],
)
def test_what_does_not_import(spec, words):
    with pytest.raises(JobError, match=f"{KEY}: .*{words}"):
        import_callable(spec, KEY)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(content):
        name = f"module_{len(list(tmp_path.iterdir()))}_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(content))
        return name

    return write


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ("sys.exit()", "it ended the program with exit status 0"),
        ("sys.exit(3)", "it ended the program with exit status 3"),
        ("sys.exit('no GPU')", r"it ended the program with exit status 1 \(no GPU\)"),
        ("raise BaseException('odd')", "BaseException: odd"),
        ("raise ValueError('odd')", "ValueError: odd"),
        (
            "argparse.ArgumentParser().parse_args(['--lr'])",
            "it ended the program with exit status 2",
        ),
    ],
)
def test_code_that_ends_the_program(module, ends, words):
    while_imported = module(f"import argparse, sys\n{ends}")
    with pytest.raises(JobError, match=rf"{KEY}: cannot import module .*: {words}"):
        call(f"{while_imported}:net", {}, KEY)
    while_called = module(f"import argparse, sys\ndef net(**kwargs):\n    {ends}")
    with pytest.raises(JobError, match=rf"{KEY}: .*:net\(\*\*{{'depth': 3}}\) failed: {words}"):
        call(f"{while_called}:net", {"depth": 3}, KEY)
    lazily = module(f"import argparse, sys\ndef __getattr__(name):\n    {ends}")
    with pytest.raises(JobError, match=rf"{KEY}: .*{words}"):
        call(f"{lazily}:net", {}, KEY)


def test_who_stops_the_program_stops_it():
    with pytest.raises(KeyboardInterrupt), user_code("it failed"):
        raise KeyboardInterrupt


def test_credentials_in_arguments_and_messages_are_not_shown(module):
    name = module("def net(**kwargs):\n    raise ValueError(f'refused: {kwargs}')")
    with pytest.raises(JobError) as caught:
        call(f"{name}:net", {"url": "s3://me:hunter2@host/x", "api_key": "hunter3"}, KEY)
    assert "hunter" not in str(caught.value)
    assert name in sys.modules
