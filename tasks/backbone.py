"""Where a network's backbone starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import classifiers
from classifiers import checkpoint
from classifiers.network import Classifier
from classifiers.published import backbone_state, is_published
from classifiers.registry import spec
from infra.fingerprint import Json
from infra.node_files import local_file
from infra.storage import file_sha256


@dataclass(frozen=True, slots=True)
class Backbone:
    """A backbone by name and file; cheap to pickle."""

    network: str
    """Network."""
    kind: Literal["weights", "archive", "random"]
    """A weight file, a checkpoint trained on this archive, or chance."""
    file: Path | None = None
    """The file; None for random."""

    def identity(self) -> dict[str, Json]:
        """Return what determines it."""
        digest = None if self.file is None else file_sha256(self.file)
        identity: dict[str, Json] = {"classifier": self.network, "kind": self.kind, "sha256": digest}
        distribution = spec(self.network).distribution
        return identity if distribution is None else {**identity, "distribution": distribution}


def load_network(backbone: Backbone, num_labels: int, bands: tuple[str, ...], head: str = "linear") -> Classifier:
    """Return a network with this backbone and a new head, both from torch's seed where they are random.

    Raises:
        WeightsError: The file is missing or holds another network.
    """
    if backbone.kind == "archive" and backbone.file is not None:
        network = classifiers.build(backbone.network, num_labels, len(bands), head)
        with local_file(backbone.file) as file:
            trained = checkpoint.load(file)
        network.backbone.load_state_dict(trained.network.backbone.state_dict())
        return network
    if backbone.file is None:
        return classifiers.build(backbone.network, num_labels, len(bands), head)
    with local_file(backbone.file) as file:
        if not is_published(file):
            return classifiers.build(backbone.network, num_labels, len(bands), head, file)
        network = classifiers.build(backbone.network, num_labels, len(bands), head)
        network.backbone.load_state_dict(backbone_state(file, bands, backbone.network))
    return network
