"""What is seen of a stage that is under way: on a terminal, in a notebook, in a log."""

import importlib.machinery
import io
import sys
import types

import pytest

from shapray.cluster.pool import Counts
from shapray.driver import progress
from shapray.driver.console import PlainConsole
from shapray.driver.progress import group_meter, meter


def do_three(console):
    with meter(console, "score", 3, 3.0) as shown:
        for _ in range(3):
            shown.advance(1.0)
            shown.show(Counts(n_workers=1))
            if shown.bar is not None:
                shown.bar.refresh()


LINES = ["score: 1/3 tasks, 1 worker", "score: 2/3 tasks, 1 worker", "score: 3/3 tasks in "]


@pytest.fixture(autouse=True)
def talkative(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)


def test_a_log_gets_lines():
    console = PlainConsole(io.StringIO(), soft_wrap=True)
    do_three(console)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3
    assert all(line.startswith(start) for line, start in zip(lines, LINES))


def test_workers_that_start_are_no_slow_tasks():
    console = PlainConsole(io.StringIO(), soft_wrap=True)
    with meter(console, "score", 3, 3.0) as shown:
        shown.show(Counts())
    assert console.file.getvalue().startswith("score: 0/3 tasks, workers are starting\n")


def test_a_terminal_gets_a_bar_and_one_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    console = PlainConsole(io.StringIO(), force_terminal=True, width=100)
    do_three(console)
    seen = console.file.getvalue()
    assert "2/3" in seen
    assert "━" in seen
    assert "score: 1/3" not in seen
    assert "score: 3/3 tasks in " in seen


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    console = PlainConsole(io.StringIO(), force_terminal=True, soft_wrap=True)
    do_three(console)
    assert all(start in console.file.getvalue() for start in LINES)


class Notebook:
    """What a notebook's cell shows, by stand-ins for the packages that rich looks for."""

    def __init__(self, monkeypatch, widgets):
        self.cell, self.widgets = [], []
        ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
        display.display = self.display
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)
        ipywidgets = types.ModuleType("ipywidgets")
        ipywidgets.__spec__ = importlib.machinery.ModuleSpec("ipywidgets", None)
        ipywidgets.Output = self.output
        monkeypatch.setitem(sys.modules, "ipywidgets", ipywidgets if widgets else None)

    def output(self):
        self.widgets.append(Output())
        return self.widgets[-1]

    def display(self, thing):
        if not isinstance(thing, Output):
            inside = [widget for widget in self.widgets if widget.entered]
            (inside[-1].seen if inside else self.cell).append(thing.text)


class Output:
    def __init__(self):
        self.seen, self.entered, self.closed = [], False, False

    def __enter__(self):
        self.entered = True

    def __exit__(self, *_):
        self.entered = False

    def clear_output(self, wait):
        assert wait

    def close(self):
        self.closed = True


def test_a_notebook_gets_a_bar_that_goes_and_one_line(monkeypatch):
    notebook = Notebook(monkeypatch, widgets=True)
    do_three(PlainConsole(force_jupyter=True))
    [widget] = notebook.widgets
    assert any("2/3" in each and "━" in each for each in widget.seen)
    assert widget.closed
    assert [text for text in notebook.cell if text.strip()] == [notebook.cell[-1]]
    assert notebook.cell[-1].startswith("score: 3/3 tasks in ")


@pytest.mark.filterwarnings("error")
def test_a_notebook_without_widgets_gets_lines(monkeypatch):
    notebook = Notebook(monkeypatch, widgets=False)
    do_three(PlainConsole(force_jupyter=True))
    assert all(text.startswith(start) for text, start in zip(notebook.cell, LINES, strict=True))


def test_the_groups_of_a_plan_are_counted():
    console = PlainConsole(io.StringIO(), soft_wrap=True)
    with group_meter(console, 3) as progress:
        for n_done in (1, 2, 3):
            progress(n_done, 3)
    lines = console.file.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["plan: 1/3 groups", "plan: 2/3 groups"]
