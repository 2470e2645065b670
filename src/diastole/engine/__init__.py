"""The engine: one loop that knows no kind of model and no technique by name."""
