"""Classifiers trained in another store."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from classifiers import checkpoint
from infra.errors import ConfigError
from infra.node_files import local_file
from infra.storage import StorePaths
from tasks.branch import Branch
from tasks.run_record import published_configs


def borrowed_checkpoints(source: StorePaths, branch: Branch, classifier: str) -> Mapping[int, Path]:
    """Return the checkpoints, by seed, of the last run of another store that trained this classifier on this branch.

    Raises:
        ConfigError: There are none; the message says what the store has instead. Or the store is damaged.
    """
    folders = {
        path.name.rsplit("-", 1)[1]: path for path in (source.root / "checkpoints").glob(f"{branch.sr}-{classifier}-*")
    }
    try:
        published = published_configs(source)
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"models_from: the runs of {source.root} cannot be read: {error}") from error
    for configs in published:
        for config in sorted(configs & folders.keys()):
            files = {_seed(path): path for path in folders[config].glob("seed-*.safetensors")}
            return dict(sorted(files.items()))
    there = sorted({path.name.rsplit("-", 1)[0] for path in (source.root / "checkpoints").glob("*")})
    have = f"it has {', '.join(there)}" if there else "it has no trained classifier"
    raise ConfigError(f"models_from: {source.root} has no {classifier} for the {branch.sr} branch; {have}")


def _seed(path: Path) -> int:
    with local_file(path) as file:
        return checkpoint.load(file).seed
