"""The report's answer: whether super-resolution helps, said no louder than the seeds allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sr_models.registry import CEILING
from tasks.quality_summary import CONTROL
from tasks.report.cells import number, signed
from tasks.report.differences import RARE
from tasks.report.means import Difference, Mean, Subject
from tasks.report.numbers import Numbers

METRIC = "ap_macro"
"""What the answer is about: it needs no threshold."""

type Verdict = Literal["higher", "lower", "unclear", "unclaimed"]


@dataclass(frozen=True, slots=True)
class Against:
    """A branch against another, in points: hundredths of macro AP."""

    sr: str
    value: float
    low: float | None
    high: float | None
    points: str
    """The value as people see it."""
    interval: str
    """Of 95 %, as people see it; empty where there is none."""
    verdict: Verdict
    """higher or lower: the interval excludes 0. unclaimed: fewer than three seeds, or no interval."""


@dataclass(frozen=True, slots=True)
class LabelChange:
    """F2 of one label against the reference, in points."""

    label: str
    rises: bool
    points: str
    interval: str
    """Of 95 %; empty where there is none."""
    significant: bool | None
    """None: nothing is claimed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one classifier says about the run's question, in macro AP on the shown split."""

    classifier: str
    n: int
    """Patches."""
    n_seeds: int
    """Seeds of the branch that has the fewest."""
    chance: str
    """Macro AP of random scores."""
    best: str
    """SR model with the highest mean over seeds, the ceiling aside."""
    value: str
    """That mean."""
    leads: Sequence[tuple[str, str]]
    """"none" and "bicubic", as far as they were run and are not the best, and the best's lead in points."""
    ceiling: str | None
    """Mean of the ceiling; None where it was not run."""
    reference: str
    """What the claims are against: bicubic, or none where bicubic or any network is missing."""
    reference_value: str | None
    """Its mean."""
    claims: Sequence[Against]
    """Every network against the reference, the highest first; empty where nothing may be claimed."""
    enlarging: Against | None
    """Bicubic against none: what the size of the input does alone."""
    lead_intervals: Sequence[tuple[str, str]]
    """What the best leads over, and the lead's interval, where nothing may be claimed and the tables have one."""
    network: str | None
    """The network that does best, whose labels are told; None where none was run."""
    labels: Sequence[LabelChange]
    """The label whose F2 rises most by that network against the reference, and the one whose F2 falls most, of those on
    at least RARE patches; fewer where none rises or falls."""

    @property
    def higher(self) -> list[str]:
        """SR models that are significantly higher than the reference."""
        return [claim.sr for claim in self.claims if claim.verdict == "higher"]


def answers(numbers: Numbers) -> list[Answer]:
    """Return an answer for each classifier that has a macro AP on a branch besides the ceiling."""
    against = {reference: numbers.differences(reference) for reference in (CONTROL, "none")}
    found = []
    for classifier in numbers.classifiers:
        of_branch = {
            sr: numbers.means[Subject(sr, classifier, numbers.split or "")] for sr in numbers.branches(classifier)
        }
        known = {sr: means for sr, means in of_branch.items() if _value(means) is not None}
        rivals = {sr: _value(means) or 0.0 for sr, means in known.items() if sr != CEILING}
        if rivals:
            found.append(_answer(classifier, known, rivals, numbers, against))
    return found


def _answer(
    classifier: str,
    known: Mapping[str, Mapping[str, Mean]],
    rivals: Mapping[str, float],
    numbers: Numbers,
    against: Mapping[str, Mapping[Subject, Mapping[str, Difference]]],
) -> Answer:
    split = numbers.split or ""
    best = max(rivals, key=lambda sr: rivals[sr])
    networks = [sr for sr in rivals if sr not in {"none", CONTROL}]
    reference = CONTROL if CONTROL in rivals and networks else "none"

    def compared(sr: str, reference: str) -> Against | None:
        difference = against[reference].get(Subject(sr, classifier, split), {}).get(METRIC)
        return None if difference is None or difference.value is None else _against(sr, difference)

    claims = [claim for sr in networks or [CONTROL] if (claim := compared(sr, reference)) is not None]
    if all(claim.verdict == "unclaimed" for claim in claims):
        claims = []
    enlarging = compared(CONTROL, "none") if reference == CONTROL else None
    leads = [sr for sr in ("none", CONTROL) if sr in rivals and sr != best]
    lead_intervals = [(sr, lead.interval) for sr in leads if (lead := compared(best, sr)) and lead.interval]
    network = max(networks, key=lambda sr: rivals[sr]) if networks else None
    chance = next((m["prevalence_macro"].value for m in known.values() if "prevalence_macro" in m), None)
    return Answer(
        classifier,
        n=min(means[METRIC].n for means in known.values()),
        n_seeds=min(len(means[METRIC].seeds) for means in known.values()),
        chance=number(chance, 3),
        best=best,
        value=number(rivals[best], 3),
        leads=[(sr, number(100 * (rivals[best] - rivals[sr]), 1)) for sr in leads],
        ceiling=number(_value(known[CEILING]), 3) if CEILING in known else None,
        reference=reference,
        reference_value=number(rivals[reference], 3) if reference in rivals else None,
        claims=sorted(claims, key=lambda claim: -claim.value),
        enlarging=None if enlarging is None or enlarging.verdict == "unclaimed" else enlarging,
        lead_intervals=[] if claims else lead_intervals,
        network=network,
        labels=[] if network is None else _label_changes(network, classifier, numbers, against[reference]),
    )


def _label_changes(
    sr: str, classifier: str, numbers: Numbers, against: Mapping[Subject, Mapping[str, Difference]]
) -> list[LabelChange]:
    """Return the label that gains most and the one that loses most, of those that are on enough patches."""
    often = [row.label for row in numbers.label_rows("f2", classifier) if row.support >= RARE]
    changes = {}
    for label in often:
        difference = against.get(Subject(sr, classifier, numbers.split or "", label), {}).get("f2")
        if difference is not None and difference.value:
            changes[label] = difference
    by_value = sorted(changes, key=lambda label: -(changes[label].value or 0.0))
    told = [label for label in by_value[:1] if (changes[label].value or 0.0) > 0]
    told += [label for label in by_value[-1:] if (changes[label].value or 0.0) < 0]
    return [
        LabelChange(label, change.value > 0, change.points, change.interval, changes[label].significant)
        for label in told
        if (change := _against(sr, changes[label]))
    ]


def _against(sr: str, difference: Difference) -> Against:
    value, low, high = (None if v is None else 100 * v for v in (difference.value, difference.low, difference.high))
    interval = "" if low is None or high is None else f"{signed(low, 1)} to {signed(high, 1)}"
    verdict: Verdict = "unclear"
    if difference.significant is None:
        verdict = "unclaimed"
    elif difference.significant:
        verdict = "higher" if (difference.value or 0.0) > 0 else "lower"
    return Against(sr, value or 0.0, low, high, signed(value, 1), interval, verdict)


def _value(means: Mapping[str, Mean]) -> float | None:
    return means[METRIC].value if METRIC in means else None
