"""An answer that is interrupted: how its rest is sampled."""

from __future__ import annotations

from pathor1.rl.client import going_on


def test_the_rest_has_the_tokens_that_are_left_and_random_numbers_of_its_own() -> None:
    sampling = {"temperature": 1.0, "seed": 5}
    assert going_on(sampling, 0, 48) == {"temperature": 1.0, "seed": 5, "max_tokens": 48}
    rest = going_on(sampling, 12, 48)
    assert (rest["temperature"], rest["max_tokens"]) == (1.0, 36)
    seeds = {going_on(sampling, said, 48)["seed"] for said in range(48)}
    assert len(seeds) == 48
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert going_on(sampling, 12, 48) == rest, "of one place, the same"
    assert sampling == {"temperature": 1.0, "seed": 5}


def test_without_a_seed_there_is_none() -> None:
    assert going_on({"temperature": 0.0}, 3, 8) == {"temperature": 0.0, "max_tokens": 5}
