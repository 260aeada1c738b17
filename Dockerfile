# Two images: `docker build --target gateway .` (no torch: rules, or an aligner behind a server) and
# `docker build --target cuda .` (an aligner in the process, on a GPU). The last one is the default.
# Numeric users, read-only roots (give a tmpfs at /tmp), the command stream-aligner as entry point.
ARG PYTHON=3.12
ARG VLLM=v0.32.0

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY stream_aligner_proxy stream_aligner_proxy
COPY training training
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# A venv of its own, so that the image has what runs and not what builds.
FROM python:${PYTHON}-slim-bookworm AS installed
# `remote`: the tokenizers that an aligner behind a server needs; `traces`: OpenTelemetry; `redis`:
# limits that several proxies share. Empty leaves them out.
ARG EXTRAS=remote,traces,redis
COPY constraints.txt /constraints.txt
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --constraint /constraints.txt \
       "stream-aligner-proxy[${EXTRAS}] @ file://$(echo /wheels/*.whl)" \
    && /opt/venv/bin/pip uninstall --yes pip

FROM vllm/vllm-openai:${VLLM} AS cuda
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="stream-aligner-proxy (CUDA)" \
      org.opencontainers.image.description="Corrects an LLM's reply, sentence by sentence, while it is being written" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=wheel /wheels /wheels
# Without constraints: torch and transformers are those that this vLLM was built with.
RUN python3 -m pip install --no-cache-dir /wheels/*.whl && rm -r /wheels
# The user has no entry in /etc/passwd; caches go to /tmp.
ENV HOME=/tmp USER=aligner XDG_CACHE_HOME=/tmp/cache TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /etc/stream-aligner
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
    CMD ["stream-aligner", "health"]
ENTRYPOINT ["stream-aligner"]
CMD ["serve", "--config", "/etc/stream-aligner/config.yaml"]

FROM python:${PYTHON}-slim-bookworm AS gateway
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="stream-aligner-proxy" \
      org.opencontainers.image.description="Corrects an LLM's reply, sentence by sentence, while it is being written" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=installed /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp HF_HUB_OFFLINE=1 \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /etc/stream-aligner
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
    CMD ["stream-aligner", "health"]
ENTRYPOINT ["stream-aligner"]
CMD ["serve", "--config", "/etc/stream-aligner/config.yaml"]
