"""Loads that arrive in time, and how many of their requests are answered as promised: goodput."""
