"""Every table of a store, by its name."""

from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa

from infra.tables.archive import CLASSES, CONFIGS, PATCHES, QUARANTINE, RUNS
from infra.tables.explanations import EXPLANATION_METRICS, EXPLANATIONS, QUARANTINED_MAPS
from infra.tables.pixels import SR_QUALITY
from infra.tables.predictions import (
    CALIBRATION,
    COMPARISONS,
    METRICS,
    PAPER_TABLE_1,
    PAPER_TABLE_2,
    TRAINING,
    predictions_schema,
)
from infra.tables.reliability import RELIABILITY, RELIABILITY_CLUSTERS, RELIABILITY_METRICS, RISK_COVERAGE

SCHEMAS: Mapping[str, pa.Schema] = {
    "patches": PATCHES,
    "quarantine": QUARANTINE,
    "classes": CLASSES,
    "configs": CONFIGS,
    "predictions": predictions_schema(19),
    "explanations": EXPLANATIONS,
    "explanation_metrics": EXPLANATION_METRICS,
    "quarantined_maps": QUARANTINED_MAPS,
    "reliability": RELIABILITY,
    "reliability_clusters": RELIABILITY_CLUSTERS,
    "reliability_metrics": RELIABILITY_METRICS,
    "risk_coverage": RISK_COVERAGE,
    "metrics": METRICS,
    "comparisons": COMPARISONS,
    "calibration": CALIBRATION,
    "sr_quality": SR_QUALITY,
    "training": TRAINING,
    "paper_table_1": PAPER_TABLE_1,
    "paper_table_2": PAPER_TABLE_2,
    "runs": RUNS,
}
"""Every table of the store; predictions as BigEarthNet has it."""

_BRANCH = ("sr", "classifier", "config")
_METHOD = ("sr", "classifier", "method", "config")

HIVE_COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"predictions": _BRANCH, "reliability": _BRANCH, "explanations": _METHOD, "quarantined_maps": _METHOD}
)
"""Columns that are in the names of a table's folders, outermost first."""
