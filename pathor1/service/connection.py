"""The way to a cluster's Jobs API: bounded waits, and one line for each thing that can be wrong with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pathor1.errors import RunError
from pathor1.ray_cluster import OWN_TOKEN

# Where Ray itself looks, in this order.
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
DEFAULT = "http://127.0.0.1:8265"
# Seconds until a connection has to be there, and until it has to be answered: a package of code is stored meanwhile.
CONNECTED, ANSWERED = 10, 60


class Client(JobSubmissionClient):
    """Ray's own client, whose requests would wait for ever, and whose errors are of many kinds.

    Raises RunError where nobody listens, where no answer comes, and where a token is missing or wrong.
    """

    def __init__(self, address: str) -> None:
        self.shown = _shown(urlsplit(address))
        super().__init__(address)

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        """One request. Ray has no public place for a time limit; its own callers add none."""
        try:
            return super()._do_request(method, endpoint, timeout=(CONNECTED, ANSWERED), **options)
        except AuthenticationError as error:
            raise RunError(f"{self.shown}: {_token_advice(error)}") from None
        except requests.exceptions.SSLError as error:
            raise RunError(f"{self.shown}: no secure connection: {error}") from None
        except requests.exceptions.ReadTimeout:
            raise RunError(f"{self.shown}: no answer within {ANSWERED} s; is that a Ray head's dashboard?") from None
        except requests.exceptions.RequestException:
            raise RunError(
                f"{self.shown}: nobody listens there, or no Ray head; start one (`ray start --head`), or give its "
                "dashboard's address by --address or RAY_ADDRESS"
            ) from None

    def _raise_error(self, r: requests.Response) -> NoReturn:
        """What Ray answers with is often a whole traceback, whose last line says it."""
        lines = r.text.strip().splitlines()
        raise RunError(f"{self.shown}: HTTP {r.status_code}: {lines[-1] if lines else 'no reason given'}")


def connect(address: str | None = None) -> Client:
    """The client of the cluster at `address`, or of the one that the environment names, or of this machine's.

    Raises RunError for an address that is none, and where no Ray head can be spoken to.
    """
    for name in ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    url = _address(address)
    # Ray takes its variable for more than what its client is told.
    with _set(VARIABLES[0], url):
        return _open(url)


def _open(url: str) -> Client:
    try:
        return Client(url)
    except AuthenticationError as error:  # a token that cannot be read, with advice that is longer than this
        raise RunError(f"{_shown(urlsplit(url))}: {error.message.partition('. ')[0]}; {OWN_TOKEN}") from None
    except (RuntimeError, ValueError, LookupError, TypeError, requests.HTTPError):
        raise RunError(f"{_shown(urlsplit(url))}: what answers there is no Ray dashboard") from None


def refuse_other_release(client: Client) -> None:
    """Raises RunError where the cluster runs another release of Ray: pathor1 works with one."""
    theirs, ours = client._server_ray_version or "", ray.__version__
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise RunError(
            f"{client.shown}: the cluster runs Ray {theirs}, and pathor1 needs {ours}, as is installed here; install "
            "pathor1 with its lock on all nodes"
        )


def _address(given: str | None) -> str:
    """The dashboard's URL, from the first that names one."""
    sources = [("--address", given), *((name, os.environ.get(name)) for name in VARIABLES), ("", DEFAULT)]
    source, text = next((name, value) for name, value in sources if value)
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise RunError(f"{source} is {text!r}; jobs go to the head's dashboard: give --address http://HOST:8265")
    return text.rstrip("/")


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    """An environment variable, for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _shown(parts: SplitResult) -> str:
    """An address without the password that may stand in it."""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _token_advice(error: AuthenticationError) -> str:
    if "Missing authentication token" in error.message:
        return (
            "the cluster asks for a token, and none is set; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH where it "
            "does not lie in ~/.ray/auth_token"
        )
    return f"the cluster does not take this token, which may have expired; {OWN_TOKEN}"
