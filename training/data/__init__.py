"""Training data: from what people have (pairs, edits, labelled steps) to rows for an aligner."""
