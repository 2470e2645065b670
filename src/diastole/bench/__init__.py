"""Measurements: Diastole alone, beside its peers, and beside what the machine could do."""
