"""The rows of tables/explanation_metrics that the report shows of one classifier, by the patches that they are over."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tasks.explanation_metrics import ALL, SAMPLE, UNIFORM
from tasks.quality_summary import CONTROL
from tasks.report.map_tables import FLOORS

type MetricRow = Mapping[str, Any]
type ByMetric = dict[str, MetricRow]


class MapKey(NamedTuple):
    """Whose maps numbers are of."""

    sr: str
    method: str


@dataclass(frozen=True, slots=True)
class MapNumbers:
    """Means over one set of patches, by metric."""

    of_sample: bool
    """Whether those are a part of the patches, the sample."""
    means: Mapping[MapKey, ByMetric]
    minus: Mapping[MapKey, ByMetric]
    """Differences to the control."""
    uniform: Mapping[str, ByMetric]
    """What a uniform map scores on the maps of each config."""
    areas: Mapping[tuple[str, str, int], ByMetric]
    """By config, method and quarter of area."""

    def of_branch(self, sr: str) -> dict[str, ByMetric]:
        """Return the means of one branch by method."""
        return {key.method: metrics for key, metrics in self.means.items() if key.sr == sr}

    def uniform_of(self, methods: Iterable[ByMetric]) -> ByMetric:
        """Return what a uniform map scores on the maps of the method that has the most; nothing where none is known.

        A method's zero maps have no score, so that its uniform ones are fewer too.
        """
        found = [self.uniform.get(config_of(metrics), {}) for metrics in methods]
        return max(found, key=_n_maps, default={})

    @property
    def has_methods(self) -> bool:
        """Whether any method is there but the floors."""
        return any(key.method not in FLOORS for key in self.means)


def map_numbers(rows: pa.Table) -> list[MapNumbers]:
    """Return the numbers of all patches, then those of the sample, as far as they rank anything.

    A sample that is all patches stands for both. Floors alone are left out where the other set has methods.

    Args:
        rows: Of EXPLANATION_METRICS: of one classifier, split and all labels.
    """
    of_all, of_sample = (
        _of_subset(rows.filter(pc.equal(rows["subset"], subset)), of_sample=subset == SAMPLE)
        for subset in (ALL, SAMPLE)
    )
    if of_all.means and all(_n_maps(of_sample.means.get(key, {})) == _n_maps(m) for key, m in of_all.means.items()):
        return [replace(of_sample, of_sample=False)]
    found = [numbers for numbers in (of_all, of_sample) if numbers.means]
    return [numbers for numbers in found if numbers.has_methods] or found


def config_of(metrics: Mapping[str, MetricRow]) -> str:
    """Return the config of rows, which is one."""
    return str(next(iter(metrics.values()))["config"])


def _of_subset(rows: pa.Table, *, of_sample: bool) -> MapNumbers:
    means: dict[MapKey, ByMetric] = defaultdict(dict)
    minus: dict[MapKey, ByMetric] = defaultdict(dict)
    uniform: dict[str, ByMetric] = defaultdict(dict)
    areas: dict[tuple[str, str, int], ByMetric] = defaultdict(dict)
    for row in rows.filter(pc.is_valid(rows["value"])).to_pylist():
        key, metric = MapKey(row["sr"], row["method"]), row["metric"]
        if row["area_quartile"] is not None:
            areas[row["config"], row["method"], row["area_quartile"]][metric] = row
        elif row["method"] == UNIFORM:
            uniform[row["config"]][metric] = row
        elif row["reference"] is None:
            means[key][metric] = row
        elif row["reference"] == CONTROL:
            minus[key][metric] = row
    return MapNumbers(of_sample, dict(means), dict(minus), dict(uniform), dict(areas))


def _n_maps(metrics: ByMetric) -> int:
    return max((int(row["n"]) for row in metrics.values()), default=0)
