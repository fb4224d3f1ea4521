"""Maps and land cover that a test can foresee, put into a store of numbers."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.bigearthnet.classes import NAMES
from infra.parts import stage_parts
from infra.storage import StorePaths
from infra.tables import EXPLANATIONS, PATCHES, RUNS, hive_folder, publish, read_table
from infra.zarr_store import ShardedStore
from tasks.explain import WHOLE_PATCH
from tasks.map_store import MapWriter, create_map_store
from tests.tasks.report.report_store import CLASSIFIERS, PATCH_IDS

type Change = Callable[[dict[str, Any]], dict[str, Any]]
"""From a row to a row."""

QUADRANTS: Mapping[str, tuple[int, int]] = {"upper left": (0, 0), "upper right": (0, 1), "lower left": (1, 0)}
"""Row and column of a quarter of the patch."""


def bright(quadrant: str, edge: int = 4) -> NDArray[np.float32]:
    """A map (edge, edge) that is 0 but in one quarter of the patch."""
    row, col = QUADRANTS[quadrant]
    cam = np.zeros((2, 2, edge // 2, edge // 2), np.float32)
    cam[row, col] = 3.0
    return cam.transpose(0, 2, 1, 3).reshape(edge, edge)


def add_maps(
    paths: StorePaths,
    sr: str,
    method: str,
    maps: NDArray[np.float32],
    rows: Sequence[int] = (0, 1, 2, 3),
    *,
    names: Sequence[str] = NAMES,
    sampled: Sequence[int] = (),
) -> None:
    """Store maps of the first classifier on a branch, as a run does, with rows of each patch's first label.

    Args:
        paths: A store of numbers.
        sr: The branch.
        method: The method.
        maps: (M, L, h, w), in the order of rows; (L, h, w): the same of every patch; L is 1: one map for a patch.
        rows: Patches that have maps.
        names: Labels that the classifier knows.
        sampled: Patches in the sample.
    """
    if maps.ndim == 3:
        maps = np.broadcast_to(maps, (len(rows), *maps.shape)).copy()
    config = stage_parts(paths, "explanations", {"sr": sr, "method": method, "planted": True}).config
    store = paths.maps(method, config)
    create_map_store(store, names if maps.shape[1] > 1 else (WHOLE_PATCH,), maps.shape[2:], len(PATCH_IDS), 1, {})
    writer = MapWriter(store, 0)
    writer.add(np.array(rows), maps)
    writer.close()
    table = [
        {
            "patch_id": PATCH_IDS[row],
            "split": "test",
            "sampled": row in sampled,
            "label": names[0],
            "seed": 7,
            "prob": 0.5,
            "map_store": str(store.relative_to(paths.root)),
            "map_index": row,
            "map_label": 0,
        }
        for row in rows
    ]
    keys = {"sr": sr, "classifier": CLASSIFIERS[0], "method": method, "config": config}
    folder = hive_folder(paths.table("explanations"), **keys)
    publish(folder, pa.Table.from_pylist(table, EXPLANATIONS), EXPLANATIONS, ["patch_id", "label"])
    _change(paths, "runs", RUNS, lambda row: {**row, "configs": [*row["configs"], config]})


def add_reference_maps(paths: StorePaths, codes: NDArray[np.uint16]) -> None:
    """Give every patch of the store the same reference map, (120, 120), CORINE codes."""
    store = ShardedStore(paths.archive, writable=True)
    store.write(0, "reference_map", np.broadcast_to(codes, (len(PATCH_IDS), 120, 120)).copy())
    _change(paths, "patches", PATCHES, lambda row: {**row, "has_map": True})


def change_settings(paths: StorePaths, **explain: Any) -> None:
    """Let the store's run have had other settings of `explain`."""

    def changed(row: dict[str, Any]) -> dict[str, Any]:
        settings = json.loads(row["run_yaml"])
        return {**row, "run_yaml": json.dumps({**settings, "explain": {**settings["explain"], **explain}})}

    _change(paths, "runs", RUNS, changed)


def _change(
    paths: StorePaths, name: str, schema: pa.Schema, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    (file,) = paths.table(name).glob("*.parquet")
    rows = [change(row) for row in read_table(paths.table(name)).to_pylist()]
    stem = file.stem.rpartition("-")[0]
    publish(paths.table(name), pa.Table.from_pylist(rows, schema), schema, [], file_stem=stem)
