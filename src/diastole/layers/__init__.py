"""Layers that one kind of model is made of, where the model's own file would be too long with them."""
