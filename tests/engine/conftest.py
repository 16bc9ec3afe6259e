"""What holds for every test of the engine."""

import pytest
from cases import Case, case
from networks import NETWORKS


@pytest.fixture(params=NETWORKS)
def network(request) -> Case:
    """Each of the networks, with its groups and images."""
    return case(request.param)
