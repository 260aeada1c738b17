"""The APIs a client may speak: each reads its own requests as chat requests and writes replies."""
