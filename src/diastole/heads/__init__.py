"""Heads: networks and estimates that one technique brings along, trained by a recipe and loaded by name."""
