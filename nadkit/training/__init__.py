"""Training: one network on any data (`fit`), one architecture on many problems (`fit_many`), many networks that differ
in whatever one likes, with their weights over the training (`fit_networks`)."""

from nadkit.training.many import *  # noqa: F403
from nadkit.training.many import __all__ as __all__
