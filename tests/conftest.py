"""What tests of several tiers share."""

from __future__ import annotations

import pytest
from hypothesis import settings
from small import Small, make_small

# How long an example takes says nothing here: a machine may be busy with something else.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp("small"))
