"""The manifests that are rendered: what they ask for, and whether Kubernetes and KubeRay would take them."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kuberay
import kubernetes
import pytest
import yaml

from pathor1 import cli
from pathor1.recipe import load
from pathor1.service.options import Options

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RECIPES = sorted((ROOT / "ray_jobs" / "recipes").glob("*.toml"))
GPU, CPU = ROOT / "ray_jobs/recipes/patho_r1_7b_grpo.toml", ROOT / "ray_jobs/recipes/demo_grpo.toml"
ALL = [
    *("--namespace", "lab", "--image", "registry.example/pathor1:1", "--volume", "lab-data", "--mount", "/mnt/lab/"),
    *("--cpus", "90", "--memory", "900Gi", "--secret", "hub", "--secret", "store", "--env", "NCCL_IB_HCA=mlx5"),
    *("--env", "HF_HOME=/mnt/hub", "--node-label", "nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3"),
    *("--priority-class", "research", "--queue", "gpus", "--autoscale", "3", "--interface", "net1"),
    *("--rdma", "rdma/hca", "--egress", "443", "9000", "--monitoring-namespace", "prometheus"),
    *("--retries", "0", "--deadline", "7200", "--start-deadline", "600", "--ttl", "0"),
]
CASES = {
    "as it is": [],
    "all options": ALL,
    "two nodes": ["--set", "cluster.nodes=2", "--set", "cluster.accelerators_per_node=4"],
    "on CPUs": ["--set", "cluster.accelerator=cpu"],
    "HTTP": ["--submission-mode", "HTTPMode"],
    "sidecar": ["--submission-mode", "SidecarMode"],
    "cut off": ["--egress"],
    "shared": ["--shared"],
    "shared, all options": ["--shared", *ALL],
}
needs_crds = pytest.mark.skipif(
    kubernetes.crds() is None, reason="KubeRay's CRDs are not here; `make crds` fetches them"
)


@pytest.fixture
def render(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs the command and returns its documents by kind."""

    def run(recipe: Path, *arguments: str) -> dict[str, Any]:
        assert cli.main(["cluster", "render", str(recipe), *arguments]) == 0
        documents = list(yaml.safe_load_all(capsys.readouterr().out))
        return {document["kind"]: document for document in documents}

    return run


Render = Callable[..., dict[str, Any]]


def ray(documents: dict[str, Any]) -> dict[str, Any]:
    """The RayJob, or the RayCluster of a shared one."""
    return documents.get("RayJob") or documents["RayCluster"]


def variables(template: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in template["spec"]["containers"][0]["env"]}


@needs_crds
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_kubernetes_and_kuberay_take_what_is_rendered(render: Render, recipe: Path, case: str) -> None:
    documents = render(recipe, *CASES[case])
    expected = {"NetworkPolicy", "RayCluster"} if "shared" in case else {"ConfigMap", "NetworkPolicy", "RayJob"}
    assert set(documents) == expected
    for document in documents.values():
        assert kubernetes.problems(document) == []
        assert kubernetes.label_problems(document["metadata"]["labels"]) == []
    assert kuberay.problems(ray(documents)) == []
    for template in kuberay.pods(ray(documents)).values():
        assert kubernetes.pod_problems(template) == []


def test_one_node_for_each_of_the_recipes_with_its_gpus(render: Render) -> None:
    spec = render(GPU, "--set", "cluster.nodes=4", "--set", "cluster.accelerators_per_node=2")["RayJob"]["spec"]
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert [group[key] for key in ("groupName", "replicas", "minReplicas", "maxReplicas")] == ["gpu", 4, 4, 4]
    (container,) = group["template"]["spec"]["containers"]
    # Three CPUs a rank for the processes that share its GPU, one for its part of the queue; two for the queue, and the
    # eight workers of the stream.
    wanted = {"cpu": 4 * 2 + 2 + 8, "memory": "128Gi", "nvidia.com/gpu": 2}
    assert container["resources"] == {"requests": wanted, "limits": wanted}
    head = spec["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0", "no rank on the head"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_a_node_has_what_a_run_will_ask_ray_for(render: Render) -> None:
    from pathor1.rl.placement import CPUS_PER_RANK

    for nodes, ranks in ((1, 1), (1, 8), (2, 8), (3, 5)):
        sizes = ["--set", f"cluster.nodes={nodes}", "--set", f"cluster.accelerators_per_node={ranks}"]
        sizes += [
            "--set",
            f"rl.prompts_per_update={nodes * ranks * 2}",
            "--set",
            f"rl.prompts_per_step={nodes * ranks * 4}",
        ]
        sizes += ["--set", "rollout.tensor_parallel=1", "--set", "data.workers=1"]
        for accelerator, of_node, of_all in (
            ("gpu", CPUS_PER_RANK * ranks, (CPUS_PER_RANK + 1) * nodes * ranks + 2),
            ("cpu", ranks, nodes * ranks + 1),
        ):
            job = render(GPU, *sizes, "--set", f"cluster.accelerator={accelerator}")["RayJob"]
            (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
            cpus = group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
            assert cpus >= of_node
            assert cpus * group["replicas"] >= of_all


def test_on_cpus_no_gpu_is_asked_for(render: Render) -> None:
    (group,) = render(CPU, "--set", "cluster.accelerator=cpu")["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": 2, "memory": "8Gi"}
    assert pod["containers"][0]["image"] == f"pathor1:{version('pathor1')}-cpu"
    assert "tolerations" not in pod


def test_the_job_runs_the_recipe_that_lies_beside_it(render: Render, tmp_path: Path) -> None:
    documents = render(GPU, "--set", "rl.steps=7", "--set", "name=seven")
    spec = documents["RayJob"]["spec"]
    head = kuberay.pods(documents["RayJob"])["head"]["spec"]
    (mount,) = (one for one in head["containers"][0]["volumeMounts"] if one["name"] == "recipe")
    (volume,) = (one for one in head["volumes"] if one["name"] == "recipe")
    assert volume["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"] == "seven-recipe"
    ((file, content),) = documents["ConfigMap"]["data"].items()
    assert spec["entrypoint"] == f"python -m ray_jobs.rl {mount['mountPath']}/{file}"
    (tmp_path / file).write_text(content)
    assert load(tmp_path / file) == load(GPU, ["rl.steps=7", "name=seven"])
    assert (spec["jobId"], documents["RayJob"]["metadata"]["name"]) == ("seven", "seven")
    assert "runtimeEnvYAML" not in spec, "the code is in the image"


def test_a_failed_run_is_started_again_and_everything_ends(render: Render) -> None:
    spec = render(GPU)["RayJob"]["spec"]
    default = Options()
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (default.retries, True)
    assert spec["activeDeadlineSeconds"] == 7 * 24 * 3600
    assert spec["preRunningDeadlineSeconds"] == 3600
    assert spec["ttlSecondsAfterFinished"] == 300
    changed = render(GPU, *ALL)["RayJob"]["spec"]
    keys = ("backoffLimit", "activeDeadlineSeconds", "preRunningDeadlineSeconds", "ttlSecondsAfterFinished")
    assert [changed[key] for key in keys] == [0, 7200, 600, 0]


def test_a_stop_leaves_time_for_a_checkpoint(render: Render) -> None:
    job = render(GPU, "--set", "cluster.stop_grace=240.5")["RayJob"]
    assert variables(kuberay.pods(job)["head"])["RAY_JOB_STOP_WAIT_TIME_S"] == "256", "what ends the run is the run"
    for name in ("head", "gpu"):
        assert kuberay.pods(job)[name]["spec"]["terminationGracePeriodSeconds"] == 256 + 30
    (worker,) = kuberay.pods(job)["gpu"]["spec"]["containers"]
    assert worker["lifecycle"]["preStop"]["exec"]["command"][-1].startswith("timeout 256 ")


def test_options_reach_the_pods(render: Render) -> None:
    documents = render(GPU, *ALL)
    assert {document["metadata"]["namespace"] for document in documents.values()} == {"lab"}
    assert documents["RayJob"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "suspend" not in documents["RayJob"]["spec"], "Kueue sets it"
    pods = kuberay.pods(documents["RayJob"])
    for template in pods.values():
        assert template["spec"]["priorityClassName"] == "research"
        assert template["spec"]["containers"][0]["image"] == "registry.example/pathor1:1"
    for name in ("head", "gpu"):
        (container,) = pods[name]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "hub"}}, {"secretRef": {"name": "store"}}]
        of_ray = {"RAY_JOB_STOP_WAIT_TIME_S": "135"} if name == "head" else {}
        assert variables(pods[name]) == {
            **of_ray,
            "PATHOR1_STORAGE": "/mnt/lab",
            "HF_HOME": "/mnt/hub",
            "NCCL_SOCKET_IFNAME": "net1",
            "GLOO_SOCKET_IFNAME": "net1",
            "NCCL_IB_HCA": "mlx5",
        }
        (volume,) = (one for one in pods[name]["spec"]["volumes"] if one["name"] == "storage")
        assert volume["persistentVolumeClaim"] == {"claimName": "lab-data"}
        assert {"name": "storage", "mountPath": "/mnt/lab"} in container["volumeMounts"]
    worker = pods["gpu"]["spec"]
    assert worker["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert worker["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    limits = {"cpu": 90, "memory": "900Gi", "nvidia.com/gpu": 8, "rdma/hca": 1}
    assert worker["containers"][0]["resources"]["limits"] == limits
    assert "nodeSelector" not in pods["head"]["spec"]
    assert "envFrom" not in pods["submitter"]["spec"]["containers"][0], "the submitter needs no secret"


def test_shared_memory_is_as_large_as_the_pods(render: Render) -> None:
    for template in kuberay.pods(render(GPU)["RayJob"]).values():
        (container,) = template["spec"]["containers"]
        if container["name"] == "ray-job-submitter":
            continue
        (volume,) = (one for one in template["spec"]["volumes"] if "emptyDir" in one)
        assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": container["resources"]["limits"]["memory"]}
        assert {"name": volume["name"], "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_the_object_store_is_the_recipes(render: Render) -> None:
    cluster = render(CPU, "--set", "cluster.object_store_gb=0.5")["RayJob"]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["rayStartParams"]["object-store-memory"] == "500000000"


def test_the_autoscaler_only_on_request(render: Render) -> None:
    cluster = render(GPU)["RayJob"]["spec"]["rayClusterSpec"]
    assert "enableInTreeAutoscaling" not in cluster
    documents = render(GPU, "--autoscale", "5", "--set", "cluster.nodes=2", "--set", "cluster.accelerators_per_node=4")
    cluster = documents["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    (group,) = cluster["workerGroupSpecs"]
    assert [group[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [2, 2, 5]
    ports = [port["port"] for rule in documents["NetworkPolicy"]["spec"]["egress"] for port in rule.get("ports", [])]
    assert 6443 in ports, "it speaks with Kubernetes' API server"


def test_no_pod_may_more_than_it_has_to(render: Render) -> None:
    for arguments in ([], ["--autoscale", "2"], ["--shared"], ["--set", "cluster.accelerator=cpu"]):
        document = ray(render(GPU, *arguments))
        for name, template in kuberay.pods(document).items():
            assert kubernetes.not_restricted(template) == []
            # The autoscaler has a service account of its own, by which it changes the number of workers.
            token = None if name == "head" and "--autoscale" in arguments else False
            assert template["spec"].get("automountServiceAccountToken") is token
            assert template["spec"]["enableServiceLinks"] is False
        options = kuberay.cluster_spec(document).get("autoscalerOptions")
        assert options is None or kubernetes.unsafe_container(options["securityContext"]) == []
    worker = kuberay.pods(render(GPU, "--rdma", "rdma/hca")["RayJob"])["gpu"]
    assert kubernetes.not_restricted(worker) == ["ray-worker: adds IPC_LOCK"], "RDMA locks memory"


def test_rays_token_authentication_is_on_and_no_token_is_written(render: Render) -> None:
    for arguments in ([], ["--shared"]):
        cluster = kuberay.cluster_spec(ray(render(GPU, *arguments)))
        assert cluster["authOptions"] == {"mode": "token"}, "KubeRay makes the token, as a Secret"
        names = {
            one["name"]
            for template in kuberay.pods(ray(render(GPU, *arguments))).values()
            for one in template["spec"]["containers"][0].get("env", [])
        }
        assert not {name for name in names if name.startswith("RAY_AUTH")}


def test_who_may_speak_with_a_run(render: Render) -> None:
    documents = render(GPU, "--monitoring-namespace", "prometheus")
    spec = documents["NetworkPolicy"]["spec"]
    run = {"matchLabels": {"pathor1/run": "patho-r1-7b-grpo"}}
    assert spec["podSelector"] == run
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    for template in kuberay.pods(documents["RayJob"]).values():
        assert template["metadata"]["labels"].items() >= run["matchLabels"].items()
    inside, operator, prometheus = spec["ingress"]
    assert inside == {"from": [{"podSelector": run}]}
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]
    assert operator["from"][0]["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}
    assert prometheus["ports"] == [{"port": 8080, "protocol": "TCP"}], "metrics need no token: one namespace reads them"
    names = {"matchLabels": {"kubernetes.io/metadata.name": "prometheus"}}
    assert prometheus["from"] == [{"namespaceSelector": names}]
    same, dns, outside = spec["egress"]
    assert same == {"to": [{"podSelector": run}]}
    assert {(port["port"], port["protocol"]) for port in dns["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert outside == {"ports": [{"port": 443, "protocol": "TCP"}]}
    cut_off = render(GPU, "--egress")["NetworkPolicy"]["spec"]["egress"]
    assert cut_off == [same, dns], "a rule with no port would allow all"


# Documents with something wrong in them that the tests above would have to notice.


def spoil(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets what a dotted path leads to."""

    def change(document: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = document
        for parent in parents:
            place = place[int(parent)] if parent.isdecimal() else place[parent]
        place[last] = value

    return change


WORKER = "spec.rayClusterSpec.workerGroupSpecs.0"
CONTAINER = f"{WORKER}.template.spec.containers.0"
SPOILED = {
    "a typo": ("spec.backofLimit", 2, "backofLimit"),
    "a typo in a pod": (f"{CONTAINER}.imagePullPolcy", "Always", "imagePullPolcy"),
    "a number as text": ("spec.backoffLimit", "2", "'2' is not of type 'integer'"),
    "text as a number": (f"{CONTAINER}.image", 5, "5 is not of type 'string'"),
    "a start parameter that is no text": (f"{WORKER}.rayStartParams", {"num-cpus": 0}, "0 is not of type 'string'"),
    "a bad quantity": (f"{CONTAINER}.resources.limits.memory", "64GiB", "'64GiB' does not match"),
    "beyond 32 bits": ("spec.activeDeadlineSeconds", 2**31, "greater than the maximum"),
    "no groupName": ("spec.rayClusterSpec.workerGroupSpecs", [{"template": {}}], "'groupName' is a required property"),
    "an unknown mode of the autoscaler": (
        "spec.rayClusterSpec.autoscalerOptions",
        {"version": "v3"},
        "'v3' is not one of",
    ),
    "two variables of one name": (f"{CONTAINER}.env", [{"name": "A", "value": "1"}] * 2, "('A',) twice"),
    "two ports of one number": (f"{CONTAINER}.ports", [{"containerPort": 1}] * 2, "(1, 'TCP') twice"),
}


@needs_crds
@pytest.mark.parametrize("case", SPOILED)
def test_the_schemas_notice(render: Render, case: str) -> None:
    path, value, expected = SPOILED[case]
    document = render(GPU)["RayJob"]
    spoil(path, value)(document)
    assert any(expected in line for line in kubernetes.problems(document)), kubernetes.problems(document)


RULES = {
    "a long name": ("metadata.name", "x" * 48, "name 'xxx"),
    "a digit first": ("metadata.name", "7b", "name '7b'"),
    "a ttl without shutdown": ("spec.shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished needs shutdown"),
    "a negative ttl": ("spec.ttlSecondsAfterFinished", -1, "ttlSecondsAfterFinished is negative"),
    "an unknown mode": ("spec.submissionMode", "K8sJob", "submissionMode K8sJob is none"),
    "a sidecar with a submitter": ("spec.submissionMode", "SidecarMode", "SidecarMode and submitterPodTemplate"),
    "no deadline": ("spec.activeDeadlineSeconds", 0, "activeDeadlineSeconds is not positive"),
    "no deadline of the start": ("spec.preRunningDeadlineSeconds", 0, "preRunningDeadlineSeconds is not positive"),
    "negative retries": ("spec.backoffLimit", -1, "backoffLimit is negative"),
    "rules of deletion": (
        "spec.deletionStrategy",
        {"deletionRules": [{"condition": {}}]},
        "deletionRules and shutdownAfterJobFinishes",
    ),
    "a selector with retries": ("spec.clusterSelector", {"ray.io/cluster": "x"}, "clusterSelector and backoffLimit"),
    "a runtime environment that is a list": ("spec.runtimeEnvYAML", "- a", "runtimeEnvYAML is no mapping"),
    "no version of Ray": ("spec.rayClusterSpec.rayVersion", "2.9.0", "token authentication needs rayVersion"),
    "too few replicas": (f"{WORKER}.maxReplicas", 0, "gpu: minReplicas 1, maxReplicas 0"),
    "no replicas": (f"{WORKER}.minReplicas", None, "gpu: minReplicas and maxReplicas have to be set"),
    "labels to ray start": (f"{WORKER}.rayStartParams", {"labels": "a=b"}, "gpu: labels in rayStartParams"),
    "CPUs twice": ("spec.rayClusterSpec.headGroupSpec.resources", {"CPU": "1"}, "head: resources in rayStartParams"),
    "a priority": (f"{WORKER}.priority", 1, "gpu: priority needs rayVersion 2.56 and autoscaler v2"),
    "an idle timeout": (f"{WORKER}.idleTimeoutSeconds", 60, "gpu: idleTimeoutSeconds without autoscaler v2"),
}


@pytest.mark.parametrize("case", RULES)
def test_the_operators_rules_notice(render: Render, case: str) -> None:
    path, value, expected = RULES[case]
    document = render(GPU)["RayJob"]
    spoil(path, value)(document)
    assert any(expected in line for line in kuberay.problems(document)), kuberay.problems(document)


def test_the_operators_rules_on_what_is_suspended_or_scales(render: Render) -> None:
    document = render(GPU, "--ttl", "0")["RayJob"]
    document["spec"] |= {"suspend": True, "shutdownAfterJobFinishes": False}
    assert kuberay.problems(document) == ["suspend needs shutdownAfterJobFinishes"]
    document = render(GPU, "--autoscale", "2")["RayJob"]
    spoil(f"{WORKER}.template.spec.restartPolicy", "Always")(document)
    assert kuberay.problems(document) == ["gpu: a pod that restarts, with autoscaler v2"]


def test_what_no_schema_says_of_pods_is_noticed(render: Render) -> None:
    template = kuberay.pods(render(GPU)["RayJob"])["gpu"]
    cases = {
        "ray-worker: no volume gone": spoil("spec.containers.0.volumeMounts", [{"name": "gone", "mountPath": "/x"}]),
        "ray-worker: requests more cpu": spoil("spec.containers.0.resources.requests", {"cpu": 43}),
        "ray-worker: nvidia.com/gpu has to be": spoil("spec.containers.0.resources.requests", {"nvidia.com/gpu": 1}),
        "label a/b/c=d": spoil("metadata.labels", {"a/b/c": "d"}),
    }
    for expected, change in cases.items():
        spoiled = copy.deepcopy(template)
        change(spoiled)
        found = kubernetes.pod_problems(spoiled)
        assert any(line.startswith(expected) for line in found), found
    root = copy.deepcopy(template)
    spoil("spec.securityContext", {"runAsUser": 0})(root)
    spoil("spec.containers.0.securityContext", {})(root)
    assert set(kubernetes.not_restricted(root)) == {
        "may run as root",
        "no seccomp profile",
        "ray-worker: keeps capabilities",
        "ray-worker: may escalate privileges",
    }


# The command line.


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code: object
    try:
        code = cli.main(["cluster", "render", str(GPU), *arguments])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "name=7b"], 'name = "7b": on Kubernetes a name begins with a letter'),
        (["--set", "cluster.nodes=2", "--autoscale", "1"], "--autoscale 1 is below cluster.nodes = 2"),
        (["--memory", "64GB"], "'64GB' is not a Kubernetes quantity of memory, such as 512Gi"),
        (["--cpus", "0"], "'0' is not a whole number above 0"),
        (["--namespace", "My_Lab"], "'My_Lab' is not a Kubernetes name"),
        (["--mount", "storage"], "'storage' is not the whole path of a folder"),
        (["--mount", "/"], "'/' is not the whole path of a folder"),
        (["--node-label", "gpu"], "'gpu' is not a label KEY=VALUE"),
        (["--rdma", "hca"], "'hca' is not a resource of a device plugin"),
        (["--env", "NCCL_DEBUG"], "'NCCL_DEBUG' is not NAME=VALUE"),
        (["--egress", "70000"], "'70000' is not a port"),
        (["--retries", "-1"], "-1"),
        (["--deadline", "0"], "'0' is not a whole number above 0"),
    ],
)
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert expected in mistake(capsys, *arguments)


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "PASSWORD"]
)
def test_a_secret_is_not_written_into_a_manifest(capsys: pytest.CaptureFixture[str], name: str) -> None:
    line = mistake(capsys, "--env", f"{name}=planted-secret")
    assert f"{name} looks like a secret" in line
    assert "--secret" in line
    assert "planted-secret" not in line


# The files in cluster/.


def rendered_files() -> list[tuple[list[str], Path]]:
    """The commands of cluster/README.md that make its files."""
    text = (CLUSTER / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"(?m)^pathor1 (cluster render .*) > (cluster/\S+)$", text.replace("\\\n", " "))
    return [(shlex.split(command), ROOT / path) for command, path in lines]


STAGES = [
    *(ROOT / "ray_jobs/recipes/stages").glob("*.toml"),
    *(ROOT / "ray_jobs/recipes/clip").glob("pathoclip_*.toml"),
]


@pytest.mark.parametrize("path", sorted(STAGES), ids=lambda path: path.stem)
def test_a_stage_is_a_job_of_its_own(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster", "render", str(path), "--set", "cluster.nodes=4"]) == 0
    documents = [one for one in yaml.safe_load_all(capsys.readouterr().out) if one["kind"] == "RayJob"]
    (spec,) = (one["spec"] for one in documents)
    job = "clip" if path.parent.name == "clip" else path.stem[-3:]
    assert spec["entrypoint"].startswith(f"python -m ray_jobs.{job} ")
    assert [group["replicas"] for group in spec["rayClusterSpec"]["workerGroupSpecs"]] == [4]


def test_the_files_are_what_their_commands_render(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    files = rendered_files()
    assert {path for _, path in files} == set(CLUSTER.glob("ray*.yaml"))
    for arguments, path in files:
        assert cli.main(arguments) == 0
        message = f"{path.name}: render it anew, by its line in cluster/README.md"
        assert path.read_text(encoding="utf-8") == capsys.readouterr().out, message


@needs_crds
@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.yaml")), ids=lambda path: path.name)
def test_the_files_are_taken_by_kubernetes(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert documents
    for document in documents:
        assert kubernetes.problems(document) == []
        if document["kind"] == "Job":
            template = {"metadata": {}, **document["spec"]["template"]}
            assert kubernetes.pod_problems(template) + kubernetes.not_restricted(template) == []


def test_the_volume_of_the_files_is_the_one_they_name() -> None:
    default = Options()
    for path in CLUSTER.glob("storage*.yaml"):
        documents = {one["kind"]: one for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))}
        claim = documents["PersistentVolumeClaim"]["metadata"]
        assert (claim["name"], claim["namespace"]) == (default.volume, default.namespace)
        labels = documents["Namespace"]["metadata"]["labels"]
        assert documents["Namespace"]["metadata"]["name"] == default.namespace
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_files_name_the_images_that_are_built() -> None:
    ours = {f"pathor1:{version('pathor1')}-{backend}" for backend in ("cpu", "gpu")}
    for path in (*CLUSTER.glob("*.yaml"), CLUSTER / "README.md", CLUSTER / "Dockerfile", ROOT / "README.md"):
        assert set(re.findall(r"pathor1:[\w.-]+", path.read_text(encoding="utf-8"))) <= ours, path.name


def test_one_version_of_ray_everywhere() -> None:
    """The image is made from the lock, so its Ray is the lock's; a head and a client of another one do not speak."""
    pins = {
        re.findall(r"(?m)^ray==(\S+)$", (ROOT / f"requirements/{name}.txt").read_text())[0] for name in ("cpu", "gpu")
    }
    manifests = set(re.findall(r"rayVersion: (\S+)", "".join(path.read_text() for path in CLUSTER.glob("*.yaml"))))
    assert manifests == pins == {version("ray")}
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert 'environment.py install "$BACKEND"' in dockerfile
    assert not re.search(r"rayproject/|ray\[|ray==", dockerfile)


# The image. Building it needs a Docker engine; what can be said without one is said here.


def test_the_dockerfile_has_no_finding_of_hadolint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [str(hadolint), "--no-color", str(CLUSTER / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_holds_what_it_is_made_from_and_runs_as_the_pods_user() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    copied = [source for line in re.findall(r"(?m)^COPY (.*)$", dockerfile) for source in line.split()[:-1]]
    assert [source for source in copied if not (ROOT / source).exists()] == []
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*", "nothing but what is named: no data, no run, no secret"
    assert {line[1:] for line in ignored if line.startswith("!")} == {source.split("/")[0] for source in copied}
    before = dockerfile.partition("environment.py install")[0]
    for package in ("pathor1", "rewards", "ray_jobs"):  # without it the editable installation leads nowhere
        assert f"COPY {package}/__init__.py {package}/" in before
    (user,) = re.findall(r"(?m)^USER (\S+)$", dockerfile)
    assert user == "1000:1000"
