"""Object stores on this machine, which speak the real protocols: moto's S3 and an emulator of Google's."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@dataclass(kw_only=True)
class Store:
    """A store that runs. `uri("d/a.parquet")` is an object's name, `environment` what a reader has to have set."""

    scheme: str
    bucket: str
    environment: dict[str, str]
    put: Callable[[str, bytes], None]
    asked: list[tuple[str, str, int]] = field(default_factory=list)  # method, path, bytes sent; S3 alone
    at_once: int = 0  # the most requests that were answered at a time; S3 alone
    delay: float = 0.0  # seconds before each answer; S3 alone
    refuses: tuple[str, str] | None = None  # HTTP status and S3's code that all writing is answered with; S3 alone

    def uri(self, key: str = "") -> str:
        return f"{self.scheme}://{self.bucket}/{key}"

    def upload(self, folder: Path) -> None:
        """Every file of a folder, by its path there."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(path.relative_to(folder).as_posix(), path.read_bytes())


@contextmanager
def s3_store(bucket: str) -> Iterator[Store]:
    """moto's server in threads of this process, with an empty bucket."""
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = DomainDispatcherApplication(create_backend_app)
    busy: list[int] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        busy.append(0)
        store.at_once = max(store.at_once, len(busy))
        time.sleep(store.delay)
        try:
            refused = store.refuses if environ["REQUEST_METHOD"] in ("PUT", "POST") else None
            sent = list(moto(environ, start_response)) if refused is None else _refusal(start_response, *refused)
        finally:
            busy.pop()
        size = 0 if environ["REQUEST_METHOD"] == "HEAD" else sum(map(len, sent))
        store.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], size))
        return sent

    server = make_server("127.0.0.1", 0, application, threaded=True)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )

    def put(key: str, content: bytes) -> None:
        client.put_object(Bucket=bucket, Key=key, Body=content)

    environment = {"AWS_ENDPOINT_URL": endpoint, **KEYS}
    store = Store(scheme="s3", bucket=bucket, environment=environment, put=put)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        send(f"{endpoint}/moto-api/reset", b"")
        client.create_bucket(Bucket=bucket)
        yield store
    finally:
        client.close()
        server.shutdown()
        server.server_close()


def _refusal(start_response: Any, status: str, code: str) -> list[bytes]:
    start_response(status, [("Content-Type", "application/xml")])
    return [f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()]


@contextmanager
def gs_store(bucket: str) -> Iterator[Store]:
    """The emulator in a process of its own, as pyarrow's client blocks the one that it is in, with an empty bucket."""
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"

        def put(key: str, content: bytes) -> None:
            name = urllib.parse.quote(key, safe="")
            send(f"{endpoint}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}", content)

        send(f"{endpoint}/storage/v1/b?project=test", json.dumps({"name": bucket}).encode(), "application/json")
        environment = {"CLOUD_STORAGE_EMULATOR_ENDPOINT": endpoint}
        yield Store(scheme="gs", bucket=bucket, environment=environment, put=put)


def _serve_gs() -> None:
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RequestHandler, Storage(use_memory_fs=True)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()  # ends when whoever started this does


def send(url: str, content: bytes, kind: str = "application/octet-stream") -> None:
    request = urllib.request.Request(url, data=content, headers={"Content-Type": kind}, method="POST")
    with urllib.request.urlopen(request, timeout=30):
        pass


if __name__ == "__main__":
    _serve_gs()
