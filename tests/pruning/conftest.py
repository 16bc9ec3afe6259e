"""What the tests of the saved network share."""

import pytest
from cut_digits import EXAMPLE, REMOVED, digits
from plain import without
from saved_run import FACTORIES


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """The module ``nets.token`` can be imported."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "token.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="module")
def pruned():
    return without(digits(), EXAMPLE, REMOVED)
