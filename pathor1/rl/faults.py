"""What fails around a run, by the names of Ray's and vLLM's errors: in its own processes, and in what they tell of."""

from __future__ import annotations

from collections.abc import Iterator

from pathor1.errors import Fault

STORE_FULL = (
    "Ray's object store is full, and so is the disk that it spills to; `ray memory` says who fills it; free some of "
    "that disk, give the store more memory (cluster.object_store_gb, or `ray start --object-store-memory`), or lower "
    "data.max_pixels or rl.prompts_per_step"
)
# Errors that are not the run's own, by their class, and what to do.
OUTSIDE = {
    "ObjectStoreFullError": STORE_FULL,
    "OutOfDiskError": STORE_FULL,
    "OutOfMemoryError": "a node ran out of memory and Ray ended one of the run's processes; see what "
    "it needs by `pathor1 preflight RECIPE`",
}
# What says that a process is no more, or cannot be reached.
GONE = ("EngineDeadError", "ActorDiedError", "ActorUnavailableError", "WorkerCrashedError", "NodeDiedError")


def outside(error: BaseException) -> str | None:
    """What has failed around the run, in one line, where an error says it by itself; None where it does not."""
    for each in _chain(error):
        if isinstance(each, Fault):
            return str(each)
        if line := OUTSIDE.get(type(each).__name__):
            return line
    return None


def outside_in(text: str) -> str | None:
    """The same of an error that another process has told of, "CLASS: message"."""
    for name, line in OUTSIDE.items():
        if name in text:
            return line
    return next((f"vLLM does not answer any more ({name})" for name in GONE if name in text), None)


def is_gone(error: BaseException) -> bool:
    """Whether an error says that a process of the run does not answer. It may be the first word of a lost node."""
    return any(name in f"{type(each).__name__}: {each}" for each in _chain(error) for name in GONE)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from. Ray hands on what happened in another process as `cause`."""
    while error is not None:
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error
        yield error
        error = error.__cause__
