"""The embedded upstream, tied to the process that started it: it ends when its input closes.

A parent that is killed outright runs no cleanup, but the kernel closes its end of the pipe.
"""

import os
import threading

from stream_aligner_proxy.demo.upstream import main

_STDIN = 0


def _end_with_parent() -> None:
    # The descriptor, not `sys.stdin`: a lock held by this thread would stop the interpreter's exit.
    while os.read(_STDIN, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    main()
