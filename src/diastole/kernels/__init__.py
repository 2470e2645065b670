"""Operators on numpy arrays: native where the extension is built, plain torch otherwise. See ``table``."""
