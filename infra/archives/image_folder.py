"""Layout image-folder: `<root>/<class>/<picture>`, the folder's name being the one label."""

from dataclasses import dataclass

from infra.archives.images import Labelled, Problems, find_pictures, read_patch, take_stock_of_pictures, without_ending
from infra.archives.model import Patch, PatchInput, Scan
from infra.errors import ArchiveError


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Pictures in a folder a class; labels in the order of their names."""

    root: str
    image_size: int | None = None
    """Edge that pictures are resized to, pixels; None: they have one size."""
    validation_share: float = 0.2
    """Share of the pictures that validates."""
    split_seed: int = 0
    """Which ones."""

    @property
    def version(self) -> str:
        """Source version for the tables."""
        return "image-folder"

    def scan(self) -> Scan:
        """Return every picture; its name is `<class>/<file name without ending>`.

        Raises:
            ArchiveError: There is no class folder, or no picture that can be used.
        """
        problems = Problems()
        inputs: dict[str, Labelled] = {}
        classes: set[str] = set()
        for path in find_pictures(self.root, problems):
            parts = path.split("/")
            if len(parts) != 2:
                place = "it lies in no class folder" if len(parts) == 1 else "it lies deeper than its class folder"
                problems.add(None, path, "no_label", place)
                continue
            classes.add(parts[0])
            patch_id = without_ending(path)
            if patch_id in inputs:
                problems.add(patch_id, path, "duplicate_id", f"{inputs[patch_id].source} has the same name")
                continue
            inputs[patch_id] = Labelled(patch_id, path, (parts[0],), None)
        if not inputs:
            raise ArchiveError(f"the archive {self.root} has no picture in a class folder (<root>/<class>/<picture>)")
        return take_stock_of_pictures(
            self.root,
            list(inputs.values()),
            tuple(sorted(classes)),
            problems,
            image_size=self.image_size,
            validation_share=self.validation_share,
            split_seed=self.split_seed,
        )

    def read(self, patch: PatchInput) -> Patch:
        """Return one picture's pixels; raises BadPatchError where it cannot be used."""
        return read_patch(self.root, patch, self.image_size)
