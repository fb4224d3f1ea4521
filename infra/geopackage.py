"""Writing a layer of polygons as a GeoPackage: SQLite with a few tables of its own, which every GIS opens.

Source: OGC 12-128r19, GeoPackage 1.4: clauses 1.1 (tables), 2.1.3 (the header before a geometry's WKB) and extension
F.3 (the spatial index; its triggers keep it true when a GIS edits the layer, and use functions that the GIS brings).
"""

import sqlite3
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self

import numpy as np
import pyproj
import shapely

from infra.errors import ShapeError

type Value = str | int | float | None
"""A cell: SQLite has no others that are used here."""

_APPLICATION_ID = 0x47504B47  # "GPKG"
_VERSION = 10_400
_EPSG = 4326
_HEADER = struct.Struct("<2sBBi4d")
_LITTLE_ENDIAN_WITH_BOX = 0b11

_TABLES = """
CREATE TABLE gpkg_spatial_ref_sys (
  srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY, organization TEXT NOT NULL,
  organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (
  table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE, description TEXT DEFAULT '',
  last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
  min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (
  table_name TEXT NOT NULL UNIQUE REFERENCES gpkg_contents(table_name), column_name TEXT NOT NULL,
  geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL REFERENCES gpkg_spatial_ref_sys(srs_id),
  z TINYINT NOT NULL, m TINYINT NOT NULL, PRIMARY KEY (table_name, column_name));
CREATE TABLE gpkg_extensions (
  table_name TEXT, column_name TEXT, extension_name TEXT NOT NULL, definition TEXT NOT NULL, scope TEXT NOT NULL,
  UNIQUE (table_name, column_name, extension_name));
"""

_HAS = "NEW.geom NOTNULL AND NOT ST_IsEmpty(NEW.geom)"
_HAD = "OLD.geom NOTNULL AND NOT ST_IsEmpty(OLD.geom)"
_HAS_NONE = "(NEW.geom ISNULL OR ST_IsEmpty(NEW.geom))"
_HAD_NONE = "(OLD.geom ISNULL OR ST_IsEmpty(OLD.geom))"
_PUT = (
    "INSERT OR REPLACE INTO {index} VALUES "
    "(NEW.fid, ST_MinX(NEW.geom), ST_MaxX(NEW.geom), ST_MinY(NEW.geom), ST_MaxY(NEW.geom));"
)
_MOVE = (
    "UPDATE {index} SET minx = ST_MinX(NEW.geom), maxx = ST_MaxX(NEW.geom), miny = ST_MinY(NEW.geom), "
    "maxy = ST_MaxY(NEW.geom) WHERE id = NEW.fid;"
)
_DROP = "DELETE FROM {index} WHERE id = OLD.fid;"
_TRIGGERS: Mapping[str, tuple[str, str, str]] = {
    "insert": ("AFTER INSERT", _HAS, _PUT),
    "update2": ("AFTER UPDATE OF geom", f"OLD.fid = NEW.fid AND {_HAS_NONE}", _DROP),
    "update4": (
        "AFTER UPDATE",
        f"OLD.fid != NEW.fid AND {_HAS_NONE}",
        "DELETE FROM {index} WHERE id IN (OLD.fid, NEW.fid);",
    ),
    "update5": ("AFTER UPDATE", f"OLD.fid != NEW.fid AND {_HAS}", _DROP + " " + _PUT),
    "update6": (
        "AFTER UPDATE OF geom",
        f"OLD.fid = NEW.fid AND {_HAS} AND {_HAD}",
        _MOVE,
    ),
    "update7": ("AFTER UPDATE OF geom", f"OLD.fid = NEW.fid AND {_HAS} AND {_HAD_NONE}", _PUT),
    "delete": ("AFTER DELETE", "OLD.geom NOTNULL", _DROP),
}
"""Of the spatial index: when, on which rows, and what it does."""


class GeoPackageWriter:
    """A new file with one layer of polygons in EPSG:4326, longitude first; a context manager.

    Nothing is kept in memory but the rows that are being added. When the block ends without an error, the file is
    whole.
    """

    def __init__(self, path: Path, layer: str, columns: Mapping[str, str], description: str) -> None:
        """Begin a file.

        Args:
            path: A file of this machine that is not there yet.
            layer: Name of the layer: letters, digits and underscores.
            columns: Types of its columns besides fid and geom, as GeoPackage names them: TEXT, INTEGER, REAL, …
            description: One sentence for a person.
        """
        self._layer, self._index = layer, f"rtree_{layer}_geom"
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self._n = 0
        self._file = sqlite3.connect(path, isolation_level=None)
        for pragma in (f"application_id = {_APPLICATION_ID}", f"user_version = {_VERSION}"):
            self._file.execute(f"PRAGMA {pragma}")
        self._file.execute("PRAGMA journal_mode = OFF")  # half a file is thrown away, never repaired
        self._file.execute("PRAGMA synchronous = OFF")
        self._file.executescript(_TABLES)
        self._file.execute("BEGIN")
        self._file.executemany("INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, ?)", _reference_systems())
        names = ", ".join(f'"{name}" {type_}' for name, type_ in columns.items())
        self._file.execute(
            f'CREATE TABLE "{layer}" (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom POLYGON, {names})'
        )
        self._file.execute(f'CREATE VIRTUAL TABLE "{self._index}" USING rtree(id, minx, maxx, miny, maxy)')
        self._file.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, srs_id) VALUES (?, ?, ?, ?, ?)",
            (layer, "features", layer, description, _EPSG),
        )
        self._file.execute("INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'POLYGON', ?, 0, 0)", (layer, _EPSG))
        self._insert = f'INSERT INTO "{layer}" VALUES ({", ".join("?" * (len(columns) + 2))})'  # noqa: S608  # our names

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with closing(self._file):
            if kind is None:
                self._finish()

    def add(self, wkb: Sequence[bytes | None], rows: Iterable[Sequence[Value]]) -> None:
        """Add rows.

        Args:
            wkb: A polygon for each, longitude first; None: it has no place.
            rows: Their values, in the order of the columns, as many.

        Raises:
            ShapeError: They are not as many.
        """
        shapes = shapely.from_wkb(np.array(wkb, object))
        boxes = shapely.bounds(shapes)
        there = ~np.isnan(boxes[:, 0])
        first = self._n + 1
        values = [
            (first + i, _blob(polygon, box) if polygon is not None else None, *row)
            for i, (polygon, box, row) in enumerate(zip(wkb, boxes.tolist(), rows, strict=False))
        ]
        if len(values) != len(wkb):
            raise ShapeError(f"a GeoPackage needs one row for each polygon, got {len(values)} for {len(wkb)}")
        self._file.executemany(self._insert, values)
        ids = np.flatnonzero(there) + first
        index = [(int(i), x0, x1, y0, y1) for i, (x0, y0, x1, y1) in zip(ids, boxes[there].tolist(), strict=True)]
        self._file.executemany(f'INSERT INTO "{self._index}" VALUES (?, ?, ?, ?, ?)', index)  # noqa: S608  # our names
        if index:
            self._bounds[:2] = np.minimum(self._bounds[:2], boxes[there, :2].min(axis=0))
            self._bounds[2:] = np.maximum(self._bounds[2:], boxes[there, 2:].max(axis=0))
        self._n += len(values)

    def _finish(self) -> None:
        """Write where the layer lies, and the triggers of its index."""
        if np.isfinite(self._bounds).all():
            where = "UPDATE gpkg_contents SET min_x = ?, min_y = ?, max_x = ?, max_y = ?"
            self._file.execute(where, self._bounds.tolist())
        self._file.execute(
            "INSERT INTO gpkg_extensions VALUES (?, 'geom', 'gpkg_rtree_index', ?, 'write-only')",
            (self._layer, "http://www.geopackage.org/spec120/#extension_rtree"),
        )
        for name, (event, condition, action) in _TRIGGERS.items():
            does = action.format(index=f'"{self._index}"')
            self._file.execute(
                f'CREATE TRIGGER "{self._index}_{name}" {event} ON "{self._layer}" WHEN {condition} BEGIN {does} END'
            )
        self._file.execute("COMMIT")


def _blob(wkb: bytes, box: Sequence[float]) -> bytes:
    """Return a geometry as GeoPackage has it: a header with its box, then WKB."""
    west, south, east, north = box
    return _HEADER.pack(b"GP", 0, _LITTLE_ENDIAN_WITH_BOX, _EPSG, west, east, south, north) + wkb


def _reference_systems() -> list[tuple[str, int, str, int, str, str]]:
    """Return the three systems that every file names: two for unknown ones, and longitude and latitude."""
    return [
        ("Undefined Cartesian", -1, "NONE", -1, "undefined", "unknown, in a plane"),
        ("Undefined geographic", 0, "NONE", 0, "undefined", "unknown, on the globe"),
        ("WGS 84", _EPSG, "EPSG", _EPSG, pyproj.CRS(_EPSG).to_wkt("WKT1_GDAL"), "longitude and latitude, degrees"),
    ]
