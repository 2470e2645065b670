"""Reproductions: one file per paper, named after it, and the harness that runs, judges, prints and saves them.

A reproduction has ``PAPER``, one line that says what it shows, and ``run(study)``: see ``study.py``. Nobody but the
harness imports them.
"""
