"""Directions in deep networks: what an architecture prefers in its inputs, and how much a network leans on its units.

The most used names are here. Each is imported, and torch with it, when it is first used.
"""

# ruff: noqa: F401 (the imports below are for type checkers and editors)

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nadkit.activations.ablation import (
        area_under_curve,
        cumulative_curve,
        layer_curves,
        noise_curve,
        unit_impact,
    )
    from nadkit.activations.activity import record_activity
    from nadkit.activations.selectivity import class_selectivity, mutual_information
    from nadkit.activations.sites import find_sites
    from nadkit.architectures import build, pretrained
    from nadkit.data.images import ImageSet, load
    from nadkit.data.interventions import Clean, Corrupted, Flipped, Poisoned, Rotated
    from nadkit.data.published import published_nads
    from nadkit.data.synthetic import Separable
    from nadkit.inputs.basis import Basis, NADs, pixel_basis, random_basis
    from nadkit.inputs.covariance import compute_nads, gradient_covariance
    from nadkit.inputs.fourier import fourier_basis, fourier_direction
    from nadkit.inputs.gram import leading_nads
    from nadkit.inputs.population import Population
    from nadkit.training import Recipe, fit, fit_many, fit_networks

_NAMES = {
    "nadkit.activations.ablation": (
        "area_under_curve",
        "cumulative_curve",
        "layer_curves",
        "noise_curve",
        "unit_impact",
    ),
    "nadkit.activations.activity": ("record_activity",),
    "nadkit.activations.selectivity": ("class_selectivity", "mutual_information"),
    "nadkit.activations.sites": ("find_sites",),
    "nadkit.architectures": ("build", "pretrained"),
    "nadkit.data.images": ("ImageSet", "load"),
    "nadkit.data.interventions": ("Clean", "Corrupted", "Flipped", "Poisoned", "Rotated"),
    "nadkit.data.published": ("published_nads",),
    "nadkit.data.synthetic": ("Separable",),
    "nadkit.inputs.basis": ("Basis", "NADs", "pixel_basis", "random_basis"),
    "nadkit.inputs.covariance": ("compute_nads", "gradient_covariance"),
    "nadkit.inputs.fourier": ("fourier_basis", "fourier_direction"),
    "nadkit.inputs.gram": ("leading_nads",),
    "nadkit.inputs.population": ("Population",),
    "nadkit.training": ("Recipe", "fit", "fit_many", "fit_networks"),
}
# Where each name is from.
HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*HOME]


def __getattr__(name: str) -> object:
    if name not in HOME:
        raise AttributeError(f"module 'nadkit' has no attribute {name!r}")
    return getattr(importlib.import_module(HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
