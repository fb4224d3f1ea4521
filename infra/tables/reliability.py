"""Schemas of reliability scores: each decision's, the clusters behind them, and what they are worth."""

import pyarrow as pa

from infra.tables.columns import optional, required
from infra.tables.predictions import CLASSIFIER, PATCH_ID, SPLIT, SR

_PAPER = "Kierdorf and Roscher 2023, arXiv:2305.15149"
_PREDICTED = "tables/predictions"
_COUNTS = "decisions of tables/reliability; of the split fit, those of the validation split that was fitted on"
_SEED = required("seed", pa.int32(), "Training seed of the network", "train.seeds of RUN.yaml", "id")

RELIABILITY = pa.schema(
    [
        PATCH_ID,
        SPLIT,
        required("label", pa.string(), "Label that was decided on", "tables/classes"),
        _SEED,
        required("prob", pa.float32(), "Probability of the label", _PREDICTED, "probability"),
        required("predicted", pa.bool_(), "Whether the label was predicted", _PREDICTED),
        optional("truth", pa.bool_(), "Whether the label is there; null where nobody knows", "tables/patches"),
        optional(
            "cluster",
            pa.int32(),
            "Cluster of the map; null where the label has none, or the map is not finite",
            f"{_PAPER}, section 2.6: majority of the 5 nearest validation maps",
            "id",
        ),
        optional(
            "cluster_error_rate",
            pa.float64(),
            "Share of wrong decisions among the cluster's validation samples; the higher, the less reliable",
            f"{_PAPER}, section 2.5: (FP + FN) / n",
            "share",
        ),
        optional("reliability", pa.float64(), "1 - cluster_error_rate", "cluster_error_rate", "share"),
        required(
            "adjusted", pa.bool_(), "The decision, flipped in clusters above the threshold", f"{_PAPER}, section 2.6"
        ),
    ]
)
"""Hive columns: sr, classifier, config."""

_OF_CLUSTERS = [
    SR,
    CLASSIFIER,
    required("config", pa.string(), "Config of tables/reliability", "tables/configs"),
    required("method", pa.string(), "Method of the maps", "reliability.method of RUN.yaml"),
    _SEED,
    required("split", pa.string(), "Split of the decisions; clusters are fitted on validation", "tables/patches"),
]

RELIABILITY_CLUSTERS = pa.schema(
    [
        *_OF_CLUSTERS[:-1],
        required(
            "split",
            pa.string(),
            "fit: the samples of the fit, which may be another store's validation split; else the split of this "
            "archive whose decisions are counted",
            "tables/patches",
        ),
        optional("label", pa.string(), "Label of the fit; null where all labels are pooled", "tables/classes"),
        required(
            "cluster",
            pa.int32(),
            "Cluster, from 0, by falling number of landmarks",
            f"{_PAPER}, section 2.5: spectral clustering",
            "id",
        ),
        required("n", pa.int64(), "Samples: labelled patches without snow and cloud, by label", _COUNTS, "count"),
        *(
            required(name, pa.int64(), f"{words} among them", _COUNTS, "count")
            for name, words in (
                ("tp", "True positives"),
                ("tn", "True negatives"),
                ("fp", "False positives"),
                ("fn", "False negatives"),
            )
        ),
        optional(
            "error_rate",
            pa.float64(),
            "(fp + fn) / n of this split; null for an empty cluster",
            f"{_PAPER}, section 2.5",
            "share",
        ),
        required(
            "flipped",
            pa.bool_(),
            "Whether its decisions are flipped, for its error rate in the fit",
            f"{_PAPER}, section 2.6",
        ),
        optional(
            "height", pa.int32(), "Rows of the prototype; in rows of the fit alone", "the layer's resolution", "count"
        ),
        optional(
            "width", pa.int32(), "Columns of the prototype; in rows of the fit alone", "the layer's resolution", "count"
        ),
        optional(
            "prototype",
            pa.list_(pa.float32()),
            "Mean of the fit's maps, each scaled to 0 to 1, row by row; in its rows alone, null for an empty cluster",
            "the cluster's maps of the fit",
            "share",
        ),
    ]
)

_BOOTSTRAP = "cluster bootstrap over tiles, metrics.md, Reliability"

RELIABILITY_METRICS = pa.schema(
    [
        *_OF_CLUSTERS,
        optional("label", pa.string(), "Label, null for all decisions", "tables/classes"),
        required("metric", pa.string(), "accuracy, class_accuracy or aurc, see docs/metrics.md", "metrics.md"),
        required(
            "score",
            pa.string(),
            "Decisions measured: predicted or adjusted; or, for aurc, what orders them: reliability, probability or "
            "temperature",
            "metrics.md, Reliability",
        ),
        optional(
            "reference",
            pa.string(),
            "Score that it is compared with; null for the value itself",
            "metrics.md, Reliability",
        ),
        optional(
            "value",
            pa.float64(),
            "Value, or difference to the reference's; null where undefined",
            f"{_PAPER}, section 2.6; aurc of Geifman et al. 2019, arXiv:1805.08206",
            "of metric",
        ),
        optional("low", pa.float64(), "Lower end of the 95 % interval: tiles resampled", _BOOTSTRAP, "of metric"),
        optional("high", pa.float64(), "Upper end of the 95 % interval", _BOOTSTRAP, "of metric"),
        required("n", pa.int64(), "Decisions", "tables/reliability", "count"),
    ]
)

_CURVE = "Geifman and El-Yaniv 2017, arXiv:1705.08500, section 2"

RISK_COVERAGE = pa.schema(
    [
        *_OF_CLUSTERS,
        required(
            "score",
            pa.string(),
            "What orders the decisions: reliability, probability or temperature",
            "metrics.md, Reliability",
        ),
        required("coverage", pa.float64(), "Share of the decisions that are kept, the surest ones", _CURVE, "share"),
        required("risk", pa.float64(), "Share of wrong ones among them", _CURVE, "share"),
        required("n", pa.int64(), "Decisions, before any is withheld", "tables/reliability", "count"),
    ]
)
