"""Land-cover classifiers: networks, training, metrics, checkpoints and activation maps; torch and numpy only."""

from classifiers.cam.explain import explain, explain_methods
from classifiers.cam.grid import on_grid
from classifiers.metrics import multilabel_metrics
from classifiers.registry import build, names, weights_file

__all__ = ["build", "explain", "explain_methods", "multilabel_metrics", "names", "on_grid", "weights_file"]
