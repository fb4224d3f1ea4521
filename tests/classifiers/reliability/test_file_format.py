"""Oracles: round trips, and files that were damaged or made up on purpose."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from classifiers.reliability import ClusterSettings, FittedReliability, Reliability, from_bytes, to_bytes
from classifiers.reliability.file_format import _KEYS, FORMAT, _digest
from infra.errors import WeightsError
from tests.classifiers.reliability.fits import fit_samples
from tests.classifiers.reliability.map_patterns import varied

MAPS_OF = {"method": "grad_cam", "options": {"sizes": [3, 5]}, "layer": "layer4"}
HOW = ClusterSettings(3, 5, 3, 0.25, 70, 7)


def fitted(seed: int) -> Reliability:
    rng = np.random.default_rng(seed)
    truth = rng.random(80) < 0.4
    return fit_samples(varied(80, rng, size=6), truth ^ (rng.random(80) < 0.3), truth, HOW, 0.6)


ONE = fitted(0)
WHY = "no decision is wrong"
BOTH = FittedReliability(HOW, 0.6, False, MAPS_OF, {"Urban fabric": ONE, "Pastures": fitted(1)}, {"Arable land": WHY})
CONTENT = to_bytes(FittedReliability(HOW, 0.6, True, MAPS_OF, {"": ONE}))

type Arrays = dict[str, NDArray[Any]]


def opened(content: bytes) -> tuple[dict[str, Any], Arrays]:
    length = int.from_bytes(content[:8], "little")
    about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["superscene"])
    return about, dict(safetensors.numpy.load(content))


def closed(about: dict[str, Any], arrays: Arrays) -> bytes:
    """A file with a hash that is right, whatever else is wrong."""
    about["sha256"] = _digest(about, arrays)
    return bytes(safetensors.numpy.save(arrays, {"superscene": json.dumps(about)}))


def test_a_file_gives_back_what_was_fitted_and_equal_fits_equal_bytes() -> None:
    maps = varied(200, np.random.default_rng(9), size=6)
    content = to_bytes(BOTH)
    assert content == to_bytes(replace(BOTH, by_label={"Pastures": fitted(1), "Urban fabric": fitted(0)}))
    found = from_bytes(content)
    assert sorted(found.by_label) == ["Pastures", "Urban fabric"]
    assert to_bytes(found) == content
    again = found.by_label["Urban fabric"]
    for name in ("counts", "prototypes", "error_rate", "n", "flipped"):
        np.testing.assert_array_equal(getattr(again, name), getattr(ONE, name))
    assert (found.settings, found.threshold, found.pooled, found.maps_of) == (HOW, 0.6, False, MAPS_OF)
    assert found.why_not == {"Arable land": WHY}
    assert again.threshold == 0.6
    assert np.array_equal(again.assign(maps), ONE.assign(maps))
    assert len(np.unique(again.assign(maps))) == 3


def test_a_file_of_no_fit_says_how_none_came_about() -> None:
    nothing = FittedReliability(HOW, 0.6, True, MAPS_OF, {}, {"": WHY})
    assert from_bytes(to_bytes(nothing)) is not nothing
    found = from_bytes(to_bytes(nothing))
    for name in ("settings", "threshold", "pooled", "maps_of", "by_label", "why_not"):
        assert getattr(found, name) == getattr(nothing, name)


def test_a_cluster_without_samples_survives() -> None:
    about, arrays = opened(CONTENT)
    arrays["0.counts"] = arrays["0.counts"] * [[1], [1], [0]]
    arrays["0.prototypes"] = np.where(np.arange(3)[:, None, None] == 2, np.nan, arrays["0.prototypes"]).astype(
        np.float32
    )
    found = from_bytes(closed(about, arrays)).by_label[""]
    assert np.isnan(found.error_rate[2])
    assert np.isnan(found.prototypes[2]).all()


@given(st.integers(0, len(CONTENT) - 1))
@settings(deadline=None, max_examples=200)
def test_no_part_of_a_file_passes_for_a_file(length: int) -> None:
    with pytest.raises(WeightsError, match="damaged"):
        from_bytes(CONTENT[:length])


@given(st.integers(0, len(CONTENT) - 1), st.integers(0, 7))
@settings(deadline=None, max_examples=400)
def test_no_flipped_bit_goes_unseen(place: int, bit: int) -> None:
    damaged = bytearray(CONTENT)
    damaged[place] ^= 1 << bit
    with pytest.raises(WeightsError):
        from_bytes(bytes(damaged))


def test_no_flipped_bit_of_the_header_goes_unseen() -> None:
    for place in range(8 + int.from_bytes(CONTENT[:8], "little")):
        damaged = bytearray(CONTENT)
        damaged[place] ^= 1 << (place % 8)
        with pytest.raises(WeightsError):
            from_bytes(bytes(damaged))


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_bytes_of_any_kind_are_refused(content: bytes) -> None:
    with pytest.raises(WeightsError, match="damaged, or something else"):
        from_bytes(content)


def with_header(text: str) -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode()


def in_metadata(value: object) -> bytes:
    return bytes(safetensors.numpy.save({"x": np.zeros(2)}, {"superscene": json.dumps(value)}))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"a": 1}),
        b"PK\x03\x04" + bytes(100),
        CONTENT + b"\0",
        b"\0" + CONTENT,
        with_header("[" * 100_000),
        with_header('{"__metadata__":{"superscene":"' + "[" * 100_000 + '"}}'),
        with_header("[]"),
        with_header('{"__metadata__":null}'),
        with_header('{"__metadata__":{"superscene":7}}'),
        with_header('{"__metadata__":{"superscene":"{}"}}'),
        bytes(safetensors.numpy.save({"x": np.zeros(2)})),
        in_metadata(None),
        in_metadata([]),
        in_metadata("1"),
        in_metadata({"format": FORMAT}),
        in_metadata({"format": FORMAT, "labels": None, "sha256": ""}),
        in_metadata({"format": FORMAT, **dict.fromkeys(_KEYS - {"format"})}),
    ],
    ids=range(17),
)
def test_files_of_something_else_are_refused(content: bytes) -> None:
    with pytest.raises(WeightsError, match="damaged, or something else"):
        from_bytes(content)


def test_a_newer_format_is_told_before_its_arrays_are_read() -> None:
    text = json.dumps({"format": FORMAT + 1, "news": True})
    arrays = '"x":{"dtype":"F7","shape":[1],"data_offsets":[0,9]}'
    with pytest.raises(WeightsError, match=f"format {FORMAT + 1}, this version reads {FORMAT}: fit it anew"):
        from_bytes(with_header(f'{{"__metadata__":{{"superscene":{json.dumps(text)}}},{arrays}}}'))


CHANGES: dict[str, Callable[[dict[str, Any], Arrays], object]] = {
    "a setting too many": lambda about, arrays: about["settings"].update(shape="round"),
    "a setting too few": lambda about, arrays: about["settings"].pop("seed"),
    "a setting in words": lambda about, arrays: about["settings"].update(neighbours="5"),
    "half a neighbour": lambda about, arrays: about["settings"].update(neighbours=5.5),
    "no neighbour": lambda about, arrays: about["settings"].update(neighbours=0),
    "an endless kernel": lambda about, arrays: about["settings"].update(kernel_scale=10**400),
    "settings in a list": lambda about, arrays: about.update(settings=[1, 2]),
    "no settings": lambda about, arrays: about.pop("settings"),
    "a key too many": lambda about, arrays: about.update(more=1),
    "threshold out of range": lambda about, arrays: about.update(threshold=1.5),
    "threshold in a list": lambda about, arrays: about.update(threshold=[0.5]),
    "threshold beyond floats": lambda about, arrays: about.update(threshold=10**400),
    "pooled in words": lambda about, arrays: about.update(pooled="true"),
    "a pooled fit of a label": lambda about, arrays: about.update(labels=["Pastures"]),
    "fits of labels that are pooled": lambda about, arrays: about.update(pooled=False),
    "a label that is a number": lambda about, arrays: about.update(labels=[7]),
    "a label that is a list": lambda about, arrays: about.update(labels=[["a"]]),
    "maps of a list": lambda about, arrays: about.update(maps_of=[]),
    "reasons in a list": lambda about, arrays: about.update(why_not=["a"]),
    "a reason that is a number": lambda about, arrays: about.update(why_not={"": 3}),
    "a reason of a label, pooled": lambda about, arrays: about.update(why_not={"Pastures": "none"}),
    "no fit for the arrays": lambda about, arrays: about.update(labels=[]),
    "fits that are no list": lambda about, arrays: about.update(labels=3),
    "fits by name": lambda about, arrays: about.update(labels={"": 0}),
    "a fit without arrays": lambda about, arrays: about["labels"].append("a"),
    "the same label twice": lambda about, arrays: (
        about["labels"].append(""),
        arrays.update({name.replace("0.", "1."): values for name, values in arrays.items()}),
    ),
    "an array too many": lambda about, arrays: arrays.update({"0.more": np.zeros(3)}),
    "an array too few": lambda about, arrays: arrays.pop("0.mean"),
    "doubles": lambda about, arrays: arrays.update({"0.mean": arrays["0.mean"].astype(np.float64)}),
    "clusters in floats": lambda about, arrays: arrays.update(
        {"0.of_landmarks": arrays["0.of_landmarks"].astype(np.float32)}
    ),
    "landmarks of other components": lambda about, arrays: arrays.update(
        {"0.landmarks": np.ascontiguousarray(arrays["0.landmarks"][:, 1:])}
    ),
    "components of other maps": lambda about, arrays: arrays.update(
        {"0.components": np.ascontiguousarray(arrays["0.components"][:, 1:])}
    ),
    "flat prototypes": lambda about, arrays: arrays.update({"0.prototypes": arrays["0.prototypes"].reshape(3, -1)}),
    "flat landmarks": lambda about, arrays: arrays.update({"0.landmarks": arrays["0.landmarks"].ravel()}),
    "five outcomes": lambda about, arrays: arrays.update({"0.counts": np.zeros((3, 5), np.int64)}),
    "counts of other clusters": lambda about, arrays: arrays.update({"0.counts": np.zeros((4, 4), np.int64)}),
    "counts below 0": lambda about, arrays: arrays.update({"0.counts": -arrays["0.counts"]}),
    "a cluster below 0": lambda about, arrays: arrays.update({"0.of_landmarks": arrays["0.of_landmarks"] - 1}),
    "a cluster too high": lambda about, arrays: arrays.update({"0.of_landmarks": arrays["0.of_landmarks"] + 1}),
    "landmarks that are no numbers": lambda about, arrays: arrays.update(
        {"0.landmarks": arrays["0.landmarks"] * np.nan}
    ),
    "components without end": lambda about, arrays: arrays.update({"0.components": arrays["0.components"] + np.inf}),
    "no landmarks": lambda about, arrays: arrays.update(
        {"0.landmarks": np.zeros((0, 5), np.float32), "0.of_landmarks": np.zeros(0, np.int32)}
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_contents_that_contradict_each_other_are_refused(change: Callable[[dict[str, Any], Arrays], object]) -> None:
    about, arrays = opened(CONTENT)
    assert to_bytes(from_bytes(closed(about, arrays))) == CONTENT
    change(about, arrays)
    with pytest.raises(WeightsError, match="damaged, or something else"):
        from_bytes(closed(about, arrays))


def test_the_message_says_what_is_wrong() -> None:
    about, arrays = opened(CONTENT)
    arrays["0.mean"] = np.zeros(35, np.float32)
    with pytest.raises(WeightsError, match=r"mean is float32 \(35,\), not float32 \(36,\)"):
        from_bytes(closed(about, arrays))
    about, arrays = opened(CONTENT)
    about["settings"]["shape"] = "round"
    with pytest.raises(WeightsError, match=r"settings \['shape'\] are missing, or too many"):
        from_bytes(closed(about, arrays))
