"""Checkpoints in object stores, as real servers on this machine keep them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import fs
from stores import Store, gs_store, s3_store, send

from pathor1 import checkpoints, places
from pathor1.checkpoints import MANIFEST, Manifest, Score
from pathor1.data.stream import StreamState
from pathor1.errors import RunError
from pathor1.recipe import Data, Model, Recipe, to_toml
from pathor1.recipe_rl import RL
from pathor1.rl import copies
from pathor1.rl.algorithms import spell_out
from pathor1.rl.copies import CheckpointStore, Copies
from pathor1.rl.starts import take_newest

pytestmark = pytest.mark.timeout(120)
OTHERS = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
LARGE = os.urandom(12 << 20)  # more than one part of an upload


@pytest.fixture(scope="module", params=[s3_store, gs_store], ids=["s3", "gs"])
def server(request: pytest.FixtureRequest) -> Iterator[Store]:
    with request.param("lab") as server:
        yield server


@pytest.fixture(autouse=True)
def environment(server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "CLOUD_STORAGE_"))]:
        monkeypatch.delenv(name)
    for name, value in {**OTHERS, **server.environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(copies, "PAUSES", (0.0,))
    places._store.cache_clear()
    yield
    places._store.cache_clear()


@pytest.fixture
def store(server: Store, request: pytest.FixtureRequest) -> CheckpointStore:
    """A place of the test's own, with a folder of another run beside it."""
    return CheckpointStore(server.uri(f"{request.node.name.split('[')[0]}/"), "run")


def save(root: Path, step: int, *, score: float | None = None, content: bytes = b"weights", run: str = "") -> Path:
    path = checkpoints.folder(root, step)
    (path / "actor").mkdir(parents=True)
    (path / "recipe.toml").write_text(run)
    (path / "actor/model_world_size_1_rank_0.pt").write_bytes(content)
    (path / "questions.parquet").write_bytes(b"questions of %d" % step)
    scored = None if score is None else Score(metric="reward/mean", mean=score, steps=2)
    written = checkpoints.describe(path, checkpoints.contents(path))
    state = StreamState(seed=7, sources=())
    checkpoints.seal(path, Manifest(step=step, stream=state, ranks=1, files=written, score=scored))
    return path


def objects(store: CheckpointStore) -> list[str]:
    """The files in the store, by their paths in the run's folder there."""
    system, base = places.located(store.uri)
    found = system.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
    return sorted(entry.path.removeprefix(f"{base}/") for entry in found if entry.type == fs.FileType.File)


def names(*steps: int) -> list[str]:
    files = ("actor/model_world_size_1_rank_0.pt", MANIFEST, "questions.parquet", "recipe.toml")
    return [f"step-{step:06d}/{name}" for step in steps for name in files]


def read_all(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def recipe(server: Store, runs: Path, folder: str, *, seed: int = 0) -> Recipe:
    rl = RL(steps=8, checkpoint_store=server.uri(folder))
    data = Data(train=["/t.parquet"])
    return spell_out(Recipe(name="run", runs_dir=str(runs), seed=seed, model=Model(path="m"), data=data, rl=rl))


def test_a_copy_comes_back_as_it_was(server: Store, store: CheckpointStore, tmp_path: Path) -> None:
    path = save(tmp_path / "a", 12, score=0.25, content=LARGE)
    store.probe()
    assert store.scores() == {}
    store.upload(path)
    written = [path for method, path, _ in server.asked if method in ("PUT", "POST") and "step-000012" in path]
    if server.scheme == "s3":  # which alone is listened to
        order = [path.endswith(MANIFEST) for path in written]
        assert order == sorted(order), "the manifest is begun when all else is there"
        assert (order[0], order[-1]) == (False, True)
    assert objects(store) == names(12), "and nothing of the probe"
    assert store.scores() == {12: Score(metric="reward/mean", mean=0.25, steps=2)}
    assert read_all(store.download(12, tmp_path / "b")) == read_all(path)
    assert [each.name for each in (tmp_path / "b").iterdir()] == ["step-000012"]


def test_what_a_manifest_has_learned_since_reaches_its_copy(store: CheckpointStore, tmp_path: Path) -> None:
    paths = [save(tmp_path, step, score=0.5) for step in (2, 4)]
    store.upload(paths[1])
    keeper = Copies(tmp_path, 2, store)
    better = Score(metric="reward/mean", mean=0.75, steps=2)
    for path in paths:
        checkpoints.seal(path, replace(checkpoints.read(path), score=better))
        keeper.renew(path)
    keeper.wait()
    assert store.scores() == {4: better}, "of step 2 there is no copy"
    assert read_all(store.download(4, tmp_path / "b")) == read_all(paths[1])


def test_what_was_cut_off_is_no_copy_and_is_removed(server: Store, store: CheckpointStore, tmp_path: Path) -> None:
    server.put(f"{store.uri.split('/', 3)[3]}/step-000002/actor/model_world_size_1_rank_0.pt", b"weig")
    assert store.scores() == {}
    save(tmp_path, 4)
    keeper = Copies(tmp_path, 2, store)
    keeper.prune_and_copy()
    keeper.wait()
    assert objects(store) == names(4)


def test_the_store_keeps_what_the_disk_keeps(store: CheckpointStore, tmp_path: Path) -> None:
    keeper = Copies(tmp_path / "a", 1, store)
    for step, score in ((2, 0.3), (4, 0.9), (6, 0.5), (8, 0.1)):
        save(tmp_path / "a", step, score=score)
        keeper.prune_and_copy()
    keeper.wait()
    assert objects(store) == names(4, 8)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["step-000004", "step-000008"]
    assert keeper.metrics() == {"checkpoints/copies_failed": 0.0}
    # The run goes on where the others of its checkpoints are not: the best stays in the store.
    store.download(8, tmp_path / "b")
    keeper = Copies(tmp_path / "b", 1, store)
    save(tmp_path / "b", 10, score=0.2)
    keeper.prune_and_copy()
    keeper.wait()
    assert objects(store) == names(4, 10)


def test_a_checkpoint_stays_on_the_disk_while_it_is_copied(store: CheckpointStore, tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    keeper = Copies(tmp_path, 1, store)
    assert keeper._next({}) == 2  # as the thread does before it copies
    save(tmp_path, 4)
    keeper.prune_and_copy()
    assert path.exists()
    keeper.wait()
    keeper = Copies(tmp_path, 1, store)
    keeper.prune_and_copy()
    keeper.wait()
    assert not path.exists()
    assert objects(store) == names(4)


def test_a_copy_that_fails_is_told_and_made_up_for(
    store: CheckpointStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path, 2)
    file = path / "questions.parquet"
    whole = file.read_bytes()
    file.write_bytes(b"cut")
    keeper = Copies(tmp_path, 2, store)
    keeper.prune_and_copy()
    keeper.wait()
    assert keeper.metrics() == {"checkpoints/copies_failed": 1.0}
    (line,) = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("waiting")]
    assert line.startswith(f"checkpoints are not copied: {file}: has 3 bytes and was written with {len(whole)}; ")
    assert line.endswith("; the run goes on, and tries again behind the next one")
    assert objects(store) == []
    file.write_bytes(whole)
    keeper = Copies(tmp_path, 2, store)
    save(tmp_path, 4)
    keeper.prune_and_copy()
    keeper.wait()
    assert objects(store) == names(2, 4)


def test_a_run_takes_what_is_newer_in_the_store(
    server: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = recipe(server, tmp_path / "here", "taken")
    root = tmp_path / "here/run/checkpoints"
    store = CheckpointStore(server.uri("taken"), "run")
    take_newest(wanted)
    assert not root.exists(), "there is nothing to take"
    save(root, 2)
    for step in (4, 6):
        store.upload(save(tmp_path / "there", step, run=to_toml(wanted)))
    save(tmp_path / "there", 8)  # which did not get there
    take_newest(wanted)
    assert capsys.readouterr().out == f"run: takes the checkpoint of step 6 from {server.uri('taken/run')}\n"
    assert read_all(root / "step-000006") == read_all(tmp_path / "there/step-000006")
    assert checkpoints.read(root / "step-000006").step == 6
    save(root, 8)
    take_newest(wanted)
    assert sorted(path.name for path in root.iterdir()) == ["step-000002", "step-000006", "step-000008"]


def test_what_another_run_of_the_name_has_left_is_not_taken(server: Store, tmp_path: Path) -> None:
    store = CheckpointStore(server.uri("other"), "run")
    begun = to_toml(recipe(server, tmp_path / "gone", "other", seed=1))
    store.upload(save(tmp_path / "there", 4, run=begun))
    with pytest.raises(RunError) as caught:
        take_newest(recipe(server, tmp_path / "here", "other", seed=2))
    assert str(caught.value) == (
        f"{store.uri}: a run of this name is there already, with seed = 1, not 2; choose another name, or set it as it "
        "was to go on with that run"
    )
    assert not (tmp_path / "here").exists()
    take_newest(recipe(server, tmp_path / "here", "other", seed=1))
    assert (tmp_path / "here/run/checkpoints/step-000004/manifest.json").exists()


def test_a_damaged_copy_is_refused_and_leaves_nothing(server: Store, store: CheckpointStore, tmp_path: Path) -> None:
    store.upload(save(tmp_path / "a", 2))
    uri = f"{store.uri}/step-000002"
    server.put(f"{uri.split('/', 3)[3]}/questions.parquet", b"questions of 3")
    with pytest.raises(RunError) as caught:
        store.download(2, tmp_path / "b")
    assert str(caught.value) == (
        f"{uri}/questions.parquet: does not have the content that it was written with; remove {uri} to resume from "
        "the checkpoint before it"
    )
    assert not list((tmp_path / "b").iterdir())
    server.put(f"{uri.split('/', 3)[3]}/{MANIFEST}", b"{")
    with pytest.raises(RunError, match=f"^{uri}/{MANIFEST}: cannot be read "):
        store.scores()


def test_a_bucket_that_is_not_there_stops_the_run_before_it_starts(server: Store, tmp_path: Path) -> None:
    missing = recipe(server, tmp_path, "x")
    missing = missing.model_copy(
        update={"rl": missing.rl.model_copy(update={"checkpoint_store": f"{server.scheme}://none/x"})}
    )
    with pytest.raises(RunError) as caught:
        take_newest(missing)
    line = str(caught.value)
    assert line.startswith(f"{server.scheme}://none/x/run: ")
    assert "127.0.0.1" in line
    assert "\n" not in line


@pytest.fixture
def closed(server: Store) -> Iterator[None]:
    """A store that nobody may use."""
    if server.scheme == "gs":
        pytest.skip("the emulator takes everyone")
    send(f"{server.environment['AWS_ENDPOINT_URL']}/moto-api/reset-auth", b"0")
    yield
    send(f"{server.environment['AWS_ENDPOINT_URL']}/moto-api/reset-auth", b"inf")


@pytest.fixture
def refuse(server: Store) -> Iterator[Callable[[str, str], None]]:
    """Has the store answer all writing with an HTTP status and S3's code."""
    if server.scheme == "gs":
        pytest.skip("the emulator takes everything")

    def answer(status: str, code: str) -> None:
        server.refuses = status, code

    yield answer
    server.refuses = None


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        ("403 Forbidden", "QuotaExceeded", "the bucket is full, or its quota used up, at "),  # Ceph
        ("507 Insufficient Storage", "XMinioStorageFull", "the bucket is full, or its quota used up, at "),
        ("400 Bad Request", "XMinioAdminBucketQuotaExceeded", "the bucket is full, or its quota used up, at "),
        ("400 Bad Request", "ExpiredToken", "the credentials have expired for "),  # AWS
    ],
)
def test_a_bucket_that_is_full_and_credentials_that_have_expired_stop_a_run_before_it_starts(
    refuse: Callable[[str, str], None], server: Store, tmp_path: Path, status: str, code: str, line: str
) -> None:
    refuse(status, code)
    with pytest.raises(RunError) as caught:
        take_newest(recipe(server, tmp_path, "full"))
    assert str(caught.value).startswith(f"{server.uri('full/run')}: {line}http://127.0.0.1:")
    assert code in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_bucket_that_becomes_full_is_told_and_made_up_for(
    refuse: Callable[[str, str], None],
    server: Store,
    store: CheckpointStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path, 2)
    refuse("403 Forbidden", "QuotaExceeded")
    keeper = Copies(tmp_path, 2, store)
    keeper.prune_and_copy()
    keeper.wait()
    assert keeper.metrics() == {"checkpoints/copies_failed": 1.0}
    (line,) = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("waiting")]
    assert line.startswith(f"checkpoints are not copied: {store.uri}: the bucket is full, or its quota used up, at ")
    assert line.endswith("; the run goes on, and tries again behind the next one")
    assert objects(store) == []
    server.refuses = None
    save(tmp_path, 4)
    keeper = Copies(tmp_path, 2, store)
    keeper.prune_and_copy()
    keeper.wait()
    assert objects(store) == names(2, 4)


def test_a_store_that_refuses_says_what_it_takes(closed: None, store: CheckpointStore) -> None:
    with pytest.raises(RunError) as caught:
        store.probe()
    line = str(caught.value)
    assert line.startswith(f"{store.uri}: refused by http://127.0.0.1:")
    assert "on every node, to what may list, read, write and delete in the bucket: " in line
