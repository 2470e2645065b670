"""Recipes: small checkpoints that anyone can train again, ``diastole train NAME``."""
