"""Guessing ahead: what drafts are checked by."""
