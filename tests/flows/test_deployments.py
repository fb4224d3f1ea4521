"""prefect.yaml and infra/prefect: what RunConfig, Prefect's own schemas and a real server with a worker say of them."""

import asyncio
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from jsonschema import Draft202012Validator
from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.events.schemas.automations import AutomationCore
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration

import classifiers
from flows.archive import archive
from flows.config import RunConfig, load_config
from flows.train_sr import train_sr
from infra.storage import StorePaths, is_locked
from tests.flows.stores import PROJECT, Inputs, assert_same_tables, environment, part_states
from tests.infra.test_cluster_files import IMAGE

FLOWS: dict[str, Flow[..., Any]] = {"flows.archive.archive": archive, "flows.train_sr.train_sr": train_sr}
POOLS = PROJECT / "infra" / "prefect"


def deployments() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load((PROJECT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    return {deployment["name"]: deployment for deployment in found}


def schema_of(deployment: dict[str, Any]) -> dict[str, Any]:
    return parameter_schema(FLOWS[deployment["entrypoint"]]).model_dump_for_openapi()


@pytest.fixture
def _weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Official weights, which this machine may not have, and without which nothing is trained."""
    (tmp_path / "weights.pth").touch()
    monkeypatch.setattr(classifiers, "weights_file", lambda name, file: file or tmp_path / "weights.pth")


@pytest.mark.usefixtures("_weights")
@pytest.mark.parametrize("name", ["archive-nightly", "evaluate-weekly", "train", "train-sr"])
def test_each_deployment_has_parameters_that_the_flow_and_its_form_take(name: str) -> None:
    deployment = deployments()[name]
    given = json.loads(json.dumps(deployment["parameters"]))
    config = RunConfig.model_validate(given["config"])
    assert config.store.is_absolute(), "a worker's folder is another"
    schema = schema_of(deployment)
    validate(given, schema, raise_on_error=True)
    Draft202012Validator.check_schema(schema)
    flow = FLOWS[deployment["entrypoint"]]
    flow.validate_parameters(given)


def test_what_each_deployment_is_for() -> None:
    nightly, weekly, train, train_sr_ = (
        deployments()[n] for n in ("archive-nightly", "evaluate-weekly", "train", "train-sr")
    )
    assert (nightly["parameters"]["until"], weekly["parameters"]["until"]) == ("predict", "report")
    assert train["parameters"]["until"] == "train"
    config = nightly["parameters"]["config"]
    assert config == weekly["parameters"]["config"]
    assert config["models_from"] == train["parameters"]["config"]["store"] != config["store"]
    assert config["archive"]["subset"] == "present"
    assert nightly["schedules"]
    assert weekly["schedules"]
    assert not train.get("schedules")
    assert not train_sr_.get("schedules")
    assert nightly["work_pool"]["work_queue_name"] == weekly["work_pool"]["work_queue_name"], "they write to one store"


def test_the_form_tells_of_every_setting() -> None:
    schema = schema_of(deployments()["train"])
    sections = {"RunConfig", *(name for name in schema["definitions"] if name.endswith("Config"))}
    assert len(sections) == 9
    for name in sections:
        section = schema["definitions"][name]
        assert section["additionalProperties"] is False
        for setting, told in section["properties"].items():
            assert told.get("description") or "$ref" in told, f"{name}.{setting}"
    config = schema["definitions"]["RunConfig"]["properties"]
    assert config["bands"]["enum"] == ["rgb", "10m", "s2", "s1s2"]
    assert set(config) == set(RunConfig.model_fields)
    references = re.findall(r'"\$ref": "#/definitions/(\w+)"', json.dumps(schema))
    assert set(references) <= set(schema["definitions"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": "infrared"}, "infrared"),
        ({"shard_sise": 4}, "shard_sise"),
        ({"train": {"epochs": 0}}, "0"),
        ({"archive": {"root": "/data"}}, "layout"),
    ],
)
def test_the_form_refuses_what_cannot_be(change: dict[str, Any], message: str) -> None:
    deployment = deployments()["archive-nightly"]
    given = {**deployment["parameters"], "config": {**deployment["parameters"]["config"], **change}}
    with pytest.raises(ValidationError, match=message):
        validate(given, schema_of(deployment), raise_on_error=True)


CONFIGS: list[dict[str, Any]] = [
    {"archive": {"layout": "bigearthnet-v2", "root": "/data/ben"}, "store": "/data/store"},
    {"archive": {"layout": "image-table"}, "store": "s3://bucket/prefix", "sr": ["none", "bicubic"]},
    {"archive": {"layout": "image-folder", "image_size": 64}, "store": "file:///data/a b", "sr_input_max_dn": None},
    {"archive": {"layout": "bigearthnet-v2"}, "store": "gs://bucket/a", "models_from": "s3://other/b"},
    {"archive": {"layout": "bigearthnet-v1"}, "store": "x", "explain": {"methods": [], "labels": True}},
    {
        "archive": {"layout": "scene"},
        "store": "x",
        "variants": {"sgd": {"network": "resnet18", "train": {"optimizer": "sgd"}}},
        "classifiers": ["sgd"],
        "train_sr": {"sources": [{"images": "."}, {"scene": ".", "bands": ["B08", "B08", "B08"]}]},
    },
]


@pytest.mark.usefixtures("_weights")
@pytest.mark.parametrize("given", CONFIGS)
def test_parameters_of_the_server_make_the_same_run_as_run_yaml(given: dict[str, Any], tmp_path: Path) -> None:
    """YAML; JSON as it was given; JSON as the flow's client sends it; and a form that has filled in every default."""
    path = tmp_path / "RUN.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    config = load_config(path)
    assert RunConfig.model_validate(json.loads(json.dumps(given))) == config
    assert RunConfig.model_validate(json.loads(config.model_dump_json())) == config
    schema = schema_of(deployments()["train"])
    filled = _with_defaults(given, schema["definitions"]["RunConfig"], schema["definitions"])
    validate({"config": filled}, schema, raise_on_error=True)
    assert RunConfig.model_validate(filled) == config


def _with_defaults(given: dict[str, Any], section: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return what a form sends that shows each setting's default until a person writes something else."""
    filled: dict[str, Any] = {}
    for name, told in section["properties"].items():
        reference = told.get("$ref", "").removeprefix("#/definitions/")
        if reference:
            filled[name] = _with_defaults(given.get(name, {}), definitions[reference], definitions)
        elif name == "sources" and name in given:
            filled[name] = [_with_defaults(item, definitions["SrSourceConfig"], definitions) for item in given[name]]
        elif name in given:
            filled[name] = given[name]
        elif "default" in told:
            filled[name] = told["default"]
    if section["title"] == "ExplainConfig" and filled["labels"] is True:
        filled["labels"] = "true"  # the form knows the words alone
    return filled


class KubernetesJob(BaseJobConfiguration):
    """The part of the Kubernetes worker's configuration that this project's template fills."""

    namespace: str
    image: str | None = None
    job_manifest: dict[str, Any]
    stream_output: bool
    job_watch_timeout_seconds: int | None = None
    pod_watch_timeout_seconds: int


def job_of[T: BaseJobConfiguration](kind: type[T], pool: str, values: dict[str, Any]) -> T:
    template = json.loads((POOLS / f"{pool}.json").read_text(encoding="utf-8"))
    assert set(template["job_configuration"]) <= set(kind.model_fields)
    names = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert names == set(template["variables"]["properties"]), "a variable that nothing uses, or one that is not there"
    Draft202012Validator.check_schema(template["variables"])

    async def resolve() -> T:  # no server is asked: the template names no blocks
        return await kind.from_template_and_values(template, values, client=PrefectClient("http://127.0.0.1:9/api"))

    return asyncio.run(resolve())


def test_the_process_pool_starts_a_run_in_the_worker_s_python() -> None:
    job = job_of(ProcessJobConfiguration, "process", {})
    assert job.command is None, "the worker's own"
    assert job.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert job.env["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_the_kubernetes_pool_joins_the_ray_cluster_and_holds_no_actor() -> None:
    job = job_of(KubernetesJob, "kubernetes", {"memory": "32Gi"})
    head = yaml.safe_load((PROJECT / "infra" / "k8s" / "raycluster.yaml").read_text(encoding="utf-8"))
    assert job.env["RAY_ADDRESS"] == f"{head['metadata']['name']}-head-svc:6379"  # KubeRay's name for the service
    spec = job.job_manifest["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["image"] == IMAGE
    assert container["resources"] == {"requests": {"cpu": "4", "memory": "32Gi"}, "limits": {"memory": "32Gi"}}
    words = shlex.split(str(job.command))
    assert words[:2] == ["bash", "-c"]
    assert '--address="$RAY_ADDRESS" --num-cpus=0 --num-gpus=0' in words[2]
    assert words[2].endswith("&& exec prefect flow-run execute"), "which takes the signals"
    (ray_head,) = head["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert ray_head["volumeMounts"] == [mount for mount in container["volumeMounts"] if mount["name"] == "data"]
    assert spec["volumes"][0] == head["spec"]["headGroupSpec"]["template"]["spec"]["volumes"][0]


def test_the_ray_cluster_that_stays_is_that_of_the_job() -> None:
    folder = PROJECT / "infra" / "k8s"
    stays = yaml.safe_load((folder / "raycluster.yaml").read_text(encoding="utf-8"))
    _, job = yaml.safe_load_all((folder / "rayjob.yaml").read_text(encoding="utf-8"))
    of_the_job = job["spec"]["rayClusterSpec"]
    head = of_the_job["headGroupSpec"]["template"]["spec"]
    del head["containers"][0]["env"]
    for part in (head["containers"][0]["volumeMounts"], head["volumes"]):
        part[:] = [item for item in part if item["name"] != "run"]
    assert stays["spec"] == of_the_job


def test_the_worker_on_kubernetes_takes_runs_of_this_pool() -> None:
    import prefect

    found = list(yaml.safe_load_all((POOLS / "kubernetes-worker.yaml").read_text(encoding="utf-8")))
    by_kind = {item["kind"]: item for item in found}
    template = json.loads((POOLS / "kubernetes.json").read_text(encoding="utf-8"))
    accounts = {item["metadata"]["name"] for item in found if item["kind"] == "ServiceAccount"}
    assert template["variables"]["properties"]["service_account_name"]["default"] in accounts
    spec = by_kind["Deployment"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] in accounts
    (container,) = spec["containers"]
    assert f":{prefect.__version__}-" in container["image"]
    assert container["args"][4] == deployments()["archive-nightly"]["work_pool"]["name"]
    assert not [entry for entry in container["env"] if "AUTH" in entry["name"] and "value" in entry]


def test_automations_are_prefect_s_and_for_runs_of_these_deployments() -> None:
    found = yaml.safe_load((POOLS / "automations.yaml").read_text(encoding="utf-8"))["automations"]
    assert len([AutomationCore.model_validate(item) for item in found]) == 3
    tags = {tag for deployment in deployments().values() for tag in deployment["tags"]}
    for item in found:
        assert item["trigger"]["match_related"]["prefect.resource.id"].removeprefix("prefect.tag.") in tags


@dataclass(frozen=True)
class Server:
    """A Prefect server with a process worker, and what they are told."""

    api: httpx.Client
    folder: Path
    environment: dict[str, str]
    worker: int
    """Process id."""

    def prefect(self, *arguments: str | Path) -> str:
        command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt", *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment, cwd=PROJECT, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path: str) -> Any:
        return self.api.get(path).raise_for_status().json()

    def post(self, path: str, **body: Any) -> Any:
        return self.api.post(path, json=body).raise_for_status().json()

    def start(self, deployment: str, **parameters: Any) -> str:
        its_id = self.get(f"/deployments/name/{deployment}")["id"]
        return str(self.post(f"/deployments/{its_id}/create_flow_run", parameters=parameters)["id"])

    def state(self, run: str) -> str:
        return str(self.get(f"/flow_runs/{run}")["state_name"])

    def wait(self, run: str, *states: str, seconds: float = 240) -> str:
        wait_until(lambda: self.state(run) in states, f"{run} is {states}", self.worker_log, seconds)
        return self.state(run)

    def artifacts(self, run: str) -> list[dict[str, Any]]:
        found = self.post("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}}, limit=200)
        assert isinstance(found, list)
        return found

    def driver(self) -> psutil.Process | None:
        """The process of the run that is at work; None where there is none."""
        for process in psutil.Process(self.worker).children(recursive=True):
            try:
                if "prefect.engine" in process.cmdline():
                    return process
            except psutil.NoSuchProcess:
                continue
        return None

    def worker_log(self) -> str:
        return (self.folder / "worker.log").read_text(errors="replace")[-5000:]


def wait_until(condition: Callable[[], bool], what: str, log: Callable[[], str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s not yet: {what}\n{log()}"
        time.sleep(0.1)


@contextmanager
def process(command: list[str], log: Path, env: dict[str, str]) -> Iterator[int]:
    with log.open("ab") as output, subprocess.Popen(command, stdout=output, stderr=output, env=env, cwd="/") as started:
        try:
            yield started.pid
        finally:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(timeout=15)  # a worker looks at its runs before it ends, which are over here
            except subprocess.TimeoutExpired:
                started.kill()


@pytest.fixture(scope="module")
def server(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own, deployed to from prefect.yaml with other paths and another network."""
    folder = tmp_path_factory.mktemp("deployments")
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    env = {**environment(), "PREFECT_HOME": str(folder / "home"), "PREFECT_API_URL": url, "OMP_NUM_THREADS": "1"}
    env |= {"PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_WORKER_QUERY_SECONDS": "1"}
    prefect = str(Path(sys.executable).with_name("prefect"))
    serve = [prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    work = [prefect, "worker", "start", "--pool", "superscene", "--name", "test"]
    log = folder / "server.log"
    with process(serve, log, env), httpx.Client(base_url=url, timeout=30) as api:
        wait_until(lambda: _answers(api), "the server answers", log.read_text)
        blank = Server(api, folder, env, 0)
        blank.prefect(
            "work-pool", "create", "superscene", "--type", "process", "--base-job-template", POOLS / "process.json"
        )
        blank.prefect("work-queue", "create", "archive", "--pool", "superscene", "--limit", "1")
        blank.prefect("deploy", "--prefect-file", _with_paths(folder, inputs), "--all")
        blank.prefect("automation", "create", "--from-file", POOLS / "automations.yaml")
        with process(work, folder / "worker.log", env) as worker:
            yield Server(api, folder, env, worker)


def _answers(api: httpx.Client) -> bool:
    try:
        return api.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def _with_paths(folder: Path, inputs: Inputs) -> Path:
    """Write prefect.yaml with the paths and the network of the tests' archive."""
    settings = json.loads(json.dumps({"name": "superscene", "pull": [], "deployments": [*deployments().values()]}))
    for deployment in settings["deployments"]:  # none of which shares a part with another, as YAML's anchors do
        config = deployment["parameters"]["config"]
        places = {"/data/superscene": folder / "store", "/data/trained": inputs.reference}
        for name in ("store", "models_from"):
            if name in config:
                config[name] = str(places[config[name]])
        config["archive"]["root"] = str(inputs.archive)
        config |= {"classifiers": ["resnet18"], "shard_size": 4}
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@pytest.mark.timeout(600)
def test_a_run_of_a_deployment_can_be_followed(server: Server, inputs: Inputs) -> None:
    """With the deployment's own parameters, but for where it ends; and what cannot be is refused before it starts."""
    assert {item["name"] for item in server.post("/deployments/filter")} == set(deployments())
    assert len(server.post("/automations/filter")) == 3
    with pytest.raises(httpx.HTTPStatusError, match=r"409|422"):
        server.start("archive/archive-nightly", config={"store": "/somewhere"})
    run = server.start("archive/archive-nightly", until="ingest")
    assert server.wait(run, "Completed", "Failed", "Crashed") == "Completed", server.worker_log()
    tasks = server.post("/task_runs/filter", flow_runs={"id": {"any_": [run]}})
    assert {(task["name"].split("-")[0], task["state_name"]) for task in tasks} == {
        ("ingest", "Completed"),
        ("finish", "Completed"),
    }
    found = {item["key"] or item["type"]: item for item in server.artifacts(run)}
    assert set(found) == {"progress", "shards-ingest", "archive-summary", "archive-store"}
    assert found["progress"]["data"] == 100.0
    rows = json.loads(found["shards-ingest"]["data"])
    store = server.folder / "store"
    assert {row["shard"] for row in rows} == {int(p.stem[5:]) for p in store.glob("work/ingest/*/part-*.parquet")}
    assert {(row["outcome"], row["attempts"], row["error"]) for row in rows} == {("done", 1, "")}
    assert sum(row["patches"] for row in rows) == 23  # of 24, one is flagged
    assert re.fullmatch(
        r"ingest: 7 done, 0 done before, 0 failed; 23 patches in .+ s", found["shards-ingest"]["description"]
    )
    assert found["archive-store"]["data"] == f"[{store}]({store.as_uri()})"
    assert "**23 inputs**" in found["archive-summary"]["data"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_is_cancelled_and_one_that_is_killed_go_on(server: Server, inputs: Inputs, tmp_path: Path) -> None:
    store = tmp_path / "store"
    config = yaml.safe_load(inputs.config(store).read_text(encoding="utf-8"))

    def predicted() -> int:
        return len(list(store.glob("work/predictions/*/part-*.parquet")))

    def at_work(more_than: int) -> psutil.Process:
        wait_until(
            lambda: predicted() > more_than, f"more than {more_than} shards are predicted", server.worker_log, 240
        )
        driver = server.driver()
        assert driver is not None, server.worker_log()
        return driver

    first = server.start("archive/evaluate-weekly", config=config, until="report")
    driver = at_work(1)
    family = [driver, *driver.children(recursive=True)]
    server.post(f"/flow_runs/{first}/set_state", state={"type": "CANCELLING"})
    assert server.wait(first, "Cancelled", "Completed", "Failed", "Crashed") == "Cancelled"
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "processes of Ray are left"
    assert not is_locked(StorePaths(store))
    assert json.loads((store / "work" / "run.json").read_text())["status"] == "stopped"
    kept = part_states(store)
    assert kept

    second = server.start("archive/evaluate-weekly", config=config, until="report")
    driver = at_work(predicted())
    assert kept.items() <= part_states(store).items(), "a finished part was touched"
    driver.send_signal(signal.SIGKILL)
    wait_until(lambda: server.get(f"/flow_runs/{second}")["run_count"] > 1, "it is begun again", server.worker_log, 400)
    assert server.wait(second, "Completed", "Failed") == "Completed", server.worker_log()
    assert kept.items() <= part_states(store).items(), "a finished part was touched"
    assert_same_tables(store, inputs.reference)
    found = {item["key"]: item for item in server.artifacts(second) if item["key"]}
    assert found["archive-report"]["data"] == f"[{store}/report/index.html]({(store / 'report/index.html').as_uri()})"
    progress = [item["data"] for item in server.artifacts(second) if item["type"] == "progress"]
    assert progress.count(100.0) >= 8, "of the attempt that came to its end"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_run_on_a_store_stops_with_a_message(server: Server, inputs: Inputs, tmp_path: Path) -> None:
    """Of another queue, which the first one does not hold."""
    store = tmp_path / "store"
    config = yaml.safe_load(inputs.config(store).read_text(encoding="utf-8"))
    first = server.start("archive/evaluate-weekly", config=config, until="train")
    wait_until(lambda: (store / "work").exists() and is_locked(StorePaths(store)), "the first run", server.worker_log)
    second = server.start("archive/train", config=config, until="ingest")
    assert server.wait(second, "Completed", "Failed", "Crashed") == "Failed"
    message = server.get(f"/flow_runs/{second}")["state"]["message"]
    assert f"another run is writing to {store}; wait for it, or choose another store" in message
    assert server.wait(first, "Completed", "Failed", "Crashed") == "Completed"
