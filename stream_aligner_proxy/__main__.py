"""`python -m stream_aligner_proxy` is the command `stream-aligner`."""

import sys

from stream_aligner_proxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
