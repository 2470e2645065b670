"""Stores: ways to keep keys and values that one technique brings along."""
