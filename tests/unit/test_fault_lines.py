"""What errors say of what has failed around a run, in this process and in others."""

from __future__ import annotations

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDeathCause, ActorDiedErrorContext

from pathor1.errors import Fault
from pathor1.rl import faults, health
from pathor1.rl.faults import STORE_FULL, is_gone, outside, outside_in
from pathor1.rl.groups import Group, Rules
from pathor1.rl.health import Health
from pathor1.rl.sampler import GroupSampler

FULL = ray.exceptions.OutOfDiskError("Local disk is full")


def raised_from(error: Exception, cause: Exception) -> Exception:
    """An error that was raised from another."""
    error.__cause__ = cause
    return error


def in_a_task(cause: Exception) -> Exception:
    """What `ray.get` raises where a task has raised this."""
    return ray.exceptions.RayTaskError("f", "traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FULL, STORE_FULL),
        (in_a_task(FULL), STORE_FULL),
        (raised_from(ValueError("of the stream"), in_a_task(FULL)), STORE_FULL),
        (ray.exceptions.ObjectStoreFullError("full"), STORE_FULL),
        (in_a_task(Fault("the disk has gone")), "the disk has gone"),
        (ray.exceptions.OutOfMemoryError("killed"), faults.OUTSIDE["OutOfMemoryError"]),
        (OSError("full"), None),
    ],
)
def test_an_error_that_is_not_the_runs_own_is_one_line(error: Exception, line: str | None) -> None:
    assert outside(error) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"OutOfDiskError: {FULL}", STORE_FULL),
        ("RayTaskError(EngineDeadError): ray::generate()", "vLLM does not answer any more (EngineDeadError)"),
        ("ValueError: the prompt has 9 tokens", None),
    ],
)
def test_what_an_agent_tells_of_is_known_too(text: str, line: str | None) -> None:
    assert outside_in(text) == line
    rules = Rules(batch=8, dynamic=False, budget=8, min_groups=1, max_carry_steps=0, band=(0.0, 1.0))
    sampler = GroupSampler(rules, ask=lambda count: {}, look_up=lambda: None)
    sampler.pool.begin(1)
    sampler.pool.ask(8)
    sampler.pool.add(Group(number=0, sample="a", step=1, accuracies=(), error=text))
    if line is None:
        sampler._refuse_failures()
    else:
        with pytest.raises(Fault) as caught:
            sampler._refuse_failures()
        assert str(caught.value) == line


def dead(address: str, reason: int, why: str = "", *, part: str = "WorkerDict") -> dict[str, object]:
    """A dead actor, as Ray has it in its table."""
    context = ActorDiedErrorContext(reason=reason, error_message=f"The actor died because of it. {why}")
    context.node_death_info.reason_message = why
    return {
        "ActorClassName": part,
        "Pid": 7,
        "Address": {"IPAddress": address},
        "DeathCause": ActorDeathCause(actor_died_error_context=context),
    }


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Health:
    monkeypatch.setattr(health, "NODE_LOST", 0.2)
    monkeypatch.setattr(health, "LOOK", 0.01)
    return Health(hang_after=60)


def test_a_lost_node_is_named_before_the_processes_that_went_with_it(
    run: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [dead("10.0.0.1", ActorDiedErrorContext.WORKER_DIED, part="QuestionGroupServer")]
    monkeypatch.setattr(run, "_actors", lambda wanted: table)
    assert run._dead() == "the vLLM server (process 7 on 10.0.0.1) has died: The actor died because of it."
    table.append(dead("10.0.0.2", ActorDiedErrorContext.NODE_DIED, "health check failed"))
    assert run._dead() == "node 10.0.0.2 of the Ray cluster is lost: health check failed"
    table[1] = dead("10.0.0.2", ActorDiedErrorContext.NODE_DIED)
    assert run._dead() == "node 10.0.0.2 of the Ray cluster is lost"


def test_who_does_not_answer_is_waited_for_until_ray_knows_why(run: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ray.exceptions.ActorUnavailableError("no route to host", None)
    assert all(map(is_gone, (gone, in_a_task(gone), raised_from(Fault("an agent has died"), gone))))
    assert is_gone(Fault("vLLM does not answer any more (ActorUnavailableError)"))
    assert not is_gone(ValueError("a number"))
    waited: list[float] = []
    monkeypatch.setattr(run._found, "wait", waited.append)
    assert run.explain(gone) is None
    assert run.explain(ValueError("a number")) is None
    assert waited == [0.2, 0.03]
