"""The dashboard and where Prometheus looks: every metric of ours is shown, and none that is not there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from infra.metrics import METRICS

FOLDER = Path(__file__).parents[2] / "infra" / "grafana"
FUNCTIONS = {"sum", "max", "by", "rate", "histogram_quantile"}
OF_RAY = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"}


@pytest.fixture
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "superscene.json").read_text(encoding="utf-8"))
    return found


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def names_in(expression: str) -> set[str]:
    """The metrics that an expression of PromQL names."""
    bare = re.sub(r"\b(by) \([^)]*\)", "", expression)  # labels to keep
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", bare)
    return set(re.findall(r"[a-zA-Z_:][\w:]*", bare)) - FUNCTIONS


def test_every_metric_is_shown_and_every_one_shown_exists(dashboard: dict[str, Any]) -> None:
    exist = set()
    for metric in METRICS:
        exist.add(f"{metric.exported}_bucket" if metric.kind == "histogram" else metric.exported)
    shown = set().union(*(names_in(expression) for expression in expressions(dashboard)))
    assert shown == exist | OF_RAY


def test_expressions_use_labels_that_the_metrics_have(dashboard: dict[str, Any]) -> None:
    labels = {metric.exported: {"run", "stage", *metric.labels} for metric in METRICS}
    checked = 0
    for expression in expressions(dashboard):
        assert expression.count("(") == expression.count(")")
        assert expression.count("{") == expression.count("}")
        for name, selectors in re.findall(r"(ray_superscene_\w+)\{([^}]*)\}", expression):
            base = name.removesuffix("_bucket")
            used = set(re.findall(r"(\w+)=", selectors))
            used |= {label for keys in re.findall(r"by \(([^)]*)\)", expression) for label in keys.split(", ")} - {"le"}
            assert used <= labels[base], expression
            assert 'run=~"$run"' in selectors
            counter = base.endswith("_total")
            assert ("rate(" in expression) <= (counter or name.endswith("_bucket")), expression
            checked += 1
    assert checked >= len(METRICS)


def test_the_dashboard_can_be_imported(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["uid"] == "superscene"
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    sources = [owner["datasource"] for panel in panels for owner in (panel, *panel["targets"])]
    sources.append(variables["run"]["datasource"])
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    used = set(re.findall(r"\$\{?(\w+)", " ".join(expressions(dashboard)) + "${datasource}"))
    assert used == variables.keys()
    (asked,) = re.findall(r"label_values\((\w+), run\)", variables["run"]["query"]["query"])
    assert asked in {metric.exported for metric in METRICS}


def test_no_two_panels_lie_upon_each_other(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_prometheus_looks_where_ray_writes_and_on_loopback() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (found,) = jobs["ray"]["file_sd_configs"]
    assert found["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
    (local,) = jobs["superscene-local"]["static_configs"]
    assert local["targets"] == ["127.0.0.1:8080"]
