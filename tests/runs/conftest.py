"""What holds for the many runs here."""

import pytest
from markupsafe import Markup

from shapray.report import plots


@pytest.fixture(autouse=True)
def _figures_are_not_rendered(request, monkeypatch):
    """Their pages are made with all figures, which are then not turned into SVG: that takes as long
    as the scores of a tiny network. Those of the shared runs are, and those of slow tests."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(plots, "_svg", lambda figure, key, alternative: Markup())
