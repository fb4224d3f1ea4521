"""Export: the patches as a layer of a GeoPackage, which QGIS and every other GIS opens."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.dataset as ds

from infra.errors import StoreError
from infra.geopackage import GeoPackageWriter, Value
from infra.storage import StorePaths, write_atomically
from infra.tables import PATCHES, open_table
from tasks.export import Exported, check_output

LAYER = "patches"
MARK = ";"
"""Before and behind each label of a patch: `labels LIKE '%;Pastures;%'` finds one, and no other that ends alike."""

_TYPES: Mapping[pa.DataType, str] = MappingProxyType(
    {pa.string(): "TEXT", pa.int32(): "MEDIUMINT", pa.bool_(): "BOOLEAN", pa.float32(): "DOUBLE"}
)
_BATCH = 1 << 15


def export_geopackage(store: Path, out: Path, *, overwrite: bool = False) -> Exported:
    """Write tables/patches as a layer, with a spatial index; patches without a place have no geometry.

    GeoPackage has no lists: labels are one text, a semicolon before and behind each; `acquired` is a date.

    Args:
        store: The store.
        out: The file to write, .gpkg; it appears when it is whole.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        ConfigError: The file is there, or lies where it must not.
        StoreError: No patch has a place, the store cannot be read, or the file not be written.
    """
    check_output(store, out, overwrite=overwrite)
    patches = open_table(StorePaths(store).table("patches"), PATCHES)
    n = patches.count_rows()
    if not patches.count_rows(filter=ds.field("geometry").is_valid()):
        raise StoreError(f"none of the {n} patches of {store} has a place: there is nothing to draw on a map")
    fields = [field for field in PATCHES if field.name != "geometry"]
    columns = {field.name: _type(field) for field in fields}

    def write(path: Path) -> None:
        with GeoPackageWriter(path, LAYER, columns, "Patches of a superscene store") as layer:
            for batch in patches.to_batches(batch_size=_BATCH, batch_readahead=1, fragment_readahead=1):
                layer.add(batch["geometry"].to_pylist(), _rows(batch.select([*columns])))

    write_atomically(out, write)
    return Exported(n)


def _type(field: "pa.Field[pa.DataType]") -> str:
    if field.name == "acquired":
        return "DATE"
    return "TEXT" if pa.types.is_list(field.type) else _TYPES[field.type]


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[Value, ...]]:
    """Yield the cells of each row."""
    yield from zip(*(map(_value, column.to_pylist()) for column in batch.columns), strict=True)


def _value(value: Value | list[str]) -> Value:
    if not isinstance(value, list):
        return value
    return MARK + "".join(label + MARK for label in value) if value else ""
