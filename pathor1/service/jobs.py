"""Runs as Ray jobs, through Ray's Jobs API: submitted, looked at, followed, stopped.

A job is one attempt at one stage of a run, and its id comes from the run's name: `NAME-1`, then `NAME-2`, as Ray takes
no id twice. Its description, which anyone with the cluster's token can read, holds no secret: values that a run needs
and nobody else may see are in the environment of the nodes, and a recipe has their names (`cluster.secrets`).
"""

from __future__ import annotations

import asyncio
import math
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files as resources
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import aiohttp

from pathor1 import storage
from pathor1.benchmark import BenchmarkRecipe
from pathor1.curation.recipe import CurationRecipe
from pathor1.errors import RunError
from pathor1.recipe import to_toml
from pathor1.service import package
from pathor1.service.connection import Client
from pathor1.stage import RunRecipe

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# Ray's own: how long a job that is to stop has before it is killed, in whole seconds, and how long it has otherwise.
STOP_WAIT, DEFAULT_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S", 3
# Seconds: for a driver to leave the cluster behind its checkpoint; for Ray to say that a killed job has ended; until a
# job that does not start is no longer waited for; for a new head's agent, without which it takes no job.
LEAVING, SAYING, STARTING, AGENT = 30, 30, 30, 60
OURS = "pathor1: "

# The recipes of what can be submitted.
Submitted = RunRecipe | BenchmarkRecipe | CurationRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as Ray has it.

    run: "" where pathor1 has not submitted it; since: when it came into its state; why: the line that says why it
    failed; folder: of the run, below the nodes' PATHOR1_STORAGE where it is relative; stop_wait: in seconds.
    """

    id: str
    run: str
    state: str
    since: datetime
    why: str
    folder: str
    description: Mapping[str, str]
    stop_wait: float

    @property
    def ended(self) -> bool:
        """Whether it has an end, good or bad."""
        return self.state in ENDED


def stages() -> tuple[str, ...]:
    """What can be submitted: the modules of `ray_jobs`."""
    names = (Path(str(entry)).name for entry in resources("ray_jobs").iterdir())
    return tuple(sorted(name.removesuffix(".py") for name in names if name.endswith(".py") and name[0] != "_"))


def submit(client: Client, recipe: Submitted, *, source: str, stage: str = "rl") -> Job:
    """Submits a stage of a run with the code of this clone, and returns its job.

    stage: a module of `ray_jobs`, and what it takes before the recipe ("rl", "curate pages"); recipe: with its paths as
    they are written, as they start elsewhere in the job (`pathor1.storage`); source: where it comes from, for the job's
    description. Raises RunError where a job of the run has not ended yet.
    """
    root = package.clone()
    base = os.environ.get(storage.VARIABLE)
    # What a benchmark has answered is written already, and so is what curation has made of an item.
    grace = 0 if isinstance(recipe, BenchmarkRecipe | CurationRecipe) else math.ceil(recipe.cluster.stop_grace)
    variables = {STOP_WAIT: str(grace + LEAVING)}
    folder = Path(recipe.runs_dir) / recipe.name
    if base:
        variables[storage.VARIABLE] = str(Path(base).expanduser().absolute())
        folder = Path(variables[storage.VARIABLE]) / folder
    file = f"{recipe.name}.toml"
    description = {"run": recipe.name, "stage": stage, "recipe": source, "folder": str(folder), **package.origin(root)}
    with package.packed(root, file, to_toml(recipe)) as code:
        for _ in range(10):  # another's submission may come between
            name = _free_id(client, recipe.name)
            try:
                send(
                    client,
                    entrypoint=shlex.join(["python", "-m", *f"ray_jobs.{stage}".split(), file]),
                    submission_id=name,
                    metadata=description,
                    runtime_env={"working_dir": str(code), "env_vars": variables},
                )
                return _job(client.get_job_info(name))
            except RunError as error:
                if "already exists" not in str(error):  # Ray has no class of its own for this
                    raise
    raise RunError(f"{recipe.name}: others submit jobs of this name all the time; choose another by --set name=NAME")


def send(client: Client, **job: Any) -> str:
    """Submits as soon as the head's agent is there, which takes some seconds more than the head itself."""
    deadline = time.monotonic() + AGENT
    while True:
        try:
            return client.submit_job(**job)
        except RunError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def _free_id(client: Client, run: str) -> str:
    """The id of the run's next job. Raises RunError where one of its jobs has not ended."""
    found = jobs(client)
    for job in found:
        if job.run == run and not job.ended:
            raise RunError(
                f"{run}: is in use, job {job.id} is {job.state} since {job.since:%Y-%m-%d %H:%M:%S}; `pathor1 stop "
                f"{job.id}` ends it; for another run, --set name=NAME"
            )
    taken = {job.id for job in found}
    return next(name for attempt in count(1) if (name := f"{run}-{attempt}") not in taken)


def jobs(client: Client) -> list[Job]:
    """The submitted jobs that the cluster knows, newest first."""
    found = [details for details in client.list_jobs() if details.submission_id]
    return [_job(details) for details in sorted(found, key=lambda details: -(details.start_time or 0))]


def find(client: Client, name: str) -> Job:
    """The job of this id, or the newest of the run of this name. Raises RunError where there is none."""
    found = jobs(client)
    for job in [*(job for job in found if job.id == name), *(job for job in found if job.run == name)]:
        return job
    known = ", ".join(job.id for job in found[:5]) or "none"
    raise RunError(f"{name}: no such job and no such run at {client.shown}; the last jobs there: {known}")


def follow(client: Client, job: Job, out: TextIO) -> Job:
    """Writes the job's log as it grows, to its end, and returns the job as it ended.

    Raises RunError where the connection is lost before.
    """

    async def tail() -> None:
        async for text in client.tail_job_logs(job.id):
            out.write(text)
            out.flush()

    try:
        asyncio.run(tail())
    except (aiohttp.ClientError, RuntimeError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # of `out`
            raise
        lost = f"the connection to {client.shown} was lost ({error})"
        raise RunError(f"{job.id}: {lost}; the job may go on: `pathor1 status {job.id}`") from None
    return _job(client.get_job_info(job.id))


def stop(client: Client, job: Job) -> Job:
    """Stops the job, waits until it has ended, and returns it as it ended.

    Ray signals SIGTERM to its processes and kills them after `stop_wait`. Raises RunError for a job that cannot be
    stopped as it has not started, and for one that outlives that.
    """
    began, heard = time.monotonic(), False
    while not job.ended:
        heard = heard or client.stop_job(job.id)
        waited = time.monotonic() - began
        if job.state == "PENDING" and waited > STARTING:
            raise RunError(
                f"{job.id}: is PENDING, and Ray cannot stop a job that has not started; it stops as soon as it starts, "
                "or fails when it has not within RAY_JOB_START_TIMEOUT_SECONDS of the head (900)"
            )
        if job.state == "RUNNING" and waited > STARTING + job.stop_wait + SAYING:
            raise RunError(f"{job.id}: still runs {waited:.0f} s after it was to stop; is its node alive? `ray status`")
        time.sleep(0.5)
        job = _job(client.get_job_info(job.id))
    return job


def _job(details: Any) -> Job:
    """Of Ray's JobDetails."""
    description = dict(details.metadata or {})
    state = str(details.status)
    milliseconds = (details.end_time if state in ENDED else details.start_time) or details.start_time or 0
    variables = (details.runtime_env or {}).get("env_vars") or {}
    return Job(
        id=details.submission_id,
        run=description.get("run", ""),
        state=state,
        since=datetime.fromtimestamp(milliseconds / 1000).astimezone(),
        why=_why(details) if state == "FAILED" else "",
        folder=description.get("folder", ""),
        description=description,
        stop_wait=float(variables.get(STOP_WAIT, DEFAULT_STOP_WAIT)),
    )


def _why(details: Any) -> str:
    """The one line of Ray's message: ours, where it is among the last of the log that Ray puts into it."""
    lines = [line.strip() for line in (details.message or "").splitlines() if line.strip()]
    if not lines:
        return "Ray gives no reason"
    if details.driver_exit_code is None:  # it has no log to end with: its node died, or its environment cannot be made
        return lines[0]
    own = [line.removeprefix(OURS) for line in lines if line.startswith(OURS)]
    return own[-1] if own else f"exit code {details.driver_exit_code}; the log ends with: {lines[-1]}"
