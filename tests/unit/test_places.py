"""Files of samples in object stores, as real servers on this machine hand them out."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from questions import some
from stores import KEYS, Store, gs_store, s3_store

from pathor1 import places
from pathor1.data.first_look import first_look
from pathor1.data.plan import plan
from pathor1.data.read_block import ReadBlock
from pathor1.data.row_groups import expand, fingerprint, row_groups
from pathor1.errors import DataError
from pathor1.samples import SCHEMA, open_parquet, read, to_row, write

# A store that does not answer is given up; without a limit, these tests would wait for ever.
pytestmark = pytest.mark.timeout(120)
OTHERS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
TREE = (
    "d/b.parquet",
    "d/a.parquet",
    "d/notes.txt",
    "d/deep/er/c.parquet",
    "d/deep/c.parquet",
    "d-e/x.parquet",  # "-" is before "/", and the folder d before d-e
    "d.parquet",
    "odd/a[1].parquet",
    "odd/a1.parquet",
    "odd/50%20 é+?.parquet",
    "empty/notes.txt",
    "folder.parquet/part.parquet",
)


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    with s3_store("lab") as store:
        yield store


@pytest.fixture(scope="module", params=[s3_store, gs_store], ids=["s3", "gs"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with the files of `tree`."""
    with request.param("trees") as store:
        for name in TREE:
            store.put(name, b"PAR1")
        yield store


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of this machine's own settings, and no store that an earlier test has opened."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "GOOGLE_", "CLOUD_STORAGE_")):
            monkeypatch.delenv(name)
    for name, value in OTHERS.items():
        monkeypatch.setenv(name, value)
    places._store.cache_clear()
    yield
    places._store.cache_clear()


def use(monkeypatch: pytest.MonkeyPatch, store: Store) -> Store:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    return store


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


PATTERNS = ["d/b.parquet", "d", "d/", "d.parquet", "d/*.parquet", "d/[b-z].parquet", "d/?.parquet", "*.parquet", ""]
PATTERNS += ["d/**/*.parquet", "**/*.parquet", "d/**/c.parquet", "d/*/*.parquet", "d*/x.parquet", "**/deep/*.parquet"]
PATTERNS += ["odd/a[1].parquet", "odd/a[[]1].parquet", "odd/*", "odd", "folder.parquet"]


def test_a_store_is_read_as_a_folder_is(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, store)
    for pattern in PATTERNS:
        local = [Path(path).relative_to(tree).as_posix() for path in expand([f"{tree}/{pattern}"])]
        assert expand([store.uri(pattern)]) == [store.uri(name) for name in local], pattern


def test_what_is_named_twice_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, store)
    a, b = store.uri("d/a.parquet"), store.uri("d/b.parquet")
    assert expand([b, store.uri("d"), store.uri("d/"), store.uri("d/*.parquet"), b]) == [b, a]


@pytest.mark.parametrize("key", ["none.parquet", "none", "empty", "none/*.parquet", "d/*.csv", "**/none", "d/**"])
def test_a_name_that_nothing_has_is_refused(store: Store, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, store)
    with pytest.raises(DataError) as caught:
        expand([store.uri("d"), store.uri(key)])
    assert str(caught.value) == f"{store.uri(key)}: no Parquet file there"


@pytest.mark.parametrize("key", ["", "/a.parquet", "/d", "/d/*.parquet"])
def test_a_bucket_that_is_not_there_is_told_from_an_empty_one(
    store: Store, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, store)
    uri = f"{store.scheme}://nobody{key}"
    with pytest.raises(DataError) as caught:
        expand([uri])
    (variable, endpoint), *_ = store.environment.items()
    assert str(caught.value) == f"{uri}: no bucket nobody in {endpoint} ({variable}); check its name"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://x/a.parquet", r"http:// is not read; write s3://BUCKET/\.\.\., gs://"),
        ("file:///a.parquet", r"file:// is not read; .* or a local path$"),
        ("s3://", "names no bucket; write s3://BUCKET/"),
        ("gs:///a.parquet", "names no bucket; write gs://BUCKET/"),
        ("s3://la*/a.parquet", "with no pattern in the bucket's name$"),
    ],
)
def test_what_is_no_place_is_refused_with_what_is(uri: str, said: str) -> None:
    for reader in (lambda: expand([uri]), lambda: open_parquet(uri)):
        with pytest.raises(DataError, match=said) as caught:
            reader()
        assert str(caught.value).startswith(f"{uri}: ")


# ---------------------------------------------------------------------- what goes wrong on the way


def one_line(error: DataError, uri: str) -> str:
    assert str(error).startswith(f"{uri}: ")
    assert "\n" not in str(error)
    return str(error).removeprefix(f"{uri}: ")


def test_who_has_no_credentials_is_told_which_to_set(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("private/a.parquet", b"")
    endpoint = s3.environment["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    uri = s3.uri("private/a.parquet")
    for reader in (lambda: expand([uri]), lambda: open_parquet(uri)):
        with pytest.raises(DataError) as caught:
            reader()
        said = one_line(caught.value, uri)
        assert said.startswith(f"refused by {endpoint} (AWS_ENDPOINT_URL); set AWS_ACCESS_KEY_ID and ")
        assert "ACCESS_DENIED" in said
    places._store.cache_clear()  # as in a new process
    use(monkeypatch, s3)
    assert expand([uri]) == [uri]


def test_google_without_credentials_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCE_METADATA_ROOT", f"127.0.0.1:{unused_port()}")  # no machine of Google's
    monkeypatch.setattr(places, "RETRY_GCS", places.RETRY_GCS / 20)
    uri = "gs://lab/a.parquet"
    with pytest.raises(DataError) as caught:
        expand([uri])
    said = one_line(caught.value, uri)
    assert said.startswith("refused by Google Cloud Storage; set GOOGLE_APPLICATION_CREDENTIALS, on every node, ")
    assert "error_info" not in said


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("scheme", "variable"), [("s3", "AWS_ENDPOINT_URL_S3"), ("gs", "CLOUD_STORAGE_EMULATOR_ENDPOINT")]
)
def test_where_no_store_is_there_is_no_waiting(scheme: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{unused_port()}"
    for name, value in {variable: endpoint, **KEYS}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(places, "RETRY_GCS", places.RETRY_GCS / 20)
    for pattern in ("lab/a.parquet", "lab/d/*.parquet"):
        uri = f"{scheme}://{pattern}"
        with pytest.raises(DataError) as caught:
            expand([uri])
        assert one_line(caught.value, uri).startswith(f"no answer from {endpoint} ("), pattern


def connections(server: socket.socket) -> int:
    server.setblocking(False)
    found = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            found += 1
    return found


def test_a_store_that_takes_requests_and_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "CONNECT", 0.5)
    monkeypatch.setattr(places, "SILENCE", 1.0)
    monkeypatch.setattr(places, "ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name, value in {"AWS_ENDPOINT_URL": endpoint, **KEYS}.items():
            monkeypatch.setenv(name, value)
        for reader in (lambda: expand(["s3://lab/a.parquet"]), lambda: open_parquet("s3://lab/a.parquet")):
            with pytest.raises(DataError) as caught:
                reader()
            said = one_line(caught.value, "s3://lab/a.parquet")
            assert said.startswith(f"no answer from {endpoint} (AWS_ENDPOINT_URL); check ")
        assert connections(silent) == 2 * places.ATTEMPTS


@pytest.mark.parametrize("content", [b"", b"id,question\n1,2\n", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_not_parquet_is_refused_in_one_line(
    s3: Store, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, s3)
    s3.put("bad/a.parquet", content)
    uri = s3.uri("bad/a.parquet")
    with pytest.raises(DataError) as caught:
        row_groups(expand([s3.uri("bad")]))
    assert one_line(caught.value, uri).startswith("not a Parquet file that can be read (")


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_that_is_damaged_behind_its_footer_is_named(
    s3: Store, remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    write([some("a")], path)
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    use(monkeypatch, s3).put("damaged/a.parquet", bytes(content))
    file = s3.uri("damaged/a.parquet") if remote else str(path)
    groups = row_groups([file])
    (block,) = plan(groups, seed=0, epoch=0, shuffle=False)
    for reader in (
        lambda: list(read(file)),
        lambda: list(places.batches(file, group=0, size=1, columns=("id",))),
        lambda: list(ReadBlock(block=block, tasks=("mcq",), min_pixels=1, max_pixels=9999)()),
    ):
        with pytest.raises(DataError) as caught:
            reader()
        assert one_line(caught.value, file).startswith("not a Parquet file that can be read (")


# ---------------------------------------------------------------------- reading


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve files in two folders, of one to twelve rows, whose pictures are no smaller when packed."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(12):
        noise = random.Random(number)
        rows = (some(f"{number}-{row}", images=(noise.randbytes(100_000),)) for row in range(number + 1))
        write(rows, folder / "ab"[number % 2] / f"{number}.parquet")
    return folder


@pytest.fixture
def lab(s3: Store, made: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    s3.upload(made)
    s3.asked.clear()
    return use(monkeypatch, s3)


def test_a_place_in_local_files_is_one_in_the_same_files_of_a_store(lab: Store, made: Path) -> None:
    local, remote = row_groups(expand([f"{made}/*/*.parquet"])), row_groups(expand([lab.uri("[ab]/*.parquet")]))
    assert [replace(group, file="") for group in local] == [replace(group, file="") for group in remote]
    assert [group.file for group in remote] == [lab.uri(str(Path(group.file).relative_to(made))) for group in local]
    assert fingerprint(local) == fingerprint(remote)
    assert fingerprint(remote[1:]) != fingerprint(remote)


def test_footers_are_read_side_by_side_and_nothing_else_is(lab: Store, made: Path) -> None:
    files = expand([lab.uri("a"), lab.uri("b")])
    lab.asked.clear()
    lab.at_once, lab.delay = 0, 0.05
    row_groups(files)
    lab.delay = 0.0
    assert lab.at_once > 4
    sent = sum(size for _, _, size in lab.asked)
    assert sent <= len(files) * (64 << 10) < sum(path.stat().st_size for path in made.rglob("*.parquet")) / 8


def test_of_a_row_group_the_wanted_columns_alone_are_read(lab: Store) -> None:
    uri = lab.uri("b/11.parquet")
    texts = [name for name in SCHEMA.names if name != "images"]
    assert [sample.id for sample in read(uri, columns=texts)] == [f"11-{row}" for row in range(12)]
    assert sum(size for _, _, size in lab.asked) < 100_000
    (batch, *_) = places.batches(uri, group=0, size=5, columns=("id", "question"))
    assert batch["id"].to_pylist() == [f"11-{row}" for row in range(5)]
    assert sum(size for _, _, size in lab.asked) < 200_000


def test_samples_are_those_of_the_local_file(lab: Store, made: Path) -> None:
    assert list(read(lab.uri("a/10.parquet"))) == list(read(made / "a/10.parquet"))
    with pytest.raises(DataError, match=r"^s3://lab/a/10.parquet, row 1, sample '10-0': 100000 bytes that are no pict"):
        first_look([lab.uri("a/10.parquet")], tasks=("mcq",), min_pixels=1, max_pixels=9999)


def test_a_file_that_goes_while_it_is_read_is_named(lab: Store, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([to_row(some("a"))], schema=SCHEMA)
    pq.write_table(table, tmp_path / "a.parquet")
    lab.put("gone/a.parquet", (tmp_path / "a.parquet").read_bytes())
    (block,) = plan(row_groups(expand([lab.uri("gone")])), seed=0, epoch=0, shuffle=False)
    moved = replace(block, groups=[replace(group, file=lab.uri("gone/b.parquet")) for group in block.groups])
    with pytest.raises(DataError, match=r"^s3://lab/gone/b.parquet: no such file$"):
        list(ReadBlock(block=moved, tasks=("mcq",), min_pixels=1, max_pixels=9999)())


def test_google_hands_out_the_same(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gs_store("lab") as store:
        use(monkeypatch, store).upload(made)
        files = expand([store.uri("*/*.parquet")])
        assert fingerprint(row_groups(files)) == fingerprint(row_groups(expand([f"{made}/*/*.parquet"])))
        assert list(read(store.uri("a/2.parquet"))) == list(read(made / "a/2.parquet"))
