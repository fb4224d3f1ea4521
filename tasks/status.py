"""Status: what a store holds, read from its parts and the run's record; writes nothing, and a run may be at work."""

from collections.abc import Mapping
from dataclasses import dataclass

from infra.errors import StoreError
from infra.parts import StageParts
from infra.storage import StorePaths, is_locked
from tasks.live_run import LiveStage, live_record, live_stage


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage of the last run, under one config."""

    title: str
    config: str
    done: int
    missing: int
    """Shards that the run wants and no part exists of; failed ones among them."""
    failures: Mapping[int, str]
    """Failed shards and their errors."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """The last run of a store."""

    run_id: str
    state: str
    patches: int
    quarantined: int
    stages: tuple[StageStatus, ...]
    live: LiveStage | None = None
    """The stage that the run is at; None where none is running."""


def store_status(paths: StorePaths) -> StoreStatus:
    """Return the state of a store.

    Raises:
        StoreError: No run has been started there.
    """
    record = live_record(paths)
    if record is None:
        raise StoreError(f"{paths.root} holds no run: `superscene run RUN.yaml` starts one")
    live = live_stage(paths, record["run_id"])  # before the parts, which there are more of then, never fewer
    stages = []
    for output in record["outputs"]:
        parts = StageParts(paths, output["stage"], output["config"])
        done = parts.done() & set(output["shards"])
        title = output["title"] if output["stage"] in output["title"] else f"{output['title']} ({output['stage']})"
        failures = {shard: error for shard, error in parts.failures().items() if shard not in done}
        stages.append(StageStatus(title, output["config"], len(done), len(output["shards"]) - len(done), failures))
    state = "stopped" if record["status"] == "running" and not is_locked(paths) else record["status"]
    if live is not None and (state != "running" or live.done == live.total):  # between two stages tables are published
        live = None
    return StoreStatus(record["run_id"], state, record["patches"], record["quarantined"], tuple(stages), live)
