"""Names that a console could take for something else, in every place where names are shown."""

import io

import pytest
import torch
from rich import box
from rich.table import Table
from tiny import write_job
from torch import nn

from shapray.driver.console import PlainConsole
from shapray.run import main

NAME = "resnet50 [v2] [red]x[/red] [/] :smile: größe 猫"


class OddlyNamed(nn.Module):
    """Its layers' names are what rich would read as markup, and a code for terminals."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleDict(
            {
                "[/]": nn.Conv2d(1, 4, 3),
                "[red]x:smile:": nn.Conv2d(4, 4, 3),
                "\x1b[2J猫": nn.Conv2d(4, 4, 1),
            }
        )
        self.last = nn.Linear(4, 10)

    def forward(self, x):
        for part in self.parts.values():
            x = part(x).relu()
        return self.last(x.mean((2, 3)))


def printed(thing, encoding="utf-8"):
    written = io.BytesIO()
    console = PlainConsole(io.TextIOWrapper(written, encoding), width=250, soft_wrap=True)
    console.print(thing)
    console.file.flush()
    return written.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("in_table", [False, True])
def test_names_are_shown_as_they_are_or_as_escapes(in_table, encoding):
    thing = f"{NAME} tab \t nul \0 bell \a back \r clear \x1b[2J turned \u202e lone \udcff"
    if in_table:
        table = Table(thing, box=box.SIMPLE)
        table.add_row(thing)
        table.add_row("second")
        thing = table
    seen = printed(thing, encoding)
    assert NAME.encode(encoding, "backslashreplace").decode(encoding) in seen
    for escaped in (
        r"tab \t",
        r"nul \x00",
        r"bell \x07",
        r"back \r",
        r"clear \x1b[2J",
        r"turned \u202e",
    ):
        assert escaped in seen
    assert r"lone \udcff" in seen
    assert "\x1b" not in seen


def test_the_command_shows_names_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    job = write_job(tmp_path, name=NAME, model={"factory": f"{__name__}:OddlyNamed"})
    options = [str(job), "output=memory://odd/[b]out[/b]", "data.calibration.limit=4"]
    assert main([*options, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert f"{NAME}: a plan" in plan
    assert all(f"parts.{name} " in plan for name in ("[/]", "[red]x:smile:", r"\x1b[2J猫"))
    assert main(options) == 0
    run = capsys.readouterr().out
    assert f"{NAME}: " in run
    assert "all files are in memory://odd/[b]out[/b]" in run


def test_an_error_message_is_shown_as_it_is(tmp_path, capsys):
    job = write_job(tmp_path, name=NAME, data__calibration__path="/nowhere/\x1b[2J[/].parquet")
    assert main([str(job)]) == 2
    assert r"/nowhere/\x1b[2J[/].parquet" in capsys.readouterr().err
