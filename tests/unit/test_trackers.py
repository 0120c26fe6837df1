"""A tracker that cannot be written to stops a run before anything has started, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathor1.errors import RecipeError
from pathor1.tracking import trackers


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no settings and no mode of whoever runs the tests, or of what ran before in this process."""
    import wandb

    wandb.teardown()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_wandb_without_a_key_is_refused_and_told_what_to_set() -> None:
    with pytest.raises(RecipeError, match=r"no API key for https://\S+; set WANDB_API_KEY or .* WANDB_MODE=offline"):
        trackers.check(["wandb"])


def test_wandb_with_half_a_key_is_refused_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    with pytest.raises(RecipeError, match=r"API key must have 40\+ characters, has 3; check WANDB_API_KEY"):
        trackers.check(["wandb"])


@pytest.mark.parametrize("mode", ["offline", "dryrun", "disabled"])
def test_wandb_needs_no_key_where_nothing_is_sent(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    trackers.check(["wandb"])


def test_no_tracker_needs_nothing() -> None:
    trackers.check([])
