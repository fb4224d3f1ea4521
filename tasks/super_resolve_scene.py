"""Super-resolve one scene: a GeoTIFF of any size in, a georeferenced one out, window by window."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from infra.errors import ConfigError
from infra.geotiff import RasterReader, cog_writer
from sr_models import SrEngine, SuperResolver, spec
from sr_models.windows import Band, enlarge_in_windows, plan_windows, window_rule
from tasks.scene_pixels import Stretch, filled, stretch_for, with_nodata
from tasks.stage import Progress, silent

_BATCH_PIXELS = 1 << 20
"""LR pixels that go through the model at once on a GPU; a CPU takes one window at a time."""

_GLOBAL_REACH = 128
"""How far nodata is filled for a model that sees the whole image, LR pixels."""


@dataclass(frozen=True, slots=True)
class SceneOptions:
    """How a scene is super-resolved."""

    bands: tuple[str, ...] | None = None
    """Numbers or descriptions of red, green and blue; None: see `RasterReader`."""
    min_dn: float = 0.0
    """Value that the model sees as 0."""
    max_dn: float | None = None
    """Value that the model sees as 1; None for the dtype's own, see `HIGHEST`."""
    window: int | None = None
    """See `window_rule`."""
    margin: int | None = None
    """See `window_rule`."""
    overwrite: bool = False
    """Whether the output may be replaced."""


@dataclass(frozen=True, slots=True)
class SceneReport:
    """What was done."""

    target: Path
    height: int
    """Rows of the output."""
    width: int
    """Columns of the output."""
    windows: int
    """Windows of the plan."""
    cost: float
    """Pixels given to the model, over pixels of the scene."""
    clipped_share: float
    """Share of the pixels with data that the stretch clips, in any band; 0 where there are none."""
    nodata_share: float
    """Share of the pixels without data in any band."""
    seconds: float
    """Wall time, from the first row read to the finished file."""
    max_dn: float
    """Value the model saw as 1."""

    def __str__(self) -> str:
        rate = self.height * self.width / max(self.seconds, 1e-9) / 1e6
        words = (
            f"{self.target}: {self.width} x {self.height} pixels in {self.windows} windows, {self.seconds:.1f} s, "
            f"{rate:.2f} million pixels/s; {self.clipped_share:.2%} clipped at {self.max_dn:g}, "
            f"{self.nodata_share:.2%} without data"
        )
        if self.clipped_share > 0.05:
            words += "; much is clipped: a larger --max-dn keeps more of the bright, and makes the rest darker"
        return words


def super_resolve_scene(
    source: str, target: Path, resolver: SuperResolver, options: SceneOptions, progress: Progress = silent
) -> SceneReport:
    """Write the super-resolved scene and return what was done.

    Args:
        source: A raster that GDAL reads.
        target: The GeoTIFF to write; it appears when it is whole.
        resolver: The model.
        options: See there.
        progress: Told the windows done, and the output's pixels that are finished.

    Raises:
        ConfigError: The input, the output or an option cannot be used.
        BadPatchError: The input cannot be decoded.
        StoreError: The output cannot be written.
    """
    started = time.monotonic()
    _check_names(source, target, resolver)
    rule = window_rule(spec(resolver.name), options.window, options.margin)
    with RasterReader(source, options.bands) as reader:
        if len(reader.layout.names) != 3:
            # the one place for rasters of other band counts: groups of three bands, each super-resolved by itself
            raise ConfigError(f"{len(reader.layout.names)} bands were chosen of {source}: three are needed")
        stretch = stretch_for(reader.layout.dtype, source, options.min_dn, options.max_dn)
        layout = reader.layout.enlarged(resolver.scale, _provenance(resolver, stretch))
        plan = plan_windows(reader.layout.height, reader.layout.width, rule)
        rows = _SceneRows(reader, stretch, spec(resolver.name).receptive_radius)
        written = 0

        def tell(done: int, total: int) -> None:
            progress("super-resolve", done, total, written)

        with cog_writer(target, layout, overwrite=options.overwrite) as writer:
            tell(0, plan.windows)
            for band in enlarge_in_windows(
                rows.unit,
                plan,
                SrEngine(resolver),
                resolver.scale,
                valid=rows.has_data if reader.may_lack_data else None,
                batch_size=_batch_size(resolver, rule.window),
                tell=tell,
            ):
                for values, valid in _finished(band, rows, resolver.scale, layout.nodata):
                    writer.append(values, valid)
                    written += values[0].size
                del band  # before the next rows are made: they are large
            progress("write the overviews", 0, 1, 0)
        progress("write the overviews", 1, 1, written)
    return SceneReport(
        target,
        layout.height,
        layout.width,
        plan.windows,
        plan.cost,
        rows.clipped / max(rows.with_data, 1),
        1 - rows.with_data / (reader.layout.height * reader.layout.width),
        time.monotonic() - started,
        stretch.high,
    )


def check_for_scenes(sr: str) -> None:
    """Refuse a model that is for patches; before its weights are asked for, which are none of a scene's.

    Args:
        sr: One of `sr_models.names()`.

    Raises:
        ConfigError: Its noise is a patch's own.
        UnknownNameError: There is no such model.
    """
    if spec(sr).conditioned:
        raise ConfigError(
            f"{sr} is for patches: its noise is a patch's own, and the windows of a scene would not fit together; "
            "choose another model with --sr"
        )


class _SceneRows:
    """The rows of a scene as the windows and the output ask for them; counts what the output has asked for."""

    def __init__(self, reader: RasterReader, stretch: Stretch, receptive_radius: int | None) -> None:
        self.reader, self.stretch = reader, stretch
        self._reach = _GLOBAL_REACH if receptive_radius is None else receptive_radius
        self.with_data = self.clipped = 0

    def unit(self, first: int, last: int) -> torch.Tensor:
        """Return rows first..last as the model sees them, (3, last - first, W), in [0, 1]."""
        reach = self._reach if self.reader.may_lack_data else 0
        top, bottom = max(first - reach, 0), min(last + reach, self.reader.layout.height)
        values, valid = self.reader.rows(top, bottom)
        x = self.stretch.to_unit(values)
        if not valid.all():
            x = filled(x, valid, self._reach)
        return torch.from_numpy(x[:, first - top : last - top])

    def has_data(self, first: int, last: int) -> torch.Tensor:
        """Return which pixels of rows first..last have data in some band, (last - first, W)."""
        _, valid = self.reader.rows(first, last)
        return torch.from_numpy(valid.any(axis=0))

    def counted(self, first: int, last: int) -> NDArray[np.bool_]:
        """Return where rows first..last are data, (3, last - first, W), and count them; each row once."""
        values, valid = self.reader.rows(first, last)
        whole = valid.all(axis=0)
        self.with_data += int(whole.sum())
        self.clipped += int((self.stretch.outside(values).any(axis=0) & whole).sum())
        return valid


def _finished(
    band: Band, rows: _SceneRows, scale: int, nodata: float | None
) -> Iterator[tuple[NDArray[np.generic], NDArray[np.bool_]]]:
    """Yield a band of output in the raster's dtype, with its nodata, a few rows at a time."""
    step = 128
    for first in range(band.first, band.last, step):
        last = min(first + step, band.last)
        valid = rows.counted(first, last)
        part = band.values[:, scale * (first - band.first) : scale * (last - band.first)].numpy()
        values = rows.stretch.from_unit(part, rows.reader.layout.dtype)
        values = with_nodata(values, valid, scale, nodata, rows.stretch)
        yield values, valid.repeat(scale, axis=1).repeat(scale, axis=2)


def _check_names(source: str, target: Path, resolver: SuperResolver) -> None:
    check_for_scenes(resolver.name)
    if resolver.scale == 1:
        raise ConfigError(f"the model {resolver.name!r} enlarges nothing: choose one of scale 2 or more with --sr")
    if target.suffix.lower() not in {".tif", ".tiff"}:
        raise ConfigError(f"the output {target} is a GeoTIFF: give it a name that ends in .tif")
    if target.exists() and Path(source).exists() and target.samefile(source):
        raise ConfigError(f"the output {target} is the input: choose another name")


def _batch_size(resolver: SuperResolver, window: int) -> int:
    return 1 if resolver.device.type == "cpu" else max(1, _BATCH_PIXELS // window**2)


def _provenance(resolver: SuperResolver, stretch: Stretch) -> dict[str, str]:
    tags: dict[str, str] = {f"SUPERSCENE_{key.upper()}": str(value) for key, value in resolver.identity().items()}
    return {**tags, "SUPERSCENE_STRETCH": f"{stretch.low:g} {stretch.high:g}"}


def parse_bands(text: str | None) -> tuple[str, ...] | None:
    """Return the bands of an option such as "4,3,2" or "B04,B03,B02"; None for None."""
    return None if text is None else tuple(word.strip() for word in text.split(","))
