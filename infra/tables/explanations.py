"""Schemas of activation maps: what each shows, and how well methods point."""

import pyarrow as pa

from infra.tables.columns import optional, required
from infra.tables.predictions import CLASSIFIER, PATCH_ID, SPLIT, SR

_PREDICTED = "tables/predictions"
_SUMMARY = "the map after ReLU on the patch's grid, metrics.md, Maps"
_AREA = "the archive's reference map, its CORINE codes turned into labels"
_SALIENCY = "Bylinskii et al. 2019, arXiv:1604.03605"
_ENERGY = "Qian et al. 2023, doi:10.1007/978-3-031-43895-0_17, section 4"
_DROP = "Chattopadhay et al. 2018, arXiv:1710.11063"
_DELETION = "Petsiuk et al. 2018, arXiv:1806.07421, 36 steps"
_STORE = "tasks/explain.py"

_NETWORK_SEED = required("seed", pa.int32(), "Training seed of the network explained", "train.seeds of RUN.yaml", "id")

EXPLANATIONS = pa.schema(
    [
        PATCH_ID,
        SPLIT,
        required("label", pa.string(), "Label that the map explains, or is judged for", "explain.labels of RUN.yaml"),
        _NETWORK_SEED,
        required("prob", pa.float32(), "Probability of the label", _PREDICTED, "probability"),
        required("sampled", pa.bool_(), "The patch is in the sample of explain.sample", "tasks/explain_sample.py"),
        optional(
            "coverage",
            pa.float32(),
            "Share of positive map pixels on the 120 x 120 grid; null for a zero map",
            _SUMMARY,
            "share",
        ),
        optional(
            "entropy",
            pa.float32(),
            "Shannon entropy of the map / ln(120^2), 0 to 1; null for a zero map",
            _SUMMARY,
            "share",
        ),
        optional(
            "centroid_row",
            pa.float32(),
            "Centre of the map's mass, share of the patch's height from its top edge",
            _SUMMARY,
            "share",
        ),
        optional(
            "centroid_col",
            pa.float32(),
            "Centre of the map's mass, share of the width from the left edge",
            _SUMMARY,
            "share",
        ),
        optional(
            "area_share",
            pa.float32(),
            "Share of the patch that the reference map gives to the label; null without",
            _AREA,
            "share",
        ),
        optional(
            "judd_auc",
            pa.float32(),
            "Area under the ROC of map values against the label's pixels; noise gives 0.5",
            f"{_SALIENCY}, AUC-Judd",
            "score",
        ),
        optional(
            "pointing",
            pa.float32(),
            "Whether the map's maximum lies on the label's pixels; noise gives area_share",
            "Zhang et al. 2018, arXiv:1608.00507",
            "score",
        ),
        *(
            optional(
                f"iou_{share}",
                pa.float32(),
                f"IoU of the label's pixels and those with {share} % of the map's energy",
                _ENERGY,
                "score",
            )
            for share in (95, 90, 85, 80, 75)
        ),
        optional(
            "similarity",
            pa.float32(),
            "Histogram intersection of map and label's pixels, each scaled to sum 1",
            f"{_SALIENCY}, SIM",
            "score",
        ),
        optional(
            "correlation", pa.float32(), "Correlation of the map with the label's pixels", f"{_SALIENCY}, CC", "1"
        ),
        optional(
            "average_drop",
            pa.float32(),
            "Percent of the probability lost where the map masks the input; sample",
            _DROP,
            "percent",
        ),
        optional(
            "average_increase", pa.float32(), "100 where that raises the probability, else 0; sample", _DROP, "percent"
        ),
        optional(
            "deletion_auc",
            pa.float32(),
            "Mean probability as pixels are deleted by falling map value; sample",
            _DELETION,
            "probability",
        ),
        optional(
            "insertion_auc",
            pa.float32(),
            "Mean probability as pixels are inserted by falling map value; sample",
            _DELETION,
            "probability",
        ),
        required("map_store", pa.string(), "Zarr store of the map, relative to the store", _STORE),
        required("map_index", pa.int64(), "Index along the store's patch axis", _STORE, "index"),
        required("map_label", pa.int32(), "Index along the store's label axis", _STORE, "index"),
    ]
)

QUARANTINED_MAPS = pa.schema(
    [
        PATCH_ID,
        required(
            "label", pa.string(), "Label of the map; patch: it is of none, but of the whole patch", "tables/classes"
        ),
        required("seed", pa.int32(), "Training seed of the network", "train.seeds of RUN.yaml", "id"),
        required("reason", pa.string(), "Kind of fault", _STORE),
        required("detail", pa.string(), "What was found, in one sentence", _STORE),
    ]
)

_BOOTSTRAP = "cluster bootstrap over tiles, metrics.md, Means, floors, differences"

EXPLANATION_METRICS = pa.schema(
    [
        SR,
        CLASSIFIER,
        required(
            "method",
            pa.string(),
            "Method, or uniform: what a map without any contrast would score",
            "explain.methods of RUN.yaml",
        ),
        required("config", pa.string(), "Config of the explanations", "tables/configs"),
        _NETWORK_SEED,
        optional(
            "reference", pa.string(), "Branch that it is compared with, null for the values themselves", "RUN.yaml"
        ),
        required("split", pa.string(), "Split judged", "tables/patches"),
        required(
            "subset",
            pa.string(),
            "Its patches judged: all, or sample, those of explain.sample alone",
            "tasks/explain_sample.py",
        ),
        optional("label", pa.string(), "Label judged, null for all", "tables/classes"),
        optional(
            "area_quartile",
            pa.int32(),
            "Quarter of the rows by area_share, 1 the smallest; null for all",
            "area_share of tables/explanations",
            "id",
        ),
        required("metric", pa.string(), "Name, see docs/metrics.md", "metrics.md"),
        optional(
            "value",
            pa.float64(),
            "Mean over the maps, or of the differences to the reference's; null where undefined",
            "the metric's column of tables/explanations",
            "of metric",
        ),
        optional("low", pa.float64(), "Lower end of the 95 % interval: tiles resampled", _BOOTSTRAP, "of metric"),
        optional("high", pa.float64(), "Upper end of the 95 % interval", _BOOTSTRAP, "of metric"),
        required("n", pa.int64(), "Maps that have a value", "tables/explanations", "count"),
    ]
)
