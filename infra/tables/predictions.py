"""Schemas of predictions and of what they are worth."""

from collections.abc import Mapping

import pyarrow as pa

from infra.tables.columns import optional, required

_RUN_YAML = "RUN.yaml"
_NETWORK = "the network"
_CONFIG = "tables/configs"
_BOOTSTRAP = "cluster bootstrap over tiles, 1,000 resamples, metrics.md, Intervals"
_METRICS_PAGE = "formulas in metrics.md, Overall and Per label, each checked against scikit-learn"
_SCORED = "patches with labels, without snow and cloud"

SR = required("sr", pa.string(), "SR model", _RUN_YAML)
CLASSIFIER = required("classifier", pa.string(), "Network", _RUN_YAML)
SEED = required("seed", pa.int32(), "Training seed", "train.seeds of RUN.yaml", "id")
PATCH_ID = required("patch_id", pa.string(), "Name of the patch", "tables/patches")
SPLIT = required("split", pa.string(), "Split of the patch", "tables/patches")
"""Columns that several tables share."""


def predictions_schema(n_labels: int) -> pa.Schema:
    """Schema of `tables/predictions` for a number of labels; sr, classifier and config are Hive columns."""
    return pa.schema(
        [
            PATCH_ID,
            SPLIT,
            SEED,
            required(
                "probs",
                pa.list_(pa.float32(), n_labels),
                "Probability of each label, in the order of tables/classes; null where the classifier does not know it",
                "sigmoid or softmax of the network's logits",
                "probability",
            ),
            required(
                "predicted",
                pa.list_(pa.string()),
                "Labels given: those whose probability reaches its threshold, or the most probable of a softmax",
                "probs and the checkpoint's thresholds, 0.5 unless it stores others",
            ),
            optional("labels", pa.list_(pa.string()), "True labels, null where unknown", "tables/patches"),
        ]
    )


_OF_PREDICTIONS = required("config", pa.string(), "Config of the predictions", _CONFIG)
_SPLIT_SCORED = required("split", pa.string(), "Split scored", "tables/patches")
_PLACE = [
    optional("country", pa.string(), "Country scored, null for all", "tables/patches"),
    optional("season", pa.string(), "Season scored, null for all", "tables/patches"),
]
_METRIC = [
    required("metric", pa.string(), "Name, see docs/metrics.md", "metrics.md"),
    optional("label", pa.string(), "Label, null for metrics over all labels", "tables/classes"),
]
_HIGH = optional("high", pa.float64(), "Upper end of the 95 % interval", _BOOTSTRAP, "of metric")
_N_LABELS = required(
    "n_labels", pa.int32(), "Labels that went into a macro mean", "labels with a positive, metrics.md, Null", "count"
)

METRICS = pa.schema(
    [
        SR,
        CLASSIFIER,
        _OF_PREDICTIONS,
        SEED,
        _SPLIT_SCORED,
        *_PLACE,
        *_METRIC,
        optional("value", pa.float64(), "Value; null where it is not defined", _METRICS_PAGE, "of metric"),
        optional("low", pa.float64(), "Lower end of the 95 % interval", _BOOTSTRAP, "of metric"),
        _HIGH,
        required("n", pa.int64(), "Patches scored", _SCORED, "count"),
        _N_LABELS,
    ]
)

_TWO_BOOTSTRAPS = "bootstrap over tiles and seeds, in pairs, metrics.md, Comparisons"

COMPARISONS = pa.schema(
    [
        SR,
        required("reference", pa.string(), "Branch it is compared with: none or bicubic", _RUN_YAML),
        CLASSIFIER,
        required("config", pa.string(), "Config of the SR model's predictions", _CONFIG),
        required("reference_config", pa.string(), "Config of the reference's predictions", _CONFIG),
        _SPLIT_SCORED,
        *_PLACE,
        *_METRIC,
        optional(
            "value",
            pa.float64(),
            "SR model minus reference, mean over the seeds that both have; null where undefined",
            "tables/metrics, on the same patches",
            "of metric",
        ),
        optional(
            "low",
            pa.float64(),
            "Lower end of the 95 % interval: tiles and seeds resampled, alike for both",
            _TWO_BOOTSTRAPS,
            "of metric",
        ),
        optional("high", pa.float64(), "Upper end of the 95 % interval", _TWO_BOOTSTRAPS, "of metric"),
        optional(
            "significant",
            pa.bool_(),
            "Whether the interval excludes 0; null with fewer than three seeds or no interval",
            "low and high",
        ),
        required("n_seeds", pa.int32(), "Seeds that both have", "train.seeds of RUN.yaml", "count"),
        required("n", pa.int64(), "Patches that both scored", _SCORED, "count"),
        _N_LABELS,
    ]
)

_BINS = "15 bins of equal width, Guo et al. 2017, arXiv:1706.04599, eq. 3, of each label's probability"

CALIBRATION = pa.schema(
    [
        SR,
        CLASSIFIER,
        _OF_PREDICTIONS,
        SEED,
        _SPLIT_SCORED,
        required("bin", pa.int32(), "Number of the bin of probabilities, from 0", _BINS, "index"),
        required("prob_low", pa.float64(), "Lower end of the bin", _BINS, "probability"),
        required("prob_high", pa.float64(), "Upper end of the bin", _BINS, "probability"),
        required("n", pa.int64(), "Label decisions whose probability lies in the bin", "tables/predictions", "count"),
        optional(
            "prob_mean",
            pa.float64(),
            "Their mean probability; null for an empty bin",
            "probs of tables/predictions",
            "probability",
        ),
        optional(
            "positive_share",
            pa.float64(),
            "Share of them where the label is true; null for an empty bin",
            "labels of tables/predictions",
            "share",
        ),
    ]
)

_LOOP = "the training loop, metrics.md, Training curves"

TRAINING = pa.schema(
    [
        required("sr", pa.string(), "SR model of the training images", _RUN_YAML),
        CLASSIFIER,
        required("config", pa.string(), "Config of the checkpoint", _CONFIG),
        SEED,
        required("fitted", pa.string(), "What was fitted: network, backbone or head", _LOOP),
        required("epoch", pa.int32(), "Epoch, from 0", _LOOP, "index"),
        required("lr", pa.float64(), "Learning rate at the epoch's last step", "train.lr of RUN.yaml, scheduled", "1"),
        required(
            "train_loss", pa.float64(), "Mean loss over the epoch's samples, as the weights changed", _LOOP, "nat"
        ),
        required(
            "validation_loss", pa.float64(), "Mean loss over the validation samples after the epoch", _LOOP, "nat"
        ),
        required("train_accuracy", pa.float64(), "Share of right decisions over the epoch's samples", _LOOP, "share"),
        required(
            "validation_accuracy", pa.float64(), "Share of right decisions over the validation samples", _LOOP, "share"
        ),
        optional(
            "validation_ap_macro",
            pa.float64(),
            "Macro average precision of the validation samples",
            "ap_macro of metrics.md",
            "score",
        ),
        required("best", pa.bool_(), "Whether the checkpoint holds this epoch's weights", _LOOP),
        required("seconds", pa.float64(), "Seconds the epoch took", "wall clock", "s"),
        required(
            "wait_share",
            pa.float64(),
            "Share of the training seconds in which the device waited for data",
            "wall clock",
            "share",
        ),
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

_PAPER = "Mudraje et al., Multi-label scene classification in remote sensing benefits from image super-resolution"


def _compared(metric: str, meaning: str, source: str, unit: str) -> "list[pa.Field[pa.DataType]]":
    """Columns of one metric: its mean over seeds, and how far that lies above bicubic, as tables/comparisons has it."""
    minus, difference = f"{metric}_minus_bicubic", "score difference"
    return [
        optional(metric, pa.float64(), f"{meaning}; mean over the seeds", source, unit),
        optional(
            minus,
            pa.float64(),
            f"Difference of {metric} to the bicubic control, mean over the paired seeds",
            "value of tables/comparisons; the paper has no such control",
            difference,
        ),
        optional(f"{minus}_low", pa.float64(), "Lower end of its 95 % interval", _TWO_BOOTSTRAPS, difference),
        optional(f"{minus}_high", pa.float64(), "Upper end of its 95 % interval", _TWO_BOOTSTRAPS, difference),
        optional(
            f"{minus}_significant",
            pa.bool_(),
            "Whether the interval excludes 0; null below three paired seeds, or without it",
            "its interval",
        ),
    ]


_OF_TABLE = [
    CLASSIFIER,
    required("sr", pa.string(), "SR model; hr is the untouched high-resolution image, a ceiling", _RUN_YAML),
    _OF_PREDICTIONS,
    _SPLIT_SCORED,
]
_COUNTED = [
    required("n", pa.int64(), "Patches scored, of the seed that has the fewest", "tables/metrics", "count"),
    required("n_seeds", pa.int32(), "Training seeds", "tables/metrics", "count"),
    optional(
        "n_paired",
        pa.int64(),
        "Patches that bicubic scored too; null for bicubic and where there is none",
        "tables/comparisons",
        "count",
    ),
    optional("n_seeds_paired", pa.int32(), "Seeds that bicubic has too; null likewise", "tables/comparisons", "count"),
]

PAPER_TABLE_1 = pa.schema(
    [
        *_OF_TABLE,
        *_COUNTED,
        *(
            field
            for metric, meaning in PAPER_METRICS.items()
            for field in _compared(
                metric, meaning, f"{_PAPER}, section 3.3 and table 1", "share" if metric in {"hl", "oe"} else "score"
            )
        ),
    ]
)

PAPER_TABLE_2 = pa.schema(
    [
        *_OF_TABLE,
        optional(
            "label_index",
            pa.int32(),
            "Place of the label in tables/classes; null for the macro mean",
            "tables/classes",
            "index",
        ),
        optional("label", pa.string(), "Label; null for the macro mean over all labels", "tables/classes"),
        optional(
            "support", pa.int64(), "Patches that have the label; null for the macro mean", "tables/metrics", "count"
        ),
        *_COUNTED,
        *_compared(
            "f2",
            "F2 of the label over all patches, of the macro mean the mean over the labels",
            f"{_PAPER}, table 2",
            "score",
        ),
    ]
)
