"""Checks of the archive: whether its root is where RUN.yaml says, is the right folder of it, and can be read."""

import os
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from flows.doctor.case import Case, Finding, fail, ok, warn
from infra import object_store
from infra.archives import bigearthnet_v1, bigearthnet_v2, scene
from infra.archives.image_file import SUFFIXES as PICTURES
from infra.archives.tar_reader import SUFFIXES as TARS
from infra.archives.tar_reader import is_tar
from infra.errors import PipelineError
from infra.object_store import ObjectPath

_LOOKED_AT = 300
"""Files that are opened, and entries of a folder that are looked at."""

_DEEPER = 2
"""Levels below and above the named root where the archive is looked for."""

_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp", ".!qB")
"""Endings that downloaders give to what is not whole yet."""


def _is_v2(folder: Path) -> bool:
    tar = any((folder / f"{bigearthnet_v2.S2_FOLDER}{suffix}").is_file() for suffix in TARS)
    return (folder / bigearthnet_v2.METADATA).is_file() and (tar or (folder / bigearthnet_v2.S2_FOLDER).is_dir())


def _is_v1(folder: Path) -> bool:
    tar = any((folder / f"{bigearthnet_v1.S2_FOLDER}{suffix}").is_file() for suffix in TARS)
    return tar or (folder / bigearthnet_v1.S2_FOLDER).is_dir()


def _is_scene(folder: Path) -> bool:
    names = _names(folder)
    return scene.METADATA in names or any(scene.is_band_file(name) for name in names)


def _holds_scenes(folder: Path) -> bool:
    return _is_scene(folder) or any(_is_scene(inner) for inner in _folders(folder))


def _holds_classes(folder: Path) -> bool:
    return any(_has_pictures(inner) for inner in _folders(folder))


def _has_pictures(folder: Path) -> bool:
    return any(name.lower().endswith(tuple(PICTURES)) for name in _names(folder))


ROOTS: Mapping[str, tuple[Callable[[Path, Case], bool], str]] = MappingProxyType(
    {
        "bigearthnet-v2": (
            lambda folder, _: _is_v2(folder),
            f"holds {bigearthnet_v2.METADATA} and {bigearthnet_v2.S2_FOLDER}",
        ),
        "bigearthnet-v1": (lambda folder, _: _is_v1(folder), f"holds {bigearthnet_v1.S2_FOLDER}"),
        "scene": (lambda folder, _: _holds_scenes(folder), "is a scene, with a file a band, or holds such folders"),
        "image-folder": (lambda folder, _: _holds_classes(folder), "holds a folder a class, with pictures"),
        "image-table": (lambda folder, case: (folder / case.label_table).is_file(), "holds its table of labels"),
    }
)
"""How the root of each layout is told, and in words."""


def root(case: Case) -> Finding | None:
    """Look whether the root is there."""
    place = case.archive
    if place is None:
        return None
    if isinstance(place, ObjectPath):
        try:
            object_store.ask_once(place)
            there = place.exists()
        except PipelineError as error:
            return fail(str(error))
        return ok(str(place)) if there else fail(f"nothing is at {place}")
    if place.is_dir() or (place.is_file() and is_tar(place)):
        return ok(str(place))
    if place.is_file():
        return fail(f"{place} is a file, and no tar archive")
    if place.is_symlink():
        return fail(f"{place} is a link to {os.readlink(place)}, which is not there")  # noqa: PTH115  # as it is written
    return fail(f"there is no {place}{_instead(place)}")


def spelling(case: Case) -> Finding | None:
    """Look whether a place that is not there is there in capital or small letters, or nearly of that name."""
    if not case.places:
        return None
    wrong = []
    for name, path in case.places.items():
        if name != "store" and not path.exists() and (there := actual(path)) is not None:
            wrong.append(f"{name}: {path} is {there}")
    folder = case.local_archive
    known = (bigearthnet_v2, bigearthnet_v1) if case.layout in {"bigearthnet-v2", "bigearthnet-v1"} else ()
    if folder is not None and folder.is_dir() and known:
        names = _names(folder)
        module = bigearthnet_v2 if case.layout == "bigearthnet-v2" else bigearthnet_v1
        wanted = [module.S2_FOLDER, module.S1_FOLDER]
        wanted += [bigearthnet_v2.MAP_FOLDER, bigearthnet_v2.METADATA] if module is bigearthnet_v2 else []
        for name in wanted:
            others = [other for other in names if other != name and other.casefold() == name.casefold()]
            if name not in names and others:
                wrong.append(f"{folder / others[0]} is to be {name}")
    return fail("; ".join(wrong)) if wrong else ok("every place is spelled as it is on the disk")


def actual(path: Path) -> Path | None:
    """Return a path as it is spelled on the disk, where only capital and small letters differ; None: there is none."""
    there = Path(path.absolute().anchor)
    for part in path.absolute().parts[1:]:
        step = there / part
        if not step.exists():
            same = [name for name in _names(there) if name.casefold() == part.casefold()]
            if not same:
                return None
            step = there / same[0]
        there = step
    return there


def _instead(path: Path) -> str:
    """Return what may have been meant by a path that is not there."""
    if (there := actual(path)) is not None:
        return f": it is spelled {there}"
    missing = next(place for place in (*reversed(path.absolute().parents), path.absolute()) if not place.exists())
    close = get_close_matches(missing.name, _names(missing.parent), n=1)
    return f": did you mean {missing.parent / close[0]}?" if close else f"; {missing.parent} has no {missing.name}"


def level(case: Case) -> Finding | None:
    """Look whether the root is the archive's own folder, not one above or below it."""
    folder, layout = case.local_archive, case.layout
    if folder is None or layout is None or layout not in ROOTS or not folder.is_dir():
        return None
    is_root, words = ROOTS[layout]
    if is_root(folder, case):
        return ok(f"{folder} {words}")
    for other in (*_below(folder, _DEEPER), *list(folder.absolute().parents)[:_DEEPER]):
        if is_root(other, case):
            return fail(f"{folder} is not the archive's root: {other} is, which {words}")
    return fail(f"{folder} is no archive of the layout {layout}: its root {words}")


def _below(folder: Path, levels: int) -> Iterator[Path]:
    inner = _folders(folder)
    yield from inner
    if levels > 1:
        for each in inner:
            yield from _below(each, levels - 1)


def readable(case: Case) -> Finding | None:
    """Look whether files of the archive can be read: a few hundred of them."""
    place = case.local_archive
    if place is None or not place.exists():
        return None
    faults: dict[Path, str] = {}
    count = 0
    for path in islice(_files(place, faults), _LOOKED_AT):
        count += 1
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError as error:
            faults[path] = error.strerror or type(error).__name__
    if faults:
        path, why = next(iter(faults.items()))
        return fail(f"{len(faults)} of {max(count, len(faults))} looked at cannot be read, such as {path}: {why}")
    return ok(f"{count} files were opened") if count else warn(f"{place} holds no file")


def _files(place: Path, faults: dict[Path, str]) -> Iterator[Path]:
    """Yield files below a folder; folders that cannot be listed are noted."""
    if place.is_file():
        yield place
        return

    def note(error: OSError) -> None:
        faults[Path(error.filename)] = error.strerror or type(error).__name__

    for folder, folders, names in os.walk(place, onerror=note):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def unfinished(case: Case) -> Finding | None:
    """Look whether parts of the archive are still being downloaded, or were cut off."""
    place = case.local_archive
    if place is None or not place.exists():
        return None
    folder = place if place.is_dir() else place.parent
    left = sorted(name for name in _names(folder) if name.endswith(_UNFINISHED))
    whole = [name for name in _names(folder) if name.endswith((*TARS, ".parquet"))]
    empty = [name for name in whole if not (folder / name).stat().st_size]
    wrong = [*left, *(f"{name} (empty)" for name in empty)]
    return warn(f"in {folder}: {', '.join(wrong)}") if wrong else ok("no unfinished download lies beside it")


def _names(folder: Path) -> list[str]:
    """Return what lies in a folder, as far as a few hundred; nothing where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, _LOOKED_AT))
    except OSError:
        return []


def _folders(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder) if name[0] != "." and (folder / name).is_dir()]
