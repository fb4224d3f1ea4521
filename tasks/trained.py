"""Trained classifiers from files: this project's checkpoints, and published ones as a branch sees them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from classifiers import checkpoint
from classifiers.checkpoint import TrainedClassifier
from classifiers.published import is_published, load_published
from infra.errors import ConfigError
from infra.node_files import local_file
from tasks.branch import Branch


def check_trained(path: Path, bands: Sequence[str]) -> TrainedClassifier:
    """Return the classifier of a file for a run's bands; `load_trained` knows more, once there is a branch.

    Raises:
        WeightsError: The file cannot be read, holds no classifier, or is published for other bands.
    """
    with local_file(path) as file:
        if not checkpoint.is_checkpoint(file) and is_published(file):
            return load_published(file, bands, max_dn=1)
        return checkpoint.load(file)


def load_trained(path: Path, branch: Branch) -> TrainedClassifier:
    """Return the classifier of a file, ready for a branch's pixels; on the CPU, in evaluation mode.

    Raises:
        WeightsError: The file cannot be read, or is published for other bands.
        ConfigError: It was trained on another branch.
    """
    with local_file(path) as file:
        if not checkpoint.is_checkpoint(file) and is_published(file):
            return load_published(file, branch.bands, branch.max_dn)
        trained = checkpoint.load(file)
    if dict(trained.sr) != dict(branch.identity):
        raise ConfigError(
            f"{path} was trained on {_words(trained.sr)}; this run's {branch.sr} branch is {_words(branch.identity)}"
        )
    return trained


def _words(identity: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(identity.items()))
