"""One small file per source: how its records become rows."""
