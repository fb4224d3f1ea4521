"""One patch: what the tables say of it, what a branch decided, why it may be trusted, and where the network looks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from explorer.branches import Branch, Clusters
from explorer.pictures import Pictures
from explorer.samples import near, samples
from explorer.snapshot import Snapshot
from tasks.gallery_maps import StoredMaps
from tasks.gallery_rows import BranchRows, explained_folders
from tasks.pictures import map_uri
from tasks.report.map_tables import METHOD_NAMES
from tasks.report.numbers import Numbers

NEIGHBOURS_KM = 10.0
"""How far neighbours may lie."""


class PatchViews:
    """Everything that is shown of one patch, but pictures."""

    def __init__(
        self,
        numbers: Numbers | None,
        patches: Snapshot,
        branches: Mapping[str, Branch],
        pictures: Pictures,
        tints: Mapping[str, str],
    ) -> None:
        """Find the stores of maps, and read what is known of clusters.

        Args:
            numbers: The last run; None: no run has ended.
            patches: All patches.
            branches: The run's branches.
            pictures: The store's pictures.
            tints: Colours of the labels, in their order.
        """
        self._patches, self._pictures, self._tints = patches, pictures, tints
        self._clusters = Clusters(numbers)
        self._maps: dict[str, StoredMaps] = {}
        self._methods: dict[str, list[str]] = {}
        size = pictures.size
        if numbers is not None and size is not None:
            wanted = (numbers.run.settings.get("explain") or {}).get("methods") or ()
            for classifier in dict.fromkeys(branch.classifier for branch in branches.values()):
                maps = StoredMaps(numbers, explained_folders(numbers, classifier), size)
                self._maps[classifier] = maps
                self._methods[classifier] = maps.methods(wanted)

    def patch(self, row: int) -> dict[str, Any]:
        """Return what tables/patches says of a patch, and which pictures there are."""
        patches = self._patches
        (sample,) = samples([row], patches, None)
        lon, lat = (float(value) for value in patches.centres[row])
        has_place = bool(np.isfinite(lon))
        has_pixels = bool(patches.has_pixels[row])
        return {
            **sample,
            "tile": patches.tile.name(row),
            "crs": patches.crs.name(row) or None,
            "has_snow": _flag(patches.has_snow[row]),
            "has_cloud": _flag(patches.has_cloud[row]),
            "shard": int(patches.shard[row]),
            "row": int(patches.row[row]),
            "lon": lon if has_place else None,
            "lat": lat if has_place else None,
            "footprint": patches.corners[row].tolist() if has_place else None,
            "false_colour": has_pixels and self._pictures.has_false_colour,
            "land_cover": has_pixels and bool(patches.has_map[row]),
        }

    def neighbours(self, row: int, limit: int) -> list[dict[str, Any]]:
        """Return the nearest other patches on the ground, with distance and direction; the same ground comes first."""
        lon, lat = (float(value) for value in self._patches.centres[row])
        if not np.isfinite(lon):
            return []
        found = [f for f in near(self._patches, lon, lat, NEIGHBOURS_KM, limit + 1) if f[0] != row][:limit]
        return with_distances(found, self._patches, None)

    def branch(self, row: int, branch: Branch) -> dict[str, Any]:
        """Return what a branch decided on a patch, label by label, and which methods explained it."""
        patch = self._patches.table_row(row)
        prediction = branch.prediction(patch["patch_id"], patch["shard"])
        has_pixels = bool(self._patches.has_pixels[row])
        why_not = self._pictures.why_not(patch, branch.sr, branch.config) if has_pixels else "its pixels are not here"
        return {
            "branch": branch.name,
            "seed": branch.seed,
            "why_no_picture": why_not,
            "labels": [] if prediction is None else self._decisions(patch, branch, prediction),
            "methods": [
                method for method in self._methods.get(branch.classifier, ()) if self._has(branch, method, patch)
            ],
        }

    def maps(self, row: int, branch: Branch, label: str) -> list[dict[str, Any]]:
        """Return every method's map of a label on a patch, or why it is not drawn.

        Args:
            row: The patch.
            branch: The branch.
            label: The label.
        """
        patch = self._patches.table_row(row)
        found = []
        for method in self._methods.get(branch.classifier, ()):
            stored = self._maps[branch.classifier].read(branch.sr, method, patch, label)
            shown = None if stored.values is None else map_uri(stored.values / stored.values.max())
            title = METHOD_NAMES.get(method, method)
            found.append({"method": method, "title": title, "image": shown, "why_not": stored.why_not})
        return found

    def _has(self, branch: Branch, method: str, patch: Mapping[str, Any]) -> bool:
        return self._maps[branch.classifier].has(branch.sr, method, patch)

    def _decisions(
        self, patch: Mapping[str, Any], branch: Branch, prediction: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        rows = BranchRows(branch.sr, branch.config, {patch["patch_id"]: prediction})
        scores = branch.reliability(patch["patch_id"], patch["shard"])
        decisions = []
        for label in rows.labels(patch, self._tints).values():
            score = scores.get(label.name, {})
            decisions.append(
                {
                    "label": label.name,
                    "prob": label.prob,
                    "verdict": label.verdict,
                    "predicted": label.predicted,
                    "reliability": score.get("reliability"),
                    "cluster": score.get("cluster"),
                    "of_cluster": self._clusters.of(branch.reliability_config, label.name, score.get("cluster")),
                }
            )
        return decisions


def with_distances(
    found: Sequence[tuple[int, float, float]], patches: Snapshot, branch: Branch | None, labels: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return samples with how far they lie from a place, and in which direction.

    Args:
        found: Row, km, and degrees clockwise from north.
        patches: All patches.
        branch: Whose decisions are told; None: nobody's.
        labels: Labels that the outcome is about.
    """
    rows = samples([row for row, _, _ in found], patches, branch, labels)
    return [
        {**sample, "distance_km": round(km, 3), "bearing_deg": round(degrees, 1)}
        for sample, (_, km, degrees) in zip(rows, found, strict=True)
    ]


def _flag(value: np.int8) -> bool | None:
    return None if value < 0 else bool(value)
