"""What tests of several tiers share."""

from __future__ import annotations

import pytest
from small import Small, make_small


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp("small"))
