"""Diastole: an inference engine and server for models that decode in time."""

__version__ = "0.1.0"
