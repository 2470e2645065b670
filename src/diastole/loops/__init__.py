"""Loops: how each kind of model decodes in time. The only floor that knows what a unit is."""
