"""Land-cover classifiers: networks, training, metrics, checkpoints and activation maps; torch and numpy only."""

from typing import TYPE_CHECKING

from infra.on_demand import names_of

if TYPE_CHECKING:
    from classifiers.cam.explain import explain
    from classifiers.cam.grid import on_grid
    from classifiers.cam.methods import explain_methods
    from classifiers.contract import check_classifier
    from classifiers.metrics import multilabel_metrics
    from classifiers.registry import CLASSIFIERS, ClassifierSpec, build, names, spec, weights_file
else:  # torch takes 500 MB, and the tables of networks and methods need none of it
    __getattr__ = names_of(
        __name__,
        {
            "classifiers.cam.explain": ["explain"],
            "classifiers.cam.grid": ["on_grid"],
            "classifiers.cam.methods": ["explain_methods"],
            "classifiers.contract": ["check_classifier"],
            "classifiers.metrics": ["multilabel_metrics"],
            "classifiers.registry": ["CLASSIFIERS", "ClassifierSpec", "build", "names", "spec", "weights_file"],
        },
    )

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
