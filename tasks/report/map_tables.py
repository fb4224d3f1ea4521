"""The tables that the report shows of activation maps, and what a reader of them has to know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from classifiers.cam.methods import FLOOR, METHODS
from tasks.explanation_metrics import EXCESS, UNIFORM
from tasks.quality_summary import CONTROL
from tasks.report.cells import Cell, Column

METHOD_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "cam": "CAM",
        "grad_cam": "Grad-CAM",
        "hires_cam": "HiResCAM",
        "x_grad_cam": "XGrad-CAM",
        "grad_cam_pp": "Grad-CAM++",
        "layer_cam": "LayerCAM",
        "ablation_cam": "Ablation-CAM",
        "smooth_grad_cam_pp": "SmoothGrad-CAM++",
        "eigen_cam": "EigenCAM",
        "hessian_ciam": "Hessian-CIAM",
        "random": "random",
        "score_cam": "Score-CAM",
        "grad_plus_plus_score_cam": "Grad++ScoreCAM",
        "rise": "RISE",
        "occlusion": "occlusion",
        "lime": "LIME",
        UNIFORM: "uniform",
    }
)
"""What people call the methods."""

FLOORS = (UNIFORM, FLOOR)
"""What every method has to rise above; they are never ranked."""

COLUMNS = (
    Column("judd_auc", "Judd AUC", "Area under the ROC of map values against the label's pixels; noise gives 0.5"),
    Column(
        EXCESS,
        "Pointing \N{MINUS SIGN} area",
        "Share of maxima on the label's pixels, less what noise hits; noise gives 0",
    ),
    Column("iou_75", "IoU 75 %", "IoU of the label's pixels and the fewest that hold 75 % of the map's energy"),
    Column("correlation", "Correlation", "Correlation of the map with the label's pixels; noise gives 0"),
    Column("coverage", "Coverage", "Share of the patch where the map is above 0; neither way is better", better=0),
    Column("average_drop", "Drop, %", "Probability lost where the map masks the input, percent of it", 1, -1),
    Column("average_increase", "Increase, %", "Share of maps that raise the probability so", 1),
    Column("deletion_auc", "Deletion", "Mean probability as pixels are deleted by falling map value", better=-1),
    Column("insertion_auc", "Insertion", "Mean probability as pixels are inserted by falling map value"),
)
"""Columns of the tables of methods; those that nothing has a value of are left out."""

MINUS_COLUMNS = COLUMNS[:5]
"""Columns of the differences to bicubic: localisation and coverage."""

QUARTILE_METRIC = "iou_75"
"""What is shown by area: noise scores well on a label that covers much."""

AREA = "area"
"""Stands among the lines of a table by area for the share of the patch that labels cover."""


@dataclass(frozen=True, slots=True)
class MapCell:
    """A mean over maps, or of differences."""

    cell: Cell
    interval: str
    """Of 95 %, tiles resampled; empty where there is none."""
    n: int
    """Maps that have a value."""


@dataclass(frozen=True, slots=True)
class MapLine:
    """A line of a table: one method, or several that are one and the same map."""

    methods: tuple[str, ...]
    n: int | None
    """Maps, zero maps among them; None for uniform, which is none."""
    zeros: int | None
    """Those that are nowhere above 0; None likewise."""
    n_located: int
    """Those whose label the reference map has."""
    cells: Mapping[str, MapCell]
    """By column."""
    rank: int | None = None
    """By Judd AUC; None for floors, and where nothing is known of localisation."""
    pointing_rank: int | None = None
    """By pointing less area, likewise."""

    @property
    def name(self) -> str:
        """What people call the methods."""
        return " = ".join(METHOD_NAMES.get(method, method) for method in self.methods)


@dataclass(frozen=True, slots=True)
class MapTable:
    """The methods on one branch, judged on the same patches."""

    sr: str
    sampled: bool
    """Whether those are the sample of patches alone."""
    columns: Sequence[Column]
    """Those of COLUMNS that have a value on these patches."""
    lines: Sequence[MapLine]
    """The best Judd AUC first."""
    floors: Sequence[MapLine]
    """uniform and random, as far as they are known."""

    @property
    def n_located(self) -> int:
        """Maps whose label the reference map has, zero maps aside, of the method that has the most."""
        return max((line.n_located for line in self.lines or self.floors), default=0)


@dataclass(frozen=True, slots=True)
class MapMinus:
    """A line of the differences: one method on an SR model, minus the same on bicubic."""

    sr: str
    line: MapLine


@dataclass(frozen=True, slots=True)
class MapMinusTable:
    """Differences on the same patches."""

    sampled: bool
    """Whether those are the sample of patches alone."""
    columns: Sequence[Column]
    """Those of MINUS_COLUMNS that have a value."""
    lines: Sequence[MapMinus]


@dataclass(frozen=True, slots=True)
class AreaLine:
    """IoU of one method by quarter of the labels' area, the smallest first."""

    sr: str
    method: str
    """A method, or `AREA`: the mean share of the patch that the labels cover."""
    cells: Sequence[MapCell | None]


@dataclass(frozen=True, slots=True)
class ClassifierMaps:
    """All tables of one classifier."""

    classifier: str
    seed: int
    """Training seed of the network explained."""
    tables: Sequence[MapTable]
    minus: Sequence[MapMinusTable]
    areas: Sequence[AreaLine]

    @property
    def judged(self) -> bool:
        """Whether any map was judged by further passes."""
        return any(column.name == "average_drop" for table in self.tables for column in table.columns)

    @property
    def same(self) -> list[str]:
        """Names of methods that are one map here, once each."""
        lines = [line for table in self.tables for line in table.lines if len(line.methods) > 1]
        return list(dict.fromkeys(line.name for line in lines))


@dataclass(frozen=True, slots=True)
class Maps:
    """What the report says of a run's maps."""

    split: str
    located: bool
    """Whether any map could be compared with land cover."""
    classifiers: Sequence[ClassifierMaps]
    quarantined: Sequence[tuple[str, str, str, int]]
    """SR model, classifier, method, and its maps of all splits that are not finite."""

    @property
    def sampled(self) -> bool:
        """Whether some tables are of the sample alone."""
        return any(table.sampled for of_one in self.classifiers for table in of_one.tables)

    @property
    def notes(self) -> list[str]:
        """What a reader of the tables has to know, sentence by sentence, without any markup."""
        notes = []
        if same := list(dict.fromkeys(name for of_one in self.classifiers for name in of_one.same)):
            heads = "linear heads" if any("CAM" in name.split(" = ") or "Smooth" in name for name in same) else "heads"
            notes.append(
                f"{'; '.join(same)}: one and the same map, but for its unit, on networks whose {heads} see pooled "
                "features alone. Each such line is one vote, not several."
            )
        lines = [line for of_one in self.classifiers for table in of_one.tables for line in table.lines]
        free = [m for line in lines for m in line.methods if m in METHODS and not METHODS[m].per_label]
        if free:
            names = " and ".join(METHOD_NAMES[method] for method in dict.fromkeys(free))
            notes.append(f"{names}: one map of a patch, the same for all of its labels.")
        if self.located:
            notes.append(
                "Floors, never ranked: uniform, a map without any contrast, and random, noise of equal probability."
            )
            notes.append(
                "A rank says nothing where intervals overlap widely: each is of one method alone, and of one seed."
            )
        if any(line.zeros for line in lines):
            notes.append(
                "A zero map, nowhere above 0, has no other number: a method that has some is ranked by its other maps."
            )
        if self.sampled:
            notes.append(
                "Tables of the sample are of the patches of explain.sample alone, and rank all methods on them: on no "
                "others were the methods run that cost many passes, and were maps judged by further passes."
            )
            notes.append(
                "Rare labels are over-represented in the sample on purpose: its numbers compare methods, and are no "
                "estimates for the archive."
            )
        return notes

    @property
    def minus_note(self) -> str:
        """What the differences to bicubic are."""
        return (
            f"Each SR model minus {CONTROL} on the same patches and labels. Their maps have one size; those of none "
            "are smaller, so nothing is compared with none. Maps are of one seed: no significance is claimed."
        )

    @property
    def area_note(self) -> str:
        """What the table by area is for."""
        return (
            "Labels in quarters by the share of the patch that they cover: on a large one noise scores well, so a "
            "method has to be read against the floors of its own column."
        )

    @property
    def faults(self) -> str:
        """How many maps are quarantined."""
        if not self.quarantined:
            return "No map is quarantined: all are finite."
        count = sum(n for *_, n in self.quarantined)
        told = ", ".join(
            f"{n} of {METHOD_NAMES.get(method, method)} on {sr} with {classifier}"
            for sr, classifier, method, n in self.quarantined
        )
        return f"{count} map{' is' if count == 1 else 's are'} not finite and so quarantined, over all splits: {told}."
