"""Fail if the demo's tables are wrong or empty. Usage: check_demo.py STORE."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

store = Path(sys.argv[1])
tables = store / "tables"

patches = pd.read_parquet(tables / "patches")
quarantine = pd.read_parquet(tables / "quarantine")
run = pd.read_parquet(tables / "runs").iloc[-1]
assert run["status"] == "complete", run["status"]
assert run["inputs"] == len(patches) + len(quarantine) + run["absent"], run
assert len(patches) == run["patches"] > 40
assert patches["patch_id"].is_unique
assert set(patches["split"]) == {"train", "validation", "test"}

predictions = pd.read_parquet(tables / "predictions")
assert set(predictions["sr"]) == {"none", "bicubic", "srresnet"}
for sr, rows in predictions.groupby("sr", observed=True):
    assert set(rows["patch_id"]) == set(patches["patch_id"]), f"{sr}: not every patch is predicted once"
    probs = np.stack(rows["probs"].to_list())
    assert probs.shape == (len(patches), 19)
    assert np.isfinite(probs).all()
    assert probs.min() >= 0
    assert probs.max() <= 1
    assert probs.std(axis=0).min() > 0, f"{sr}: a label has the same probability everywhere"

metrics = pd.read_parquet(tables / "metrics")
metrics = metrics[metrics["country"].isna() & metrics["season"].isna()]
above = metrics.query("split == 'test' and metric == 'ap_macro_above_prevalence'")
assert len(above) == 3
assert (above["value"] > 0.1).all(), above[["sr", "value", "low", "high"]]

comparisons = pd.read_parquet(tables / "comparisons")
assert comparisons["significant"].isna().all(), "one seed claims significance"
table_1 = pd.read_parquet(tables / "paper_table_1").query("split == 'test'")
for _, row in table_1.iterrows():
    accuracy = metrics.query("split == 'test' and metric == 'acc' and sr == @row.sr")["value"]
    assert accuracy.to_list() == [row["acc"]], row

explanations = pd.read_parquet(tables / "explanations")
assert len(explanations) > 0
assert explanations["coverage"].dropna().between(0, 1).all()
assert explanations.groupby("method", observed=True)["patch_id"].nunique().min() > 0
assert set(explanations["method"]) == {"grad_cam", "grad_cam_pp", "eigen_cam", "hessian_ciam", "random"}
of_maps = pd.read_parquet(tables / "explanation_metrics")
aucs = of_maps.query("split == 'train' and subset == 'all' and metric == 'judd_auc'")
aucs = aucs[aucs["label"].isna() & aucs["area_quartile"].isna() & aucs["reference"].isna()]
by_method = aucs.groupby("method")["value"].mean()
assert abs(by_method["random"] - 0.5) < 0.1, by_method
assert by_method["uniform"] == 0.5
assert len(pd.read_parquet(tables / "quarantined_maps")) == 0
reliability = pd.read_parquet(tables / "reliability")
for sr, rows in reliability.groupby("sr", observed=True):
    assert len(rows) == 19 * len(patches), f"{sr}: not every decision has its row"
    assert rows["reliability"].notna().all()
    assert (rows["cluster_error_rate"] + rows["reliability"] == 1).all()
clusters = pd.read_parquet(tables / "reliability_clusters")
assert (clusters["n"] == clusters[["tp", "tn", "fp", "fn"]].sum(axis=1)).all()
assert set(pd.read_parquet(tables / "reliability_metrics")["metric"]) == {"accuracy", "class_accuracy", "aurc"}
quality = pd.read_parquet(tables / "sr_quality")
assert quality.groupby("sr", observed=True)["patch_id"].nunique().to_dict() == {
    "bicubic": len(patches),
    "srresnet": len(patches),
}
assert len(pd.read_parquet(tables / "training")) > 0
assert len(pd.read_parquet(tables / "classes")) == 19

page = (store / "report" / "index.html").read_text(encoding="utf-8")
assert "data:image/" in page
assert "<table" in page
print(
    f"the demo's tables are right: {len(patches)} patches, macro AP above prevalence", above["value"].round(3).to_list()
)
