"""Training: one network on any data (`fit`), one architecture on many problems (`fit_many`), many networks that differ
in any setting, with their weights over the training (`fit_networks`)."""

from nadkit.training.fitting import Data, Diverged, History, Objective, Problem, cross_entropy, evaluate, fit
from nadkit.training.many import TOGETHER, WORTH_VMAP, Trained, fit_many, fit_networks
from nadkit.training.recipe import CIFAR, SEPARABLE, STOP_WINDOW, Recipe

__all__ = [
    "CIFAR",
    "SEPARABLE",
    "STOP_WINDOW",
    "TOGETHER",
    "WORTH_VMAP",
    "Data",
    "Diverged",
    "History",
    "Objective",
    "Problem",
    "Recipe",
    "Trained",
    "cross_entropy",
    "evaluate",
    "fit",
    "fit_many",
    "fit_networks",
]
