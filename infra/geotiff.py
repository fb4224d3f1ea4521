"""Large rasters: read by rows, and written by rows as a cloud-optimised GeoTIFF, whole or not at all.

GDAL reports a full disk late, and at the closing of a file not at all; what was written is read back and compared
before it gets its name.
"""

import os
import secrets
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetWriter
from rasterio.transform import Affine
from rasterio.windows import Window

from infra.errors import BadPatchError, ConfigError, StoreError
from infra.storage import writing

BLOCK = 512
"""Edge of a block of the GeoTIFFs written, pixels."""

Array = NDArray[Any]  # of the raster's own dtype

_GDAL_ERRORS = (RasterioError, CPLE_BaseError, SystemError)  # rasterio.shutil lets the last two through
_DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG"}
_RGB_NAMES = (("B04", "B4", "RED"), ("B03", "B3", "GREEN"), ("B02", "B2", "BLUE"))
_RGB_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


@dataclass(frozen=True, slots=True)
class RasterLayout:
    """All about a raster but its pixels."""

    height: int
    """Rows."""
    width: int
    """Columns."""
    dtype: str
    """NumPy's name of the dtype, the same for all bands."""
    names: tuple[str | None, ...]
    """Description of each band."""
    crs: CRS | None
    """None where the raster has none."""
    transform: Affine | None
    """From (column, row) of pixel corners to coordinates; None where there is none."""
    gcps: tuple[GroundControlPoint, ...] = ()
    """Ground control points, where they take the transform's place."""
    gcps_crs: CRS | None = None
    """CRS of the control points."""
    nodata: float | None = None
    """Value of a pixel without data."""
    has_mask: bool = False
    """Whether pixels without data are told by a mask, for want of a value."""
    scales: tuple[float, ...] = ()
    """Per band: physical value = scale * DN + offset."""
    offsets: tuple[float, ...] = ()
    """See `scales`."""
    units: tuple[str | None, ...] = ()
    """Unit of each band's physical value."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Metadata of the raster."""
    band_tags: tuple[Mapping[str, str], ...] = ()
    """Metadata of each band."""

    def enlarged(self, scale: int, tags: Mapping[str, str]) -> "RasterLayout":
        """Return the layout on a grid that is finer by an integer factor, with the same outer corners.

        Args:
            scale: The factor.
            tags: Metadata to add.
        """
        gcps = tuple(GroundControlPoint(scale * p.row, scale * p.col, p.x, p.y, p.z, p.id, p.info) for p in self.gcps)
        transform = None if self.transform is None else self.transform @ Affine.scale(1 / scale)
        return RasterLayout(
            scale * self.height,
            scale * self.width,
            self.dtype,
            self.names,
            self.crs,
            transform,
            gcps,
            self.gcps_crs,
            self.nodata,
            self.has_mask,
            self.scales,
            self.offsets,
            self.units,
            {**self.tags, **tags},
            self.band_tags,
        )


class RasterReader:
    """Chosen bands of one raster, read by rows over its whole width; a context manager."""

    def __init__(self, path: str, bands: Sequence[str] | None = None) -> None:
        """Open a raster.

        Args:
            path: A file, or any other name that GDAL opens. What is called .tif, .tiff or .jp2 has to be that, as
                GDAL goes by the content otherwise, and many formats are nothing but names of other files or servers.
            bands: Numbers (from 1) or descriptions; None for red, green and blue: the bands described or coloured so
                (B04, B03, B02 too), else the first three.

        Raises:
            ConfigError: There is no such file, it is no raster, or it has no such bands.
        """
        self.path = path
        self._reads_mask = False
        try:
            with _quiet():
                self._dataset = rasterio.open(path, driver=_DRIVERS.get(Path(path).suffix.lower()))
        except RasterioError as error:
            found = f"cannot be read as a raster: {str(error).rstrip('.')}" if Path(path).exists() else "is not there"
            raise ConfigError(f"the input {path} {found}: name a GeoTIFF, or another raster that GDAL reads") from error
        try:
            self._indexes = self._chosen(bands)
            self.layout = self._layout()
        except ConfigError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the raster."""
        self._dataset.close()

    @property
    def may_lack_data(self) -> bool:
        """Whether some pixels may be without data: there is a nodata value, a mask, or NaN is possible."""
        return self.layout.nodata is not None or self.layout.has_mask

    def rows(self, first: int, last: int) -> tuple[Array, NDArray[np.bool_]]:
        """Return rows first..last.

        Returns:
            Values (bands, last - first, W) in the raster's dtype, and where they are data, bool, the same shape. NaN
            and infinities are none.

        Raises:
            BadPatchError: GDAL cannot decode them.
        """
        window = Window(0, first, self.layout.width, last - first)
        try:
            values: Array = self._dataset.read(self._indexes, window=window)
            if self._reads_mask:
                valid = self._dataset.read_masks(self._indexes, window=window) > 0
            else:
                valid = np.ones(values.shape, np.bool_)
        except RasterioError as error:
            reason = error.__cause__ if error.__cause__ is not None else error
            raise BadPatchError(self.path, "corrupt", f"GDAL cannot decode rows {first} to {last}: {reason}") from error
        for band, index in enumerate(self._indexes):
            nodata = self._dataset.nodatavals[index - 1]
            if nodata is not None and not np.isnan(nodata):
                valid[band] &= values[band] != np.asarray(nodata).astype(values.dtype)
        if values.dtype.kind == "f":
            valid &= np.isfinite(values)
        return values, valid

    def _chosen(self, asked: Sequence[str] | None) -> list[int]:
        dataset = self._dataset
        if dataset.count == 0:
            parts = f": name one of its {len(dataset.subdatasets)} subdatasets" if dataset.subdatasets else ""
            raise ConfigError(f"the input {self.path} has no bands of its own{parts}")
        names = [(name or "").strip().upper() for name in dataset.descriptions]
        if asked is not None:
            return [self._index(band.strip(), names) for band in asked]
        by_name = [next((names.index(word) + 1 for word in words if word in names), 0) for words in _RGB_NAMES]
        by_colour = [
            dataset.colorinterp.index(colour) + 1 if colour in dataset.colorinterp else 0 for colour in _RGB_COLOURS
        ]
        found = next((choice for choice in (by_name, by_colour) if all(choice)), [1, 2, 3])
        if max(found) > dataset.count:
            raise ConfigError(
                f"the input {self.path} has {dataset.count} band{'s' * (dataset.count > 1)}: "
                "three are needed, red, green and blue; stack them into one file first"
            )
        return found

    def _index(self, band: str, names: list[str]) -> int:
        if band.upper() in names:
            return names.index(band.upper()) + 1
        if band.isdecimal() and 1 <= int(band) <= len(names):
            return int(band)
        described = ", ".join(filter(None, names))
        raise ConfigError(
            f"the input {self.path} has no band {band!r}: its bands are 1 to {len(names)}"
            + (f", described as {described}" if described else ", and have no descriptions")
        )

    def _layout(self) -> RasterLayout:
        dataset, indexes = self._dataset, self._indexes
        dtypes = {dataset.dtypes[i - 1] for i in indexes}
        if len(dtypes) > 1:
            raise ConfigError(
                f"the bands chosen of {self.path} are of the dtypes {', '.join(sorted(dtypes))}: they need to be of one"
            )
        dtype = dtypes.pop()
        nodata = next((value for i in indexes if (value := dataset.nodatavals[i - 1]) is not None), None)
        flags = {flag for i in indexes for flag in dataset.mask_flag_enums[i - 1]}
        self._reads_mask = nodata is None and bool(flags & {MaskFlags.per_dataset, MaskFlags.alpha})
        if nodata is None and np.dtype(dtype).kind == "f":
            nodata = np.nan
        gcps, gcps_crs = dataset.gcps
        return RasterLayout(
            height=dataset.height,
            width=dataset.width,
            dtype=dtype,
            names=tuple(dataset.descriptions[i - 1] for i in indexes),
            crs=dataset.crs,
            transform=None if dataset.transform.is_identity else dataset.transform,
            gcps=tuple(gcps),
            gcps_crs=gcps_crs,
            nodata=nodata,
            has_mask=self._reads_mask and nodata is None,
            scales=tuple(dataset.scales[i - 1] for i in indexes),
            offsets=tuple(dataset.offsets[i - 1] for i in indexes),
            units=tuple(dataset.units[i - 1] for i in indexes),
            tags={key: value for key, value in dataset.tags().items() if key not in _OF_THE_FILE},
            band_tags=tuple(
                {key: value for key, value in dataset.tags(i).items() if not key.startswith("STATISTICS_")}
                for i in indexes
            ),
        )


_OF_THE_FILE = frozenset({"OVR_RESAMPLING_ALG", "TIFFTAG_XRESOLUTION", "TIFFTAG_YRESOLUTION", "TIFFTAG_RESOLUTIONUNIT"})
"""Tags about the input's file or its pixel size, not about its content."""


class CogWriter:
    """A cloud-optimised GeoTIFF that grows from top to bottom; use `cog_writer`."""

    def __init__(self, folder: Path, target: Path, layout: RasterLayout) -> None:
        self._rows_file, self._cog, self._target, self._layout = folder / "rows.tif", folder / "cog.tif", target, layout
        self._pending: list[tuple[Array, NDArray[np.uint8]]] = []
        self._held = self._written = self._checksum = 0
        with self._writing():
            self._dataset = self._created()

    def append(self, values: Array, valid: NDArray[np.bool_]) -> None:
        """Add rows below those that are there.

        Args:
            values: (bands, n, W), in the layout's dtype.
            valid: (bands, n, W); used where the layout has a mask: a pixel with any band without data has none.

        Raises:
            StoreError: The disk is full, or the file cannot be written.
        """
        self._pending.append((values, valid.all(axis=0).astype(np.uint8) * 255))
        self._held += values.shape[1]
        last = self._written + self._held == self._layout.height
        if self._held >= BLOCK or last:
            # whole rows of blocks: a block that is written twice is compressed twice, and its first copy stays
            self._flush(self._held if last else self._held // BLOCK * BLOCK)

    def _flush(self, rows: int) -> None:
        values = np.concatenate([part for part, _ in self._pending], axis=1)
        mask = np.concatenate([part for _, part in self._pending])
        self._pending = [(values[:, rows:], mask[rows:])]
        self._held -= rows
        for start in range(0, rows, BLOCK):
            stop = min(start + BLOCK, rows)
            window = Window(0, self._written, self._layout.width, stop - start)
            with self._writing():
                self._dataset.write(values[:, start:stop], window=window)
                if self._layout.has_mask:
                    self._dataset.write_mask(mask[start:stop], window=window)
            self._checksum = _checksum(self._checksum, values[:, start:stop], self._mask(mask[start:stop]))
            self._written += stop - start

    def finish(self) -> None:
        """Make the cloud-optimised file, read it back, and give it its name.

        Raises:
            StoreError: The disk is full, or the file cannot be written.
        """
        assert self._written == self._layout.height, "rows are missing"
        with self._writing():
            self._dataset.close()
            rasterio.shutil.copy(
                self._rows_file,
                self._cog,
                driver="COG",
                COMPRESS="DEFLATE",
                PREDICTOR="YES",
                BLOCKSIZE=BLOCK,
                BIGTIFF="IF_SAFER",
                OVERVIEW_RESAMPLING="AVERAGE",
                NUM_THREADS="ALL_CPUS",
            )
            self._rows_file.unlink()
            if self._read_back() != self._checksum:
                raise StoreError(
                    f"cannot write {self._target}: what was read back is not what was written; is the disk full? "
                    f"{_free(self._target)}"
                )
            with self._cog.open("rb+") as file:
                os.fsync(file.fileno())
            self._cog.replace(self._target)

    def close(self) -> None:
        """Close the file in work, whatever state it is in."""
        try:
            self._dataset.close()
        except _GDAL_ERRORS:
            return  # it is thrown away, and another error is on its way

    def _read_back(self) -> int:
        checksum, layout = 0, self._layout
        with rasterio.open(self._cog, driver="GTiff") as dataset:
            for start in range(0, layout.height, BLOCK):
                window = Window(0, start, layout.width, min(BLOCK, layout.height - start))
                mask = dataset.read_masks(1, window=window) if layout.has_mask else None
                checksum = _checksum(checksum, dataset.read(window=window), mask)
        return checksum

    def _mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        return mask if self._layout.has_mask else None

    def _created(self) -> DatasetWriter:
        layout, bands = self._layout, range(1, len(self._layout.names) + 1)
        georeference = {"gcps": layout.gcps, "crs": layout.gcps_crs} if layout.gcps else {"crs": layout.crs}
        if layout.transform is not None:
            georeference = {"transform": layout.transform, "crs": layout.crs}
        dataset = rasterio.open(
            self._rows_file,
            "w",
            driver="GTiff",
            width=layout.width,
            height=layout.height,
            count=len(layout.names),
            dtype=layout.dtype,
            nodata=layout.nodata,
            tiled=True,
            blockxsize=BLOCK,
            blockysize=BLOCK,
            compress="DEFLATE",
            zlevel=1,
            num_threads="ALL_CPUS",
            bigtiff="IF_SAFER",
            photometric="RGB" if len(layout.names) == 3 else "MINISBLACK",
            **georeference,
        )
        # the tag AREA_OR_POINT changes how the corner is stored, never where it is
        dataset.update_tags(**layout.tags)
        dataset.scales, dataset.offsets, dataset.units = layout.scales, layout.offsets, layout.units
        for band in bands:
            if name := layout.names[band - 1]:
                dataset.set_band_description(band, name)
            dataset.update_tags(band, **layout.band_tags[band - 1])
        return dataset

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with writing(self._target), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), _quiet():
            try:
                yield
            except _GDAL_ERRORS as error:  # rasterio's are OSErrors without an errno: before `writing` sees them
                reason = error.__cause__ if error.__cause__ is not None else error
                raise StoreError(f"cannot write {self._target}: {reason}; {_free(self._target)}") from error


@contextmanager
def cog_writer(target: Path, layout: RasterLayout, *, overwrite: bool = False) -> Iterator[CogWriter]:
    """Give a writer; when the block ends without an error, the file appears under its name, and otherwise nothing does.

    Until then everything lies in a hidden folder beside it, `.NAME.….partial`.

    Args:
        target: The GeoTIFF to write.
        layout: All about it but its pixels.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        ConfigError: The file is there, and is not to be replaced.
        StoreError: Its folder is not there, or it cannot be written.
    """
    if target.is_dir():
        raise ConfigError(f"the output {target} is a folder: name a file in it")
    if target.exists() and not overwrite:
        raise ConfigError(f"the output {target} is there already: choose another name, or --overwrite")
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    with ExitStack() as stack:
        with writing(target):
            folder.mkdir()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        writer = CogWriter(folder, target, layout)
        stack.callback(writer.close)
        yield writer
        writer.finish()


def _checksum(before: int, values: Array, mask: NDArray[np.uint8] | None) -> int:
    checksum = zlib.crc32(np.ascontiguousarray(values).data, before)
    return checksum if mask is None else zlib.crc32(np.ascontiguousarray(mask).data, checksum)


def _free(path: Path) -> str:
    return f"{shutil.disk_usage(path.parent).free / 1e9:.1f} GB are free there"


@contextmanager
def _quiet() -> Iterator[None]:
    """A raster without georeference is no cause for a warning here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
