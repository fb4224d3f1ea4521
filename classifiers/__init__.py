"""Land-cover classifiers: networks, training, metrics, checkpoints and activation maps; torch and numpy only."""

from classifiers.cam.explain import explain, explain_methods
from classifiers.cam.grid import on_grid
from classifiers.contract import check_classifier
from classifiers.metrics import multilabel_metrics
from classifiers.registry import CLASSIFIERS, ClassifierSpec, build, names, spec, weights_file

__all__ = [
    "CLASSIFIERS",
    "ClassifierSpec",
    "build",
    "check_classifier",
    "explain",
    "explain_methods",
    "multilabel_metrics",
    "names",
    "on_grid",
    "spec",
    "weights_file",
]
