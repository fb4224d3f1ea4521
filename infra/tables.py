"""The tables analysts read: their schemas, and how parts become finished files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from glob import escape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.parquet_files import count_rows, read_coded, read_each, read_parquet, read_schemas
from infra.parts import write_parquet
from infra.storage import file_size, write_atomically

SCHEMA_VERSION = "1"
"""Raised when a column changes its name, type or meaning; stored in every file."""

ROWS_PER_FILE = 2_000_000
"""Keeps published files between 20 and 250 MB once a table is large enough to need several."""

_ROWS_PER_GROUP = 1 << 18

_PARTS = "superscene.parts"
"""Key of a file's metadata: digest of the parts that it was made of."""


def _field(name: str, type_: pa.DataType, meaning: str, *, nullable: bool = True) -> "pa.Field[pa.DataType]":
    return pa.field(name, type_, nullable=nullable, metadata={"description": meaning})


def _required(name: str, type_: pa.DataType, meaning: str) -> "pa.Field[pa.DataType]":
    return _field(name, type_, meaning, nullable=False)


PATCHES = pa.schema(
    [
        _required("patch_id", pa.string(), "Name of the patch in its archive"),
        _required("shard", pa.int32(), "Shard of archive.zarr"),
        _required("row", pa.int32(), "Row in the shard; patch index = shard * shard_size + row"),
        _field(
            "labels", pa.list_(pa.string()), "Labels present, of tables/classes; null where nobody labelled the patch"
        ),
        _required("split", pa.string(), "train, validation, test, or all where the archive has no splits"),
        _field("country", pa.string(), "Country, as the archive names it"),
        _field("season", pa.string(), "winter (Dec-Feb), spring, summer or autumn of the acquisition"),
        _field("acquired", pa.string(), "Day of the Sentinel-2 acquisition, YYYY-MM-DD"),
        _field("tile", pa.string(), "MGRS tile; confidence intervals resample tiles"),
        _field("has_snow", pa.bool_(), "Seasonal snow, from the archive's list"),
        _field("has_cloud", pa.bool_(), "Cloud or cloud shadow, from the archive's list"),
        _required("has_s1", pa.bool_(), "A Sentinel-1 pair is stored"),
        _required("has_map", pa.bool_(), "A land-cover reference map is stored"),
        _required("nodata_share", pa.float32(), "Share of 10 m pixels without data, 0 to 1"),
        _field("crs", pa.string(), "The patch's CRS, for example EPSG:32633; null for pictures without a place"),
        _field("geometry", pa.binary(), "Footprint, WKB polygon in EPSG:4326; null without a place"),
        _required("source_version", pa.string(), "Archive layout and version the patch came from"),
    ]
)

QUARANTINE = pa.schema(
    [
        _field("patch_id", pa.string(), "Name of the input, null where it has none"),
        _required("path", pa.string(), "File or folder at fault, relative to the archive's root"),
        _required("reason", pa.string(), "Kind of fault"),
        _required("detail", pa.string(), "What was found, in one sentence"),
    ]
)

CLASSES = pa.schema(
    [
        _required("label_index", pa.int32(), "Place of the label in every vector of the store"),
        _required("label", pa.string(), "Name"),
        _field("clc_codes", pa.list_(pa.int32()), "CORINE level-3 codes that make up the class; null for other labels"),
    ]
)

CONFIGS = pa.schema(
    [
        _required("config", pa.string(), "Eight hex digits"),
        _required("stage", pa.string(), "Stage that the config belongs to"),
        _required("json", pa.string(), "What the digits stand for, canonical JSON"),
    ]
)


def predictions_schema(n_labels: int) -> pa.Schema:
    """Schema of `tables/predictions` for a number of labels; sr, classifier and config are Hive columns."""
    return pa.schema(
        [
            _required("patch_id", pa.string(), "Name of the patch"),
            _required("split", pa.string(), "Split of the patch"),
            _required("seed", pa.int32(), "Training seed"),
            _required(
                "probs",
                pa.list_(pa.float32(), n_labels),
                "Probability of each label, in the order of tables/classes; null where the classifier does not know it",
            ),
            _required(
                "predicted",
                pa.list_(pa.string()),
                "Labels given: those whose probability reaches its threshold, or the most probable of a softmax",
            ),
            _field("labels", pa.list_(pa.string()), "True labels, null where unknown"),
        ]
    )


EXPLANATIONS = pa.schema(
    [
        _required("patch_id", pa.string(), "Name of the patch"),
        _required("split", pa.string(), "Split of the patch"),
        _required("label", pa.string(), "Label that the map explains, or is judged for"),
        _required("seed", pa.int32(), "Training seed of the network explained"),
        _required("prob", pa.float32(), "Probability of the label"),
        _required("sampled", pa.bool_(), "The patch is in the sample of explain.sample"),
        _field("coverage", pa.float32(), "Share of positive map pixels on the 120 x 120 grid; null for a zero map"),
        _field("entropy", pa.float32(), "Shannon entropy of the map / ln(120^2), 0 to 1; null for a zero map"),
        _field("centroid_row", pa.float32(), "Centre of the map's mass, share of the patch's height from its top edge"),
        _field("centroid_col", pa.float32(), "Centre of the map's mass, share of the width from the left edge"),
        _field(
            "area_share", pa.float32(), "Share of the patch that the reference map gives to the label; null without"
        ),
        _field(
            "judd_auc", pa.float32(), "Area under the ROC of map values against the label's pixels; noise gives 0.5"
        ),
        _field(
            "pointing", pa.float32(), "Whether the map's maximum lies on the label's pixels; noise gives area_share"
        ),
        *(
            _field(
                f"iou_{share}", pa.float32(), f"IoU of the label's pixels and those with {share} % of the map's energy"
            )
            for share in (95, 90, 85, 80, 75)
        ),
        _field("similarity", pa.float32(), "Histogram intersection of map and label's pixels, each scaled to sum 1"),
        _field("correlation", pa.float32(), "Correlation of the map with the label's pixels"),
        _field("average_drop", pa.float32(), "Percent of the probability lost where the map masks the input; sample"),
        _field("average_increase", pa.float32(), "100 where that raises the probability, else 0; sample"),
        _field("deletion_auc", pa.float32(), "Mean probability as pixels are deleted by falling map value; sample"),
        _field("insertion_auc", pa.float32(), "Mean probability as pixels are inserted by falling map value; sample"),
        _required("map_store", pa.string(), "Zarr store of the map, relative to the store"),
        _required("map_index", pa.int64(), "Index along the store's patch axis"),
        _required("map_label", pa.int32(), "Index along the store's label axis"),
    ]
)

QUARANTINED_MAPS = pa.schema(
    [
        _required("patch_id", pa.string(), "Name of the patch"),
        _required("label", pa.string(), "Label of the map; patch: it is of none, but of the whole patch"),
        _required("seed", pa.int32(), "Training seed of the network"),
        _required("reason", pa.string(), "Kind of fault"),
        _required("detail", pa.string(), "What was found, in one sentence"),
    ]
)

EXPLANATION_METRICS = pa.schema(
    [
        _required("sr", pa.string(), "SR model"),
        _required("classifier", pa.string(), "Network"),
        _required("method", pa.string(), "Method, or uniform: what a map without any contrast would score"),
        _required("config", pa.string(), "Config of the explanations"),
        _required("seed", pa.int32(), "Training seed of the network explained"),
        _field("reference", pa.string(), "Branch that it is compared with, null for the values themselves"),
        _required("split", pa.string(), "Split judged"),
        _required("subset", pa.string(), "Its patches judged: all, or sample, those of explain.sample alone"),
        _field("label", pa.string(), "Label judged, null for all"),
        _field("area_quartile", pa.int32(), "Quarter of the rows by area_share, 1 the smallest; null for all"),
        _required("metric", pa.string(), "Name, see docs/metrics.md"),
        _field(
            "value", pa.float64(), "Mean over the maps, or of the differences to the reference's; null where undefined"
        ),
        _field("low", pa.float64(), "Lower end of the 95 % interval: tiles resampled"),
        _field("high", pa.float64(), "Upper end of the 95 % interval"),
        _required("n", pa.int64(), "Maps that have a value"),
    ]
)

RELIABILITY = pa.schema(
    [
        _required("patch_id", pa.string(), "Name of the patch"),
        _required("split", pa.string(), "Split of the patch"),
        _required("label", pa.string(), "Label that was decided on"),
        _required("seed", pa.int32(), "Training seed of the network"),
        _required("prob", pa.float32(), "Probability of the label"),
        _required("predicted", pa.bool_(), "Whether the label was predicted"),
        _field("truth", pa.bool_(), "Whether the label is there; null where nobody knows"),
        _field("cluster", pa.int32(), "Cluster of the map; null where the label has none, or the map is not finite"),
        _field(
            "cluster_error_rate",
            pa.float64(),
            "Share of wrong decisions among the cluster's validation samples; the higher, the less reliable",
        ),
        _field("reliability", pa.float64(), "1 - cluster_error_rate"),
        _required("adjusted", pa.bool_(), "The decision, flipped in clusters above the threshold"),
    ]
)
"""Hive columns: sr, classifier, config."""

_OF_CLUSTERS = [
    _required("sr", pa.string(), "SR model"),
    _required("classifier", pa.string(), "Network"),
    _required("config", pa.string(), "Config of tables/reliability"),
    _required("method", pa.string(), "Method of the maps"),
    _required("seed", pa.int32(), "Training seed of the network"),
    _required("split", pa.string(), "Split of the decisions; clusters are fitted on validation"),
]

RELIABILITY_CLUSTERS = pa.schema(
    [
        *_OF_CLUSTERS[:-1],
        _required(
            "split",
            pa.string(),
            "fit: the samples of the fit, which may be another store's validation split; else the split of this "
            "archive whose decisions are counted",
        ),
        _field("label", pa.string(), "Label of the fit; null where all labels are pooled"),
        _required("cluster", pa.int32(), "Cluster, from 0, by falling number of landmarks"),
        _required("n", pa.int64(), "Samples: labelled patches without snow and cloud, by label"),
        *(
            _required(name, pa.int64(), f"{words} among them")
            for name, words in (
                ("tp", "True positives"),
                ("tn", "True negatives"),
                ("fp", "False positives"),
                ("fn", "False negatives"),
            )
        ),
        _field("error_rate", pa.float64(), "(fp + fn) / n of this split; null for an empty cluster"),
        _required("flipped", pa.bool_(), "Whether its decisions are flipped, for its error rate in the fit"),
        _field("height", pa.int32(), "Rows of the prototype; in rows of the fit alone"),
        _field("width", pa.int32(), "Columns of the prototype; in rows of the fit alone"),
        _field(
            "prototype",
            pa.list_(pa.float32()),
            "Mean of the fit's maps, each scaled to 0 to 1, row by row; in its rows alone, null for an empty cluster",
        ),
    ]
)

RELIABILITY_METRICS = pa.schema(
    [
        *_OF_CLUSTERS,
        _field("label", pa.string(), "Label, null for all decisions"),
        _required("metric", pa.string(), "accuracy, class_accuracy or aurc, see docs/metrics.md"),
        _required(
            "score",
            pa.string(),
            "Decisions measured: predicted or adjusted; or, for aurc, what orders them: reliability, probability or "
            "temperature",
        ),
        _field("reference", pa.string(), "Score that it is compared with; null for the value itself"),
        _field("value", pa.float64(), "Value, or difference to the reference's; null where undefined"),
        _field("low", pa.float64(), "Lower end of the 95 % interval: tiles resampled"),
        _field("high", pa.float64(), "Upper end of the 95 % interval"),
        _required("n", pa.int64(), "Decisions"),
    ]
)

RISK_COVERAGE = pa.schema(
    [
        *_OF_CLUSTERS,
        _required("score", pa.string(), "What orders the decisions: reliability, probability or temperature"),
        _required("coverage", pa.float64(), "Share of the decisions that are kept, the surest ones"),
        _required("risk", pa.float64(), "Share of wrong ones among them"),
        _required("n", pa.int64(), "Decisions, before any is withheld"),
    ]
)

METRICS = pa.schema(
    [
        _required("sr", pa.string(), "SR model"),
        _required("classifier", pa.string(), "Network"),
        _required("config", pa.string(), "Config of the predictions"),
        _required("seed", pa.int32(), "Training seed"),
        _required("split", pa.string(), "Split scored"),
        _field("country", pa.string(), "Country scored, null for all"),
        _field("season", pa.string(), "Season scored, null for all"),
        _required("metric", pa.string(), "Name, see docs/metrics.md"),
        _field("label", pa.string(), "Label, null for metrics over all labels"),
        _field("value", pa.float64(), "Value; null where it is not defined"),
        _field("low", pa.float64(), "Lower end of the 95 % interval"),
        _field("high", pa.float64(), "Upper end of the 95 % interval"),
        _required("n", pa.int64(), "Patches scored"),
        _required("n_labels", pa.int32(), "Labels that went into a macro mean"),
    ]
)

COMPARISONS = pa.schema(
    [
        _required("sr", pa.string(), "SR model"),
        _required("reference", pa.string(), "Branch it is compared with: none or bicubic"),
        _required("classifier", pa.string(), "Network"),
        _required("config", pa.string(), "Config of the SR model's predictions"),
        _required("reference_config", pa.string(), "Config of the reference's predictions"),
        _required("split", pa.string(), "Split scored"),
        _field("country", pa.string(), "Country scored, null for all"),
        _field("season", pa.string(), "Season scored, null for all"),
        _required("metric", pa.string(), "Name, see docs/metrics.md"),
        _field("label", pa.string(), "Label, null for metrics over all labels"),
        _field(
            "value", pa.float64(), "SR model minus reference, mean over the seeds that both have; null where undefined"
        ),
        _field("low", pa.float64(), "Lower end of the 95 % interval: tiles and seeds resampled, alike for both"),
        _field("high", pa.float64(), "Upper end of the 95 % interval"),
        _field(
            "significant",
            pa.bool_(),
            "Whether the interval excludes 0; null with fewer than three seeds or no interval",
        ),
        _required("n_seeds", pa.int32(), "Seeds that both have"),
        _required("n", pa.int64(), "Patches that both scored"),
        _required("n_labels", pa.int32(), "Labels that went into a macro mean"),
    ]
)

CALIBRATION = pa.schema(
    [
        _required("sr", pa.string(), "SR model"),
        _required("classifier", pa.string(), "Network"),
        _required("config", pa.string(), "Config of the predictions"),
        _required("seed", pa.int32(), "Training seed"),
        _required("split", pa.string(), "Split scored"),
        _required("bin", pa.int32(), "Number of the bin of probabilities, from 0"),
        _required("prob_low", pa.float64(), "Lower end of the bin"),
        _required("prob_high", pa.float64(), "Upper end of the bin"),
        _required("n", pa.int64(), "Label decisions whose probability lies in the bin"),
        _field("prob_mean", pa.float64(), "Their mean probability; null for an empty bin"),
        _field("positive_share", pa.float64(), "Share of them where the label is true; null for an empty bin"),
    ]
)

SR_QUALITY = pa.schema(
    [
        _required("patch_id", pa.string(), "Name of the patch"),
        _required("sr", pa.string(), "SR model"),
        _required("config", pa.string(), "Config of the SR pixels"),
        _field("psnr_db", pa.float32(), "Wald's protocol: PSNR, dB, peak 1 after the stretch, at most 100"),
        _field("ssim", pa.float32(), "Wald's protocol: structural similarity"),
        _field("sam_deg", pa.float32(), "Wald's protocol: mean spectral angle, degrees"),
        _field("ergas", pa.float32(), "Wald's protocol: ERGAS, ratio 1/4"),
        _field("improvement_share", pa.float32(), "Wald's protocol: share of pixels with detail near to the original"),
        _field("omission_share", pa.float32(), "Wald's protocol: share of pixels with detail near to the input"),
        _field("hallucination_share", pa.float32(), "Wald's protocol: share of pixels with detail far from both"),
        _field("reflectance_mae", pa.float32(), "Consistency: mean absolute error of the reduced output, reflectance"),
        _field("consistency_sam_deg", pa.float32(), "Consistency: mean spectral angle, degrees"),
        _field("shift_row_px", pa.float32(), "Consistency: how far the output lies too low, 10 m pixels"),
        _field("shift_col_px", pa.float32(), "Consistency: how far it lies too far to the right, 10 m pixels"),
        _required("clipped_share", pa.float32(), "Share of input pixels with a band above sr_input_max_dn"),
    ]
)

TRAINING = pa.schema(
    [
        _required("sr", pa.string(), "SR model of the training images"),
        _required("classifier", pa.string(), "Network"),
        _required("config", pa.string(), "Config of the checkpoint"),
        _required("seed", pa.int32(), "Training seed"),
        _required("fitted", pa.string(), "What was fitted: network, backbone or head"),
        _required("epoch", pa.int32(), "Epoch, from 0"),
        _required("lr", pa.float64(), "Learning rate at the epoch's last step"),
        _required("train_loss", pa.float64(), "Mean loss over the epoch's samples, as the weights changed"),
        _required("validation_loss", pa.float64(), "Mean loss over the validation samples after the epoch"),
        _required("train_accuracy", pa.float64(), "Share of right decisions over the epoch's samples"),
        _required("validation_accuracy", pa.float64(), "Share of right decisions over the validation samples"),
        _field("validation_ap_macro", pa.float64(), "Macro average precision of the validation samples"),
        _required("best", pa.bool_(), "Whether the checkpoint holds this epoch's weights"),
        _required("seconds", pa.float64(), "Seconds the epoch took"),
        _required("wait_share", pa.float64(), "Share of the training seconds in which the device waited for data"),
    ]
)

PAPER_METRICS: Mapping[str, str] = {
    "acc": "Sample accuracy",
    "hl": "Hamming loss",
    "oe": "One-error",
    "precision": "Precision, mean over patches",
    "recall": "Recall, mean over patches",
    "f1": "F1, mean over patches",
}
"""Metrics of the paper's table 1, in its order."""


def _compared(metric: str, meaning: str) -> "list[pa.Field[pa.DataType]]":
    """Columns of one metric: its mean over seeds, and how far that lies above bicubic, as tables/comparisons has it."""
    minus = f"{metric}_minus_bicubic"
    return [
        _field(metric, pa.float64(), f"{meaning}; mean over the seeds"),
        _field(minus, pa.float64(), f"Difference of {metric} to the bicubic control, mean over the paired seeds"),
        _field(f"{minus}_low", pa.float64(), "Lower end of its 95 % interval"),
        _field(f"{minus}_high", pa.float64(), "Upper end of its 95 % interval"),
        _field(
            f"{minus}_significant",
            pa.bool_(),
            "Whether the interval excludes 0; null below three paired seeds, or without it",
        ),
    ]


_SCORED = [
    _required("classifier", pa.string(), "Network"),
    _required("sr", pa.string(), "SR model; hr is the untouched high-resolution image, a ceiling"),
    _required("config", pa.string(), "Config of the predictions"),
    _required("split", pa.string(), "Split scored"),
]
_COUNTED = [
    _required("n", pa.int64(), "Patches scored, of the seed that has the fewest"),
    _required("n_seeds", pa.int32(), "Training seeds"),
    _field("n_paired", pa.int64(), "Patches that bicubic scored too; null for bicubic and where there is none"),
    _field("n_seeds_paired", pa.int32(), "Seeds that bicubic has too; null likewise"),
]

PAPER_TABLE_1 = pa.schema(
    [*_SCORED, *_COUNTED, *(field for metric, meaning in PAPER_METRICS.items() for field in _compared(metric, meaning))]
)

PAPER_TABLE_2 = pa.schema(
    [
        *_SCORED,
        _field("label_index", pa.int32(), "Place of the label in tables/classes; null for the macro mean"),
        _field("label", pa.string(), "Label; null for the macro mean over all labels"),
        _field("support", pa.int64(), "Patches that have the label; null for the macro mean"),
        *_COUNTED,
        *_compared("f2", "F2 of the label over all patches, of the macro mean the mean over the labels"),
    ]
)

RUNS = pa.schema(
    [
        _required("run_id", pa.string(), "Sorts by time"),
        _required("started", pa.timestamp("ms", tz="UTC"), "Start"),
        _field("ended", pa.timestamp("ms", tz="UTC"), "End"),
        _required("status", pa.string(), "complete; incomplete: some shards failed"),
        _required("configs", pa.list_(pa.string()), "Configs of the tables that the run published"),
        _required("run_yaml", pa.string(), "The configuration, JSON"),
        _required("versions", pa.string(), "Versions of superscene, Python and the main libraries, JSON"),
        _field("git_commit", pa.string(), "Commit of the checkout, null outside one"),
        _required("startup_seconds", pa.float64(), "Seconds from the command to the first shard"),
        _required("inputs", pa.int64(), "Inputs of the archive: patches + quarantined + absent"),
        _required("patches", pa.int64(), "Patches stored"),
        _required("quarantined", pa.int64(), "Inputs in quarantine"),
        _required("absent", pa.int64(), "Patches named but not at hand, under subset: present"),
        _required(
            "stages",
            pa.list_(
                pa.struct(
                    [
                        ("stage", pa.string()),
                        ("done", pa.int64()),
                        ("skipped", pa.int64()),
                        ("failed", pa.int64()),
                        ("patches", pa.int64()),
                        ("seconds", pa.float64()),
                        ("patches_per_second", pa.float64()),
                        ("device", pa.string()),
                        ("devices", pa.float64()),
                        ("workers", pa.int64()),
                        ("device_hours", pa.float64()),
                        ("busy_device_hours", pa.float64()),
                    ]
                )
            ),
            "Per stage: shards done, already done and failed; patches; wall seconds; patches/s; device: cpu or the "
            "kind of GPU; devices: cores or GPUs held by all workers; device_hours: theirs, from the stage's start to "
            "its end; busy_device_hours: those that went into the shards done",
        ),
    ]
)

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

_GEO = json.dumps(
    {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "edges": "planar"}},
    }
)
"""GeoParquet 1.1 metadata; a column without "crs" is in OGC:CRS84, EPSG:4326 in longitude-latitude order."""


def publish(
    folder: Path,
    rows: pa.Table,
    schema: pa.Schema,
    sort_by: Sequence[str],
    *,
    complete: bool = True,
    file_stem: str = "data",
) -> None:
    """Write a table's files, sorted, and rename them into place; what the folder held under the stem goes.

    Args:
        folder: `tables/<name>` or a Hive folder below it.
        rows: The rows, in any order.
        schema: Their schema; its descriptions and the completeness are stored in the files.
        sort_by: Columns to sort by; together they name a row, so that the same rows give the same bytes.
        complete: False where a shard is missing: stored as `superscene.complete` in the files' metadata.
        file_stem: Files are named <stem>-00000.parquet and so on.
    """
    stored = schema.with_metadata(_metadata(schema, complete=complete))
    rows = rows.cast(stored)
    if sort_by:
        rows = rows.sort_by([(column, "ascending") for column in sort_by])
    names = _file_names(file_stem, rows.num_rows)
    for i, name in enumerate(names):
        write_parquet(folder / name, rows.slice(i * ROWS_PER_FILE, ROWS_PER_FILE))
    _remove_others(folder, file_stem, names)


def publish_parts(
    folder: Path,
    parts: Sequence[Path],
    schema: pa.Schema,
    sort_by: Sequence[str],
    *,
    complete: bool = True,
    file_stem: str = "data",
) -> bool:
    """Write what `publish` would of the rows of parts, one file in memory at a time; nothing where that is done.

    Every file says which parts it was made of. Where all files name these, they are left as they are.

    Args:
        folder: As `publish` has it.
        parts: Parquet files with the schema's columns; the same rows whenever they are written anew.
        schema: As `publish` has it.
        sort_by: Columns to sort by, at least one; together they name a row.
        complete: As `publish` has it.
        file_stem: As `publish` has it.

    Returns:
        Whether files were written.
    """
    of_parts = list(zip((part.name for part in parts), read_each(parts, file_size), strict=True))
    made_of = [schema.names, list(sort_by), complete, ROWS_PER_FILE, of_parts]
    digest = hashlib.sha256(json.dumps([SCHEMA_VERSION, *made_of]).encode()).hexdigest()
    sizes = count_rows(parts)
    names = _file_names(file_stem, sum(sizes))
    if _files_of(folder, file_stem) == set(names) and _parts_of([folder / name for name in names]) == {digest}:
        return False
    stored = schema.with_metadata({**_metadata(schema, complete=complete), _PARTS: digest})
    places = np.split(_places(parts, sort_by), np.cumsum(sizes)[:-1]) if parts else []
    for i, name in enumerate(names):
        first = i * ROWS_PER_FILE
        chosen = [(place >= first) & (place < first + ROWS_PER_FILE) for place in places]
        here = {part: of_part for part, of_part in zip(parts, chosen, strict=True) if of_part.any()}
        rows = read_each([*here], partial(_read_some, of_parts=here, columns=schema.names))
        order = np.concatenate([np.empty(0, np.int64), *(p[of] for p, of in zip(places, chosen, strict=True))])
        of_file = pa.concat_tables(rows or [stored.empty_table()]).unify_dictionaries().take(pa.array(order.argsort()))
        write_atomically(folder / name, partial(_write_groups, of_file, stored))
    _remove_others(folder, file_stem, names)
    return True


def _metadata(schema: pa.Schema, *, complete: bool) -> dict[str, str]:
    metadata = {
        "superscene.schema_version": SCHEMA_VERSION,
        "superscene.complete": "true" if complete else "false",
    }
    return {**metadata, "geo": _GEO} if "geometry" in schema.names else metadata


def _file_names(stem: str, n_rows: int) -> list[str]:
    return [f"{stem}-{i:05d}.parquet" for i in range(max(1, -(-n_rows // ROWS_PER_FILE)))]


def _files_of(folder: Path, stem: str) -> set[str]:
    return {path.name for path in folder.glob(f"{escape(stem)}-{'[0-9]' * 5}.parquet")}  # not those of a longer stem


def _remove_others(folder: Path, stem: str, names: Sequence[str]) -> None:
    for name in _files_of(folder, stem) - {*names}:
        (folder / name).unlink()


def _parts_of(paths: Sequence[Path]) -> set[str]:
    """Return the digests of the parts that published files were made of; "" of one that does not say."""
    return {(schema.metadata or {}).get(_PARTS.encode(), b"").decode() for schema in read_schemas(paths)}


def _read_some(part: Path, of_parts: Mapping[Path, NDArray[np.bool_]], columns: Sequence[str]) -> pa.Table:
    """Return those rows of a part that are chosen, strings as codes."""
    return read_coded(part, columns).filter(pa.array(of_parts[part]))


def _places(parts: Sequence[Path], sort_by: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of every row of the parts, one after the other, among all rows sorted."""
    keys = pa.concat_tables(read_each(parts, partial(read_coded, columns=sort_by)))
    ranks = [_ranks(keys[name]) for name in sort_by]
    del keys
    order = np.lexsort(ranks[::-1])
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def _ranks(column: pa.ChunkedArray) -> NDArray[np.int32]:
    """Return the rank of every value among the different ones, as Arrow sorts them; of a null behind all others."""
    coded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.chunk(0)
    rank = np.empty(len(coded.dictionary) + 1, np.int32)
    rank[-1] = len(coded.dictionary)
    rank[pc.array_sort_indices(coded.dictionary).to_numpy()] = np.arange(len(coded.dictionary))
    return np.asarray(rank[coded.indices.fill_null(-1).to_numpy()])


def _write_groups(rows: pa.Table, schema: pa.Schema, path: Path) -> None:
    """Write a file with strings in full, a row group at a time."""
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for first in range(0, max(1, rows.num_rows), _ROWS_PER_GROUP):
            writer.write_table(rows.slice(first, _ROWS_PER_GROUP).cast(schema))


def hive_folder(table: Path, **keys: str) -> Path:
    """Return table/key=value/…; values are names and hex digits of our own, never text of an archive."""
    return table.joinpath(*(f"{key}={value}" for key, value in keys.items()))


def read_table(folder: Path) -> pa.Table:
    """Read a published table's files, without Hive columns; an absent folder has no rows and no columns."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        return pa.table({})
    return pa.concat_tables([read_parquet(path) for path in files], promote_options="default")
