"""Training: from the demo world (or your data) to an aligner. Imports the core only."""
