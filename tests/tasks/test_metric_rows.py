import numpy as np
import pytest
from sklearn import metrics as sk

from classifiers.metrics import BINS, OVERALL, PER_LABEL
from infra.bigearthnet.classes import NAMES
from infra.errors import PipelineError
from tasks.metric_rows import Bootstrap, MetricRow, calibrations, known_labels, metric_rows, scored_patches
from tests.tasks.scored_case import COUNT, COUNTRY, Case

type Rows = dict[tuple[str, str | None, str | None, str, str | None], MetricRow]


def rows_of(case: Case, resamples: int = 3, *, tiles: bool = True, seed: int = 0) -> Rows:
    case.probs = {seed: case.probs[seed]}
    scored = scored_patches(case.predictions(), case.patches(tiles=tiles))
    found = list(metric_rows(scored, NAMES, Bootstrap(resamples)))
    rows = {(r.subset.split, r.subset.country, r.subset.season, r.metric, r.label): r for r in found}
    assert len(rows) == len(found)
    return rows


def value(rows: Rows, *key: str | None) -> float:
    return rows[key].interval.value  # type: ignore[index]


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_are_scikit_learn_s_on_clean_labelled_patches_overall_and_by_place(seed: int) -> None:
    case = Case()
    rows = rows_of(case, seed=seed)
    everywhere = [(None, None), *((c, None) for c in set(COUNTRY.values())), (None, "summer"), (None, "winter")]
    assert {key[:3] for key in rows} == {(s, *place) for s in ("train", "test") for place in everywhere}
    assert len(rows) == 2 * len(everywhere) * (len(OVERALL) + COUNT * len(PER_LABEL))
    for split, country, season in {key[:3] for key in rows}:
        chosen = case.scored(split)
        assert 0 < len(chosen) < np.count_nonzero(case.split == split)
        if country:
            chosen = np.array([i for i in chosen if COUNTRY[case.tile[i]] == country])
        if season:
            chosen = chosen[case.season[chosen] == season]
        t, probs = case.truth[chosen].astype(int), case.probs[seed][chosen]
        p = case.predicted(seed)[chosen].astype(int)
        some = t.any(axis=0)
        assert not some[5]
        overall = {
            "acc": sk.jaccard_score(t, p, average="samples", zero_division=0),
            "hl": sk.hamming_loss(t, p),
            "f1_macro": sk.f1_score(t, p, average="macro", zero_division=0),
            "f2_macro": sk.fbeta_score(t, p, beta=2, average="macro", zero_division=0),
            "ap_macro": sk.average_precision_score(t[:, some], probs[:, some], average="macro"),
            "ap_micro": sk.average_precision_score(t, probs, average="micro"),
            "ranking_loss": sk.label_ranking_loss(t, probs),
            "prevalence_macro": t[:, some].mean(),
        }
        for metric, expected in overall.items():
            row = rows[split, country, season, metric, None]
            assert row.interval.value == pytest.approx(expected, abs=1e-12), metric
            assert row.subset.n == len(chosen)
            assert row.n_labels == (COUNT if metric in {"f1_macro", "f2_macro"} else some.sum())
        f1 = sk.f1_score(t, p, average=None, zero_division=0)
        for i, name in enumerate(NAMES):
            assert value(rows, split, country, season, "f1", name) == pytest.approx(f1[i], abs=1e-12)
            assert value(rows, split, country, season, "support", name) == t[:, i].sum()
            ap = sk.average_precision_score(t[:, i], probs[:, i]) if some[i] else np.nan
            assert value(rows, split, country, season, "ap", name) == pytest.approx(ap, abs=1e-12, nan_ok=True)


def test_rows_do_not_depend_on_the_order_of_the_predictions() -> None:
    case = Case(seeds=(0,))
    predictions, patches = case.predictions(), case.patches()
    rng = np.random.default_rng(1)
    shuffled = predictions.take(rng.permutation(len(predictions))), patches.take(rng.permutation(len(patches)))
    ours, theirs = (
        [(r.subset, r.metric, r.label, str(r.interval), r.draws.tobytes()) for r in metric_rows(t, NAMES, Bootstrap(5))]
        for t in (scored_patches(*shuffled), scored_patches(predictions, patches))
    )
    assert ours == theirs


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("season", [None, "summer"])
def test_intervals_resample_tiles_where_every_patch_has_one_and_patches_otherwise(
    tiles: bool, season: str | None
) -> None:
    """The Hamming loss of patches that are repeated in memory as they are drawn."""
    case = Case()
    case.flag[0], case.labelled[0] = "", True  # the patch that loses its tile is scored
    rows = rows_of(case, 50, tiles=tiles)
    split = str(case.split[0])
    chosen = case.scored(split)
    if season:
        chosen = chosen[case.season[chosen] == season]
    wrong = case.predicted(0)[chosen] != case.truth[chosen]
    clusters = case.tile[chosen] if tiles else np.arange(len(chosen))
    members = [np.flatnonzero(clusters == name) for name in np.unique(clusters)]
    assert len(members) == (4 if tiles else len(chosen))
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(50):
        drawn = rng.integers(len(members), size=len(members))
        draws.append(wrong[np.concatenate([members[i] for i in drawn])].mean())
    row = rows[split, None, season, "hl", None]
    assert row.interval[1:] == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=1e-12)
    np.testing.assert_allclose(row.draws, draws, rtol=1e-6)


def test_one_tile_leaves_nothing_to_resample() -> None:
    rows = rows_of(Case())
    assert rows["test", "Serbia", None, "hl", None].draws.size == 0  # a country of one tile
    assert np.isnan(rows["test", "Serbia", None, "hl", None].interval.low)
    assert rows["test", "Austria", None, "hl", None].draws.size == 3


def test_an_archive_without_labels_has_no_metrics() -> None:
    case = Case()
    case.labelled[:] = False
    for predictions in (case.predictions(), case.predictions().slice(0, 0)):
        scored = scored_patches(predictions, case.patches())
        assert not list(metric_rows(scored, NAMES, Bootstrap(3)))
        assert not list(calibrations(scored, NAMES))


def test_only_labels_that_a_classifier_knows_are_scored() -> None:
    case = Case(seeds=(0,))
    case.known[:] = False
    case.known[[2, 7]] = True
    rows = rows_of(case)
    assert {key[4] for key in rows} == {None, NAMES[2], NAMES[7]}
    chosen = case.scored("test")
    t, p = case.truth[chosen][:, [2, 7]], case.predicted(0)[chosen][:, [2, 7]]
    assert value(rows, "test", None, None, "hl", None) == pytest.approx((t != p).mean())
    scored = scored_patches(case.predictions(), case.patches())
    assert known_labels(scored, NAMES) == (NAMES[2], NAMES[7])
    ((split, found), _) = calibrations(scored, NAMES)
    assert (split, found.n.sum()) == ("test", t.size)


def test_a_probability_that_is_not_a_number_is_no_label_unknown() -> None:
    """A network that gave NaN for one patch must not lose the label from its metrics unnoticed."""
    case = Case(seeds=(0,))
    case.probs[0][case.scored("test")[3], 4] = np.nan
    scored = scored_patches(case.predictions(), case.patches())
    with pytest.raises(PipelineError, match=f"{NAMES[4]}.*{case.ids[case.scored('test')[3]]}"):
        list(metric_rows(scored, NAMES, Bootstrap(3)))


def test_decisions_are_the_table_s_though_no_threshold_makes_them() -> None:
    """A softmax classifier predicts the one most probable label."""
    case = Case(seeds=(0,))
    case.probs = {0: (case.probs[0] / case.probs[0].sum(axis=1, keepdims=True)).astype(np.float32)}
    one = np.eye(COUNT, dtype=bool)[case.probs[0].argmax(axis=1)]
    case.predicted = lambda seed: one  # type: ignore[method-assign]
    rows = rows_of(case)
    chosen = case.scored("test")
    expected = sk.precision_score(
        case.truth[chosen].astype(int), one[chosen].astype(int), average="samples", zero_division=0
    )
    assert value(rows, "test", None, None, "precision", None) == pytest.approx(expected, abs=1e-12)
    assert value(rows, "test", None, None, "empty_predicted_share", None) == 0


def test_calibration_is_of_each_split_and_agrees_with_the_metric() -> None:
    case = Case(seeds=(0,))
    rows = rows_of(case)
    for split, found in calibrations(scored_patches(case.predictions(), case.patches()), NAMES):
        chosen = case.scored(split)
        probs = case.probs[0][chosen].astype(np.float64)
        assert found.n.tolist() == np.histogram(probs, BINS, (0, 1))[0].tolist()
        gaps = np.histogram(probs, BINS, (0, 1), weights=probs - case.truth[chosen])[0]
        assert value(rows, split, None, None, "ece", None) == pytest.approx(np.abs(gaps).sum() / probs.size)
