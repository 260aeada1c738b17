"""An OpenAI-compatible proxy that aligns any upstream's reply while it is still being written."""

__version__ = "0.1.0"
