"""Measure an aligner on held-out rows: what it keeps, what it mends, and how sure it is."""
