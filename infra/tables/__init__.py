"""The tables that analysts read: their columns, how they are written, and how they are read."""

from infra.tables.archive import CLASSES, CONFIGS, PATCHES, QUARANTINE, RUNS
from infra.tables.columns import MEANING, SOURCE, UNIT, UNITS, optional, required, said
from infra.tables.explanations import EXPLANATION_METRICS, EXPLANATIONS, QUARANTINED_MAPS
from infra.tables.pixels import SR_QUALITY
from infra.tables.predictions import (
    CALIBRATION,
    COMPARISONS,
    METRICS,
    PAPER_METRICS,
    PAPER_TABLE_1,
    PAPER_TABLE_2,
    TRAINING,
    predictions_schema,
)
from infra.tables.publishing import ROWS_PER_FILE, publish, publish_parts
from infra.tables.reading import check_store, hive_folder, open_table, read_file, read_table
from infra.tables.reliability import RELIABILITY, RELIABILITY_CLUSTERS, RELIABILITY_METRICS, RISK_COVERAGE
from infra.tables.schemas import HIVE_COLUMNS, SCHEMAS
from infra.tables.versions import CHANGES, SCHEMA_VERSION, VERSION_KEY, check_versions, file_version

__all__ = [
    "CALIBRATION",
    "CHANGES",
    "CLASSES",
    "COMPARISONS",
    "CONFIGS",
    "EXPLANATIONS",
    "EXPLANATION_METRICS",
    "HIVE_COLUMNS",
    "MEANING",
    "METRICS",
    "PAPER_METRICS",
    "PAPER_TABLE_1",
    "PAPER_TABLE_2",
    "PATCHES",
    "QUARANTINE",
    "QUARANTINED_MAPS",
    "RELIABILITY",
    "RELIABILITY_CLUSTERS",
    "RELIABILITY_METRICS",
    "RISK_COVERAGE",
    "ROWS_PER_FILE",
    "RUNS",
    "SCHEMAS",
    "SCHEMA_VERSION",
    "SOURCE",
    "SR_QUALITY",
    "TRAINING",
    "UNIT",
    "UNITS",
    "VERSION_KEY",
    "check_store",
    "check_versions",
    "file_version",
    "hive_folder",
    "open_table",
    "optional",
    "predictions_schema",
    "publish",
    "publish_parts",
    "read_file",
    "read_table",
    "required",
    "said",
]
