"""The files that describe clusters: what Ray's own schema and our own RUN.yaml say of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import fillout_defaults, validate_config

from flows.config import RunConfig

PROJECT = Path(__file__).parents[2]
IMAGE = "REGISTRY/superscene:0.1.0"


@pytest.fixture
def launcher() -> dict[str, Any]:
    text = (PROJECT / "infra" / "ray" / "cluster.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@pytest.fixture
def rayjob() -> tuple[dict[str, Any], dict[str, Any]]:
    text = (PROJECT / "infra" / "k8s" / "rayjob.yaml").read_text(encoding="utf-8")
    run, job = yaml.safe_load_all(text)
    return run, job


def test_ray_accepts_the_launcher_s_file(launcher: dict[str, Any]) -> None:
    whole = fillout_defaults(launcher)
    validate_config(whole)
    assert whole["available_node_types"]["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config({**whole, "idle_timeout": 5})


def test_the_head_holds_no_actor_and_its_dashboard_listens_on_loopback(launcher: dict[str, Any]) -> None:
    start = launcher["head_start_ray_commands"][1]
    assert "--num-cpus=0" in start
    assert "--dashboard-host=127.0.0.1" in start


def test_the_job_runs_a_run_that_can_be(rayjob: tuple[dict[str, Any], dict[str, Any]]) -> None:
    run, job = rayjob
    (name,) = run["data"]
    assert job["spec"]["entrypoint"].endswith(f"/{name}")
    config = RunConfig.model_validate(yaml.safe_load(run["data"][name]))
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert config.resources.actors == workers["maxReplicas"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(config.resources.gpus_per_actor).removesuffix(".0")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__


def test_every_node_exports_its_metrics_where_prometheus_looks(
    launcher: dict[str, Any], rayjob: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    nodes = rayjob[1]["spec"]["rayClusterSpec"]
    for group in (nodes["headGroupSpec"], *nodes["workerGroupSpecs"]):
        annotations = group["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/scrape"] == "true"
        assert annotations["prometheus.io/port"] == group["rayStartParams"]["metrics-export-port"] == "8080"
    for commands in (launcher["head_start_ray_commands"], launcher["worker_start_ray_commands"]):
        assert "--metrics-export-port=8080" in commands[1]


def test_all_name_one_image_of_this_version(
    launcher: dict[str, Any], rayjob: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    version = re.search(r'^version = "(.+)"$', (PROJECT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert IMAGE.endswith(version[1])
    nodes = rayjob[1]["spec"]["rayClusterSpec"]
    groups = [nodes["headGroupSpec"], *nodes["workerGroupSpecs"]]
    named = [container["image"] for group in groups for container in group["template"]["spec"]["containers"]]
    assert {*named, launcher["docker"]["image"]} == {IMAGE}
    assert IMAGE in (PROJECT / "infra" / "docker" / "Dockerfile").read_text(encoding="utf-8")


def test_the_image_has_every_package() -> None:
    dockerfile = (PROJECT / "infra" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    ignored = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    pyproject = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.search(r"^packages = \[(.+)\]$", pyproject, re.MULTILINE)
    assert packages is not None
    for name in re.findall(r'"(\w+)"', packages[1]):
        assert f"COPY {name} {name}\n" in dockerfile
        assert f"!{name}" in ignored


def test_no_container_runs_as_root_or_gains_rights(
    launcher: dict[str, Any], rayjob: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    _, job = rayjob
    spec = job["spec"]["rayClusterSpec"]
    pools = PROJECT / "infra" / "prefect"
    run = json.loads((pools / "kubernetes.json").read_text(encoding="utf-8"))["job_configuration"]["job_manifest"]
    worker = list(yaml.safe_load_all((pools / "kubernetes-worker.yaml").read_text(encoding="utf-8")))[-1]
    groups = (spec["headGroupSpec"], *spec["workerGroupSpecs"], run["spec"], worker["spec"])
    for pod in (group["template"]["spec"] for group in groups):
        assert pod["securityContext"]["runAsUser"] >= 1000
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
        assert all(not volume.keys() & {"hostPath"} for volume in pod["volumes"])
    assert spec["workerGroupSpecs"][0]["template"]["spec"]["automountServiceAccountToken"] is False
    assert not any(word in " ".join(launcher["docker"]["run_options"]) for word in ("privileged", "cap-add", "root"))
    dockerfile = (PROJECT / "infra" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (\w+)$", dockerfile, re.MULTILINE)[-1:] == ["superscene"]
