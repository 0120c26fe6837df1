"""Where files lie: on this machine, or in an object store that is named by s3:// or gs://.

A remote file is named by its URI, bucket and key as they are: "%20" is three letters, as it is for AWS's own command.
What a store is reached by (credentials, region, endpoint) is the environment's, in each process that reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pathor1.errors import DataError

# A store that does not answer is given up after about a minute: seconds without a connection or without a byte, and
# attempts of each request. AWS's SDK would give up after 3 s, which a long listing may take on a busy store.
CONNECT = 5.0
SILENCE = 15.0
ATTEMPTS = 4
RETRY_GCS = timedelta(seconds=20)  # after this no attempt is begun; one of them may take two minutes

MARKS = "*?["  # what makes a name a glob

# pyarrow has no classes for what a store says; its errors hold these words.
_OF_A_STORE = re.compile(r"AWS Error|google::cloud::Status")
_REFUSED = re.compile(
    r"ACCESS_?DENIED|ACCESS_KEY|SIGNATURE|TOKEN|HTTP status 40[013]|OAuth2|UNAUTHENTICATED|PERMISSION"
)
# Of S3 and what speaks like it: Ceph, MinIO. Each has its own word, which comes with the HTTP status of a refusal.
_FULL = re.compile(r"[qQ]uotaExceeded|StorageFull|HTTP status 507")
_EXPIRED = re.compile(r"ExpiredToken|EXPIRED_TOKEN|TokenRefreshRequired|invalid_grant")
_UNREACHABLE = re.compile(r"NETWORK_CONNECTION|CURL error")


def is_remote(file: str) -> bool:
    """Whether a text is a URI and not a local path."""
    return "://" in file


def listed(pattern: str) -> list[str]:
    """A remote file, the *.parquet of a remote folder, or the files of a remote glob, as sorted URIs.

    Raises DataError where there is none, and where the store cannot be read.
    """
    with told(pattern):
        store, path = located(pattern)
        found = _found(store, path)
        bucket = path.partition("/")[0]
        if not found and store.get_file_info(bucket).type == fs.FileType.NotFound:
            raise DataError(f"{pattern}: no bucket {bucket} in {_where(pattern)}; check its name")
    if not found:
        raise DataError(f"{pattern}: no Parquet file there")
    # By folder and then by name, as local paths are sorted: a set that is moved has the same order.
    return [f"{pattern.partition('://')[0]}://{path}" for path in sorted(found, key=lambda path: path.split("/"))]


def _found(store: fs.FileSystem, path: str) -> list[str]:
    kind = store.get_file_info(path).type
    if kind == fs.FileType.File:
        return [path]
    parts = path.split("/")
    plain = next((place for place, part in enumerate(parts) if any(mark in part for mark in MARKS)), len(parts))
    wanted = ["*.parquet"] if kind == fs.FileType.Directory else parts[plain:]
    folder = parts if kind == fs.FileType.Directory else parts[:plain]
    # Not level by level: what looks like a folder is part of a name, and Google's store lists none.
    among = fs.FileSelector("/".join(folder), recursive=len(wanted) > 1, allow_not_found=True)
    return [
        entry.path
        for entry in store.get_file_info(among)
        if entry.type == fs.FileType.File and _matches(entry.path.split("/")[len(folder) :], wanted)
    ]


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a glob, where ** stands for any number of folders."""
    if not wanted or not parts:
        return not wanted and not parts
    if wanted[0] == "**":
        return _matches(parts, wanted[1:]) or _matches(parts[1:], wanted)
    return fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def parquet(file: str) -> pq.ParquetFile:
    """Opens a Parquet file by its footer alone; what is read of it later is read in few, large requests.

    Raises DataError where it is missing, cannot be reached or is not Parquet.
    """
    with told(file):
        if not is_remote(file):
            return pq.ParquetFile(file)
        store, path = located(file)
        return pq.ParquetFile(store.open_input_file(path), pre_buffer=True)


def batches(file: str, *, group: int, size: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a row group, `size` at a time. Raises DataError where the file cannot be read."""
    with told(file):
        yield from parquet(file).iter_batches(batch_size=size, row_groups=[group], columns=list(columns))


@contextmanager
def told(file: str) -> Iterator[None]:
    """What pyarrow raises within it becomes a DataError: the file, what is wrong, and what to do."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: {_problem(file, error)}") from error


def _problem(file: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    problem = store_problem(file, error, what="read from", may="list and read")
    return problem or f"not a Parquet file that can be read ({_said(error)})"


def store_problem(uri: str, error: Exception, *, what: str, may: str) -> str | None:
    """What a store says is wrong, and what to do; None for an error that is of no store.

    what: was tried, such as "read from"; may: what the user's credentials have to allow.
    """
    said = _said(error)
    if not _OF_A_STORE.search(said):
        return None
    where = _where(uri)
    names = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if uri.startswith("gs:"):
        names = "GOOGLE_APPLICATION_CREDENTIALS"
    if _FULL.search(said):
        return f"the bucket is full, or its quota used up, at {where}; free some of it, or have it raised: {said}"
    if _EXPIRED.search(said):
        return f"the credentials have expired for {where}; set {names}, on every node, to new ones: {said}"
    if _REFUSED.search(said):
        return f"refused by {where}; set {names}, on every node, to what may {may} the bucket: {said}"
    if _UNREACHABLE.search(said):
        return f"no answer from {where}; check the address and the network: {said}"
    return f"cannot be {what} {where}: {said}"


def _said(error: Exception) -> str:
    # Google's errors go on with all that is known of the request.
    return " ".join(str(error).split()).partition(" error_info=")[0]


def located(file: str) -> tuple[fs.FileSystem, str]:
    """The store of a URI, and bucket/key there. Raises DataError where it is of no store that we read."""
    scheme, _, path = file.partition("://")
    bucket = path.partition("/")[0]
    if scheme not in ("s3", "gs"):
        raise DataError(f"{file}: {scheme}:// is not read; write s3://BUCKET/..., gs://BUCKET/... or a local path")
    if not bucket or any(mark in bucket for mark in MARKS):
        raise DataError(f"{file}: names no bucket; write {scheme}://BUCKET/..., with no pattern in the bucket's name")
    return _store(scheme), path.rstrip("/")


@cache
def _store(scheme: str) -> fs.FileSystem:
    """Made once in a process: it looks for credentials, and keeps them fresh."""
    if scheme == "gs":
        # An emulator takes no credentials, and Google's own clients look for none then.
        emulated = "CLOUD_STORAGE_EMULATOR_ENDPOINT" in os.environ
        return fs.GcsFileSystem(anonymous=emulated, retry_time_limit=RETRY_GCS)
    endpoint = _s3_endpoint()
    # AWS's SDK asks EC2's metadata for a region where none is said, for 14 s outside of AWS; other stores need none.
    chosen = not endpoint or "AWS_REGION" in os.environ or "AWS_DEFAULT_REGION" in os.environ
    return fs.S3FileSystem(
        endpoint_override=endpoint,  # not read from the environment here, unlike by from_uri, which takes no limits
        region=None if chosen else "us-east-1",
        connect_timeout=CONNECT,
        request_timeout=SILENCE,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


def _s3_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _where(file: str) -> str:
    """The store of a file in words, with what sets its address."""
    if file.startswith("gs:"):
        emulator = os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT")
        return f"{emulator} (CLOUD_STORAGE_EMULATOR_ENDPOINT)" if emulator else "Google Cloud Storage"
    endpoint = _s3_endpoint()
    return f"{endpoint} (AWS_ENDPOINT_URL)" if endpoint else "AWS S3 (AWS_ENDPOINT_URL is not set)"
