"""What commands print where `--json` asks for it; docs/json.md describes every key, which stay as they are."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a command that prints one of them needs none of the others
    from duckdb import DuckDBPyRelation

    from flows.config import RunConfig
    from flows.plan_rows import PlanRow
    from tasks.evaluate_where import Selection
    from tasks.status import StoreStatus

_OF_A_RUN = (
    "run_id",
    "status",
    "started",
    "startup_seconds",
    "git_commit",
    "inputs",
    "patches",
    "quarantined",
    "absent",
    "configs",
    "stages",
)
"""Keys of a run's record, which tables/runs describes."""


def run_document(store: Path) -> dict[str, object]:
    """Return how the last run of a store went."""
    from infra.storage import StorePaths
    from tasks.live_run import live_record
    from tasks.status import store_status

    paths = StorePaths(store.resolve())
    record = live_record(paths) or {}
    failures = [
        {"stage": stage.title, "shard": shard, "error": error}
        for stage in store_status(paths).stages
        for shard, error in stage.failures.items()
    ]
    return {
        **{key: record[key] for key in _OF_A_RUN},
        "started": datetime.fromisoformat(record["started"]),
        "versions": json.loads(record["versions"]),
        "failures": failures,
        "store": paths.root,
        "report": paths.report if paths.report.exists() else None,
    }


def status_document(found: "StoreStatus") -> dict[str, object]:
    """Return a store's state."""
    live: dict[str, object] | None = None
    if found.live is not None:
        live = {
            "stage": found.live.stage,
            "done": found.live.done,
            "total": found.live.total,
            "patches": found.live.patches,
            "seconds": found.live.seconds,
            "patches_per_second": found.live.patches_per_second,
            "seconds_left": found.live.seconds_left,
        }
    stages = [
        {
            "stage": stage.title,
            "config": stage.config,
            "done": stage.done,
            "missing": stage.missing,
            "failed": len(stage.failures),
            "failures": [{"shard": shard, "error": error} for shard, error in stage.failures.items()],
        }
        for stage in found.stages
    ]
    return {
        "run_id": found.run_id,
        "state": found.state,
        "patches": found.patches,
        "quarantined": found.quarantined,
        "live": live,
        "stages": stages,
    }


def sql_document(relation: "DuckDBPyRelation") -> dict[str, object]:
    """Return the rows of an answer, in the order of the columns."""
    columns = [{"name": n, "type": str(t)} for n, t in zip(relation.columns, relation.types, strict=True)]
    return {"columns": columns, "rows": relation.fetchall()}


def scores_document(found: "Selection") -> dict[str, object]:
    """Return the scores of some patches."""
    return {"patches": found.n, "metrics": found.metrics.to_pylist(), "comparisons": found.comparisons.to_pylist()}


def plan_document(config: "RunConfig", rows: Sequence["PlanRow"]) -> dict[str, object]:
    """Return what a run would do."""
    numbers: dict[tuple[str, ...], float | None] = {}
    for row in rows:
        numbers.update(row.numbers)
    return {"shard_size": config.shard_size, **_nested(numbers)}


def _nested(numbers: Mapping[tuple[str, ...], float | None]) -> dict[str, object]:
    """Return numbers by their path of keys as objects in objects."""
    found: dict[str, object] = {}
    for path, number in numbers.items():
        inner: dict[str, object] = found
        for key in path[:-1]:
            inner = inner.setdefault(key, {})  # type: ignore[assignment]  # no path is the beginning of another
        inner[path[-1]] = number
    return found
