"""The paper's tables 1 and 2 of one run: from the rows of metrics and comparisons to Parquet and Markdown."""

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from infra.storage import StorePaths, write_text
from infra.tables import COMPARISONS, METRICS, PAPER_METRICS, PAPER_TABLE_1, PAPER_TABLE_2, publish, read_table
from tasks.quality_summary import CONTROL
from tasks.report.maps import maps_of_run
from tasks.report.maps_markdown import maps_markdown
from tasks.report.markdown import paper_tables_markdown
from tasks.report.means import Difference, Mean, Subject, differences, n_seeds, of_configs, overall, seed_means
from tasks.report.order import shown_split


def publish_paper_tables(
    paths: StorePaths,
    configs: Iterable[str],
    sr: Sequence[str],
    classifiers: Sequence[str],
    methods: Sequence[str] = (),
    *,
    complete: bool = True,
) -> None:
    """Write tables/paper_table_1, tables/paper_table_2 and report/tables.md; those of an earlier run go.

    Behind the paper's tables report/tables.md has those of the maps, where maps were judged.

    Args:
        paths: The store; metrics, comparisons and explanation_metrics are published.
        configs: Configs of the run's predictions and explanations; others do no harm.
        sr: SR models in the order of RUN.yaml.
        classifiers: Classifiers in the order of RUN.yaml.
        methods: Explanation methods in the order of RUN.yaml.
        complete: False where a shard failed.

    Raises:
        StoreError: The store cannot be written.
    """
    configs = set(configs)
    metrics = of_configs(read_table(paths.table("metrics")), METRICS, configs)
    comparisons = of_configs(read_table(paths.table("comparisons")), COMPARISONS, configs)
    classes = read_table(paths.table("classes"))
    labels = classes.sort_by("label_index")["label"].to_pylist() if classes.num_rows else []
    first, second = paper_table_1(metrics, comparisons), paper_table_2(metrics, comparisons, labels)
    publish(
        paths.table("paper_table_1"), first, PAPER_TABLE_1, ["classifier", "sr", "config", "split"], complete=complete
    )
    order = ["classifier", "sr", "config", "split", "label_index", "label"]
    publish(paths.table("paper_table_2"), second, PAPER_TABLE_2, order, complete=complete)
    text = paper_tables_markdown(first.to_pylist(), second.to_pylist(), sr, classifiers)
    maps = maps_of_run(paths, configs, sr, classifiers, methods, shown_split(first["split"].unique().to_pylist()))
    if maps is not None:
        text += "\n" + maps_markdown(maps)
    write_text(paths.report.with_name("tables.md"), text)


def paper_table_1(metrics: pa.Table, comparisons: pa.Table) -> pa.Table:
    """Return the paper's table 1, a row for each SR model, classifier and split: means over seeds, minus bicubic.

    Args:
        metrics: Rows of `tables/metrics`, any order, one config for each SR model and classifier.
        comparisons: Rows of `tables/comparisons` of the same configs.

    Returns:
        Rows of PAPER_TABLE_1.

    Source: Mudraje et al., Multi-label scene classification in remote sensing benefits from image super-resolution,
    table 1; the differences to bicubic are this project's, for the paper has no such control.
    """
    of_bicubic = differences(overall(comparisons), CONTROL)
    rows = []
    for subject, means in seed_means(overall(metrics)).items():
        if subject.label is None and PAPER_METRICS.keys() & means.keys():
            chosen = {metric: means[metric] for metric in PAPER_METRICS if metric in means}
            minus = of_bicubic.get(subject, {})
            row = _counted(subject, chosen, [minus[metric] for metric in chosen if metric in minus])
            for metric, mean in chosen.items():
                row |= _compared(metric, mean, minus.get(metric))
            rows.append(row)
    return pa.Table.from_pylist(rows, PAPER_TABLE_1)


def paper_table_2(metrics: pa.Table, comparisons: pa.Table, labels: Sequence[str]) -> pa.Table:
    """Return the paper's table 2, F2 of each label and its macro mean for each SR model, classifier and split.

    Args:
        metrics: Rows of `tables/metrics`, any order, one config for each SR model and classifier.
        comparisons: Rows of `tables/comparisons` of the same configs.
        labels: The archive's labels in their order.

    Returns:
        Rows of PAPER_TABLE_2; those of the macro mean have no label.

    Source: the same paper, table 2.
    """
    of_bicubic = differences(overall(comparisons), CONTROL)
    rows = []
    for subject, means in seed_means(overall(metrics)).items():
        metric = "f2_macro" if subject.label is None else "f2"
        if metric not in means:
            continue
        minus = of_bicubic.get(subject, {}).get(metric)
        support = means["support"].value if "support" in means else None
        rows.append(
            {
                **_counted(subject, {metric: means[metric]}, [] if minus is None else [minus]),
                "label": subject.label,
                "label_index": labels.index(subject.label) if subject.label in labels else None,
                "support": None if support is None else round(support),
                **_compared("f2", means[metric], minus),
            }
        )
    return pa.Table.from_pylist(rows, PAPER_TABLE_2)


def _counted(subject: Subject, means: Mapping[str, Mean], minus: Sequence[Difference]) -> dict[str, object]:
    first = next(iter(means.values()))
    return {
        "classifier": subject.classifier,
        "sr": subject.sr,
        "config": first.config,
        "split": subject.split,
        "n": min(mean.n for mean in means.values()),
        "n_seeds": n_seeds(means),
        "n_paired": min((difference.n for difference in minus), default=None),
        "n_seeds_paired": min((difference.n_seeds for difference in minus), default=None),
    }


def _compared(metric: str, mean: Mean, minus: Difference | None) -> dict[str, object]:
    name = f"{metric}_minus_bicubic"
    row: dict[str, object] = {metric: mean.value}
    if minus is not None:
        row |= {name: minus.value, f"{name}_low": minus.low, f"{name}_high": minus.high}
        row[f"{name}_significant"] = minus.significant
    return row
