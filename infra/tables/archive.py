"""Schemas of what the archive gave, and of the run that read it."""

import pyarrow as pa

from infra.tables.columns import optional, required

_METADATA = "the archive's metadata"
_PLAN = "superscene's plan: order by split and by a hash of patch_id"
_RUN = "the run's own record"
_S2_NAME = "the Sentinel-2 product's name in patch_id, or the archive's metadata"
_INGEST = "ingest, while the files are read"

PATCHES = pa.schema(
    [
        required("patch_id", pa.string(), "Name of the patch in its archive", _METADATA),
        required("shard", pa.int32(), "Shard of archive.zarr", _PLAN, "index"),
        required("row", pa.int32(), "Row in the shard; patch index = shard * shard_size + row", _PLAN, "index"),
        optional(
            "labels",
            pa.list_(pa.string()),
            "Labels present, of tables/classes; null where nobody labelled the patch",
            "the archive's metadata; of BigEarthNet v1 its 43 labels turned into 19",
        ),
        required("split", pa.string(), "train, validation, test, or all where the archive has no splits", _METADATA),
        optional("country", pa.string(), "Country, as the archive names it", _METADATA),
        optional("season", pa.string(), "winter (Dec-Feb), spring, summer or autumn of the acquisition", "acquired"),
        optional("acquired", pa.string(), "Day of the Sentinel-2 acquisition, YYYY-MM-DD", _S2_NAME),
        optional("tile", pa.string(), "MGRS tile; confidence intervals resample tiles", _S2_NAME),
        optional("has_snow", pa.bool_(), "Seasonal snow, from the archive's list", "the archive's list of patches"),
        optional(
            "has_cloud", pa.bool_(), "Cloud or cloud shadow, from the archive's list", "the archive's list of patches"
        ),
        required("has_s1", pa.bool_(), "A Sentinel-1 pair is stored", _INGEST),
        required("has_map", pa.bool_(), "A land-cover reference map is stored", _INGEST),
        required(
            "nodata_share",
            pa.float32(),
            "Share of 10 m pixels without data, 0 to 1",
            "pixels in which any 10 m band has DN 0, Sentinel-2's nodata",
            "share",
        ),
        optional(
            "crs",
            pa.string(),
            "The patch's CRS, for example EPSG:32633; null for pictures without a place",
            "the GeoTIFF's keys, or the archive's metadata",
        ),
        optional(
            "geometry",
            pa.binary(),
            "Footprint, WKB polygon in EPSG:4326; null without a place",
            "the corners of the patch in its CRS, turned by PROJ; longitude first",
        ),
        required(
            "source_version",
            pa.string(),
            "Archive layout and version the patch came from",
            "archive.layout of RUN.yaml",
        ),
    ]
)

QUARANTINE = pa.schema(
    [
        optional("patch_id", pa.string(), "Name of the input, null where it has none", _METADATA),
        required("path", pa.string(), "File or folder at fault, relative to the archive's root", _INGEST),
        required("reason", pa.string(), "Kind of fault", _INGEST),
        required("detail", pa.string(), "What was found, in one sentence", _INGEST),
    ]
)

CLASSES = pa.schema(
    [
        required(
            "label_index",
            pa.int32(),
            "Place of the label in every vector of the store",
            "the original order of BigEarthNet-19; of other archives the order of their names",
            "index",
        ),
        required("label", pa.string(), "Name", _METADATA),
        optional(
            "clc_codes",
            pa.list_(pa.int32()),
            "CORINE level-3 codes that make up the class; null for other labels",
            "the 19 classes of Sumbul et al. 2021, arXiv:2105.07921",
            "id",
        ),
    ]
)

CONFIGS = pa.schema(
    [
        required("config", pa.string(), "Eight hex digits", "SHA-256 of json, from its first letter on"),
        required("stage", pa.string(), "Stage that the config belongs to", _RUN),
        required("json", pa.string(), "What the digits stand for, canonical JSON", "RUN.yaml, weights and inputs"),
    ]
)

_STAGE = pa.struct(
    [
        optional("stage", pa.string(), "Name of the stage", _RUN),
        optional("done", pa.int64(), "Shards done", _RUN, "count"),
        optional("skipped", pa.int64(), "Shards that were done before", _RUN, "count"),
        optional("failed", pa.int64(), "Shards that failed", _RUN, "count"),
        optional("patches", pa.int64(), "Patches in the shards done", _RUN, "count"),
        optional("seconds", pa.float64(), "Wall seconds", _RUN, "s"),
        optional("patches_per_second", pa.float64(), "Patches a wall second", "patches / seconds", "patches/s"),
        optional("device", pa.string(), "cpu or the kind of GPU; null where nothing was done", _RUN),
        optional("devices", pa.float64(), "Cores or GPUs held by all workers", _RUN, "count"),
        optional("workers", pa.int64(), "Workers", _RUN, "count"),
        optional(
            "device_hours",
            pa.float64(),
            "Hours of the devices, from the stage's start to its end",
            "devices * seconds / 3600",
            "h",
        ),
        optional("busy_device_hours", pa.float64(), "Those of them that went into the shards done", _RUN, "h"),
    ]
)
"""One stage of a run."""

RUNS = pa.schema(
    [
        required("run_id", pa.string(), "Sorts by time", "started, to the microsecond"),
        required("started", pa.timestamp("ms", tz="UTC"), "Start", _RUN, "time"),
        optional("ended", pa.timestamp("ms", tz="UTC"), "End", _RUN, "time"),
        required("status", pa.string(), "complete; incomplete: some shards failed", _RUN),
        required("configs", pa.list_(pa.string()), "Configs of the tables that the run published", _RUN),
        required("run_yaml", pa.string(), "The configuration, JSON", "RUN.yaml and --set"),
        required("versions", pa.string(), "Versions of superscene, Python and the main libraries, JSON", _RUN),
        optional("git_commit", pa.string(), "Commit of the checkout, null outside one", "git"),
        required(
            "startup_seconds", pa.float64(), "Seconds from the command to the beginning of the first stage", _RUN, "s"
        ),
        required("inputs", pa.int64(), "Inputs of the archive: patches + quarantined + absent", _RUN, "count"),
        required("patches", pa.int64(), "Patches stored", _RUN, "count"),
        required("quarantined", pa.int64(), "Inputs in quarantine", _RUN, "count"),
        required("absent", pa.int64(), "Patches named but not at hand, under subset: present", _RUN, "count"),
        required("stages", pa.list_(_STAGE), "One entry a stage, in the order of the run", _RUN),
    ]
)
