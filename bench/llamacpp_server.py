"""llama.cpp's own server as a process: `python -m bench.llamacpp_server FILE.gguf --port 8080`.

The server is the one compiled into `xllamacpp`, started with what `llama-server --jinja --offline`
would set; a wheel spares every checkout nine minutes of compiling.
"""

import argparse
import signal
from pathlib import Path

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--alias", default="writer", help="the model's name on the wire")
    parser.add_argument("--port", type=int, default=8080, help="on 127.0.0.1")
    args = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = str(args.model)
    params.model_alias = {args.alias}
    params.port = args.port
    params.offline = True
    params.use_jinja = True
    params.n_ctx = 1024
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)  # serves in threads of its own for as long as it is kept
    print(f"llama.cpp's server on {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
