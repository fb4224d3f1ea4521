"""The explorer's service: a page, and what it asks for, of one store; nothing is ever written."""

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

from explorer.branches import Branch, branches_of
from explorer.filters import Filters, Name, Selection, branch_named, select
from explorer.footprints import MOST_POLYGONS, OUTCOMES, ColourQuery, centres, colours, polygons
from explorer.guard import Guard, check_basemap
from explorer.patches import PatchViews, with_distances
from explorer.pictures import NoPictureError, Pictures
from explorer.samples import NearQuery, SamplesQuery, near, page_rows, samples
from explorer.snapshot import read_snapshot
from infra.errors import PipelineError, StoreError, UnknownNameError
from infra.storage import StorePaths
from infra.tables import check_store
from tasks.pictures import colour_stops, label_colours
from tasks.report.numbers import Numbers

OPENAPI = "/api/openapi.json"
STATIC = Path(__file__).parent / "static"

_SELECTIONS_KEPT = 32  # half a megabyte each on BigEarthNet

PatchId = Annotated[Name, Query(description="A patch_id of tables/patches; of a folder of images it has slashes")]
BranchName = Annotated[Name, Query(description="A branch of /api/store")]

_REFUSALS: dict[int | str, dict[str, Any]] = {
    404: {"description": "There is no such patch or picture"},
    422: {"description": "The query cannot be used"},
    503: {"description": "The store cannot be read"},
}


class Octets(Response):
    """Numbers, as `explorer.footprints` has them."""

    media_type = "application/octet-stream"


class Png(Response):
    """A picture."""

    media_type = "image/png"


class Explorer:
    """One store, opened: what the service answers from."""

    def __init__(self, paths: StorePaths, basemap: str | None) -> None:
        """Read what filters need.

        Args:
            paths: The store.
            basemap: URL of map tiles, checked; None: no request leaves this machine.

        Raises:
            StoreError: There are no patches, or they cannot be read, or a newer superscene wrote them.
        """
        check_store(paths.tables)
        self.patches = read_snapshot(paths)
        self.numbers = numbers_of(paths)
        self.branches = branches_of(self.numbers)
        self.pictures = Pictures(paths, self.numbers)
        self.tints = label_colours(self.patches.labels)
        self.views = PatchViews(self.numbers, self.patches, self.branches, self.pictures, self.tints)
        self._root, self._basemap = paths.root, basemap
        self.selection: Callable[[Filters], Selection] = lru_cache(_SELECTIONS_KEPT)(self._select)

    def about(self) -> dict[str, Any]:
        """Return what the page builds its controls from."""
        patches, run = self.patches, None if self.numbers is None else self.numbers.run
        return {
            "name": self._root.name or str(self._root),
            "n": len(patches),
            "held_bytes": patches.nbytes + sum(branch.nbytes for branch in self.branches.values()),
            "has_places": patches.has_places,
            "most_footprints": MOST_POLYGONS,
            "labels": [{"label": label, "colour": colour} for label, colour in self.tints.items()],
            "country": patches.country.names,
            "season": patches.season.names,
            "split": patches.split.names,
            "branches": [
                {
                    "branch": branch.name,
                    "sr": branch.sr,
                    "classifier": branch.classifier,
                    "config": branch.config,
                    "has_reliability": branch.has_reliability,
                    "is_read": branch.is_read,
                }
                for branch in self.branches.values()
            ],
            "outcomes": OUTCOMES,
            "run": None if run is None else {"run_id": run.run_id, "status": run.status},
            "basemap": self._basemap,
            "map_colours": colour_stops(),
        }

    def warm(self) -> None:
        """Read the columns of all branches, so that nobody has to wait for them when a branch is first chosen."""
        for branch in self.branches.values():
            with suppress(PipelineError, OSError, pa.ArrowException):  # whoever chooses the branch is told
                branch.decisions(self.patches)
                if branch.has_reliability:
                    branch.least_reliability(self.patches)

    def branch(self, name: str | None) -> Branch | None:
        """Return the branch that a query names, or none."""
        return None if name is None else branch_named(name, self.branches)

    def row(self, patch_id: str) -> int:
        """Return the row of a patch, which is looked up among the names and never made into a path.

        Raises:
            HTTPException: 404, there is none.
        """
        row = self.patches.find(patch_id)
        if row is None:
            raise HTTPException(404, f"this store has no patch {patch_id!r}")
        return row

    def row_with_pixels(self, patch_id: str) -> int:
        """Return the row of a patch that archive.zarr holds.

        Raises:
            HTTPException: 404, there is none, or its pixels are not there.
        """
        row = self.row(patch_id)
        if not self.patches.has_pixels[row]:
            raise HTTPException(404, f"the pixels of {patch_id!r} are not in archive.zarr")
        return row

    def _select(self, filters: Filters) -> Selection:
        return select(filters, self.patches, self.branches)


def numbers_of(paths: StorePaths) -> Numbers | None:
    """Return the tables of the last run; None where no run has ended, or nobody knows the order of its labels."""
    if not any(paths.table("runs").glob("run-*.parquet")):
        return None
    numbers = Numbers(paths)
    return numbers if numbers.labels else None


def make_app(store: Path, basemap: str | None = None) -> FastAPI:
    """Return the service of a store, ready to answer.

    Args:
        store: The store, a folder or on object storage.
        basemap: URL of map tiles with {z}, {x} and {y}, which the page then loads; None: nothing leaves this machine.

    Raises:
        ConfigError: The URL is none.
        StoreError: There are no patches, or they cannot be read.
    """
    origin = None if basemap is None else check_basemap(basemap)
    opened = Explorer(StorePaths(store), basemap)
    app = FastAPI(
        title="superscene explorer",
        version="1",
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        openapi_url=OPENAPI,
        redirect_slashes=False,
    )
    app.state.explorer = opened
    app.add_middleware(Guard, basemap_origin=origin)
    _add_errors(app)
    _add_queries(app, opened)
    _add_patches(app, opened)
    _add_pictures(app, opened)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _add_queries(app: FastAPI, opened: Explorer) -> None:
    """Add what is asked of all patches."""

    @app.get("/api/store")
    def store() -> dict[str, Any]:
        """Names for the filters, branches, and what the store is."""
        return opened.about()

    @app.get("/api/samples", responses=_REFUSALS)
    def page_of_samples(query: Annotated[SamplesQuery, Query()]) -> dict[str, Any]:
        """Give a page of the patches that fit, and how many of them have each label, country, season and split."""
        selection, branch = opened.selection(query.conditions), opened.branch(query.branch)
        rows = page_rows(query, selection, opened.patches, branch)
        listed = samples(rows.tolist(), opened.patches, branch, query.label)
        return {"total": selection.total, "offset": query.offset, "counts": selection.counts, "samples": listed}

    @app.get("/api/selection", response_class=Octets, responses=_REFUSALS)
    def selected(query: Annotated[Filters, Query()]) -> Octets:
        """Give a bit a patch: whether it fits."""
        return Octets(opened.selection(query.conditions).bits)

    @app.get("/api/centres", response_class=Octets)
    def places() -> Octets:
        """Longitude and latitude of all patches, float32."""
        return Octets(centres(opened.patches))

    @app.get("/api/colours", response_class=Octets, responses=_REFUSALS)
    def codes(query: Annotated[ColourQuery, Query()]) -> Octets:
        """Give a byte a patch: the code of its colour."""
        return Octets(colours(query, opened.patches, opened.branch(query.branch)))

    @app.get("/api/footprints", response_class=Octets, responses=_REFUSALS)
    def footprints(query: Annotated[Filters, Query()]) -> Octets:
        """Corners of the patches that fit, as many as there may be at once."""
        return Octets(polygons(opened.selection(query.conditions), opened.patches))

    @app.get("/api/near", responses=_REFUSALS)
    def around(query: Annotated[NearQuery, Query()]) -> dict[str, Any]:
        """Give patches that fit around a place, the nearest first."""
        mask = opened.selection(query.conditions).mask
        found = near(opened.patches, query.lon, query.lat, query.radius_km, query.limit, mask)
        return {"samples": with_distances(found, opened.patches, opened.branch(query.branch), query.label)}


def _add_patches(app: FastAPI, opened: Explorer) -> None:
    """Add what is asked of one patch."""

    @app.get("/api/patch", responses=_REFUSALS)
    def patch(patch_id: PatchId) -> dict[str, Any]:
        """What the tables say of a patch."""
        return opened.views.patch(opened.row(patch_id))

    @app.get("/api/patch/neighbours", responses=_REFUSALS)
    def neighbours(patch_id: PatchId, limit: Annotated[int, Query(ge=1, le=48)] = 12) -> dict[str, Any]:
        """Give the nearest other patches on the ground."""
        return {"samples": opened.views.neighbours(opened.row(patch_id), limit)}

    @app.get("/api/patch/branch", responses=_REFUSALS)
    def decisions(patch_id: PatchId, branch: BranchName) -> dict[str, Any]:
        """Probabilities, verdicts, reliability and clusters, label by label."""
        return opened.views.branch(opened.row(patch_id), branch_named(branch, opened.branches))

    @app.get("/api/patch/maps", responses=_REFUSALS)
    def maps(patch_id: PatchId, branch: BranchName, label: Annotated[Name, Query()]) -> dict[str, Any]:
        """Every method's map of one label, as images."""
        row, of = opened.row_with_pixels(patch_id), branch_named(branch, opened.branches)
        if label not in opened.patches.labels:
            raise UnknownNameError(f"label: this store has no {label!r}")
        return {"maps": opened.views.maps(row, of, label)}


def _add_pictures(app: FastAPI, opened: Explorer) -> None:
    """Add the pictures of one patch."""

    @app.get("/api/patch/true-colour.png", response_class=Png, responses=_REFUSALS)
    def true_colour(patch_id: PatchId) -> Png:
        """Red, green and blue."""
        return Png(opened.pictures.true_colour(opened.patches.table_row(opened.row_with_pixels(patch_id))))

    @app.get("/api/patch/input.png", response_class=Png, responses=_REFUSALS)
    def sr_input(patch_id: PatchId) -> Png:
        """What SR models see."""
        return Png(opened.pictures.input(opened.patches.table_row(opened.row_with_pixels(patch_id))))

    @app.get("/api/patch/false-colour.png", response_class=Png, responses=_REFUSALS)
    def false_colour(patch_id: PatchId) -> Png:
        """Near infrared, red and green."""
        return Png(opened.pictures.false_colour(opened.patches.table_row(opened.row_with_pixels(patch_id))))

    @app.get("/api/patch/land-cover.png", response_class=Png, responses=_REFUSALS)
    def land_cover(patch_id: PatchId) -> Png:
        """Return the reference map."""
        return Png(opened.pictures.land_cover(opened.patches.table_row(opened.row_with_pixels(patch_id))))

    @app.get("/api/patch/branch.png", response_class=Png, responses=_REFUSALS)
    def of_branch(patch_id: PatchId, branch: BranchName) -> Png:
        """The pixels that a branch's network saw."""
        row, of = opened.row_with_pixels(patch_id), branch_named(branch, opened.branches)
        patches = opened.patches
        return Png(opened.pictures.branch(int(patches.shard[row]), int(patches.row[row]), of.sr, of.config))


def _add_errors(app: FastAPI) -> None:
    """Answer every error with one JSON object whose `detail` is a sentence."""

    @app.exception_handler(RequestValidationError)
    def unusable(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = [f"{'.'.join(map(str, fault['loc'][1:])) or 'query'}: {fault['msg']}" for fault in error.errors()]
        return JSONResponse({"detail": "; ".join(faults[:10])}, 422)

    @app.exception_handler(StarletteHTTPException)
    def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    @app.exception_handler(UnknownNameError)
    def unknown(_: Request, error: UnknownNameError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(NoPictureError)
    def no_picture(_: Request, error: NoPictureError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 404)

    @app.exception_handler(StoreError)
    @app.exception_handler(PipelineError)
    @app.exception_handler(OSError)
    @app.exception_handler(pa.ArrowException)
    def unreadable(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": f"the store cannot be read: {error}; a run may be replacing its tables"}, 503)
