# Two images:
#   docker build --target gateway -t stream-aligner-proxy .            no torch: rules, or an aligner
#                                                                      behind a server
#   docker build --target cuda -t stream-aligner-proxy:cuda .          with vLLM: an aligner in the
#                                                                      process, on a GPU
# Both run as a numeric user, on a read-only root (give a tmpfs at /tmp).
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY stream_aligner_proxy stream_aligner_proxy
COPY training training
# The constraints hold for what builds, too.
RUN --mount=type=cache,target=/root/.cache/pip \
    PIP_CONSTRAINT=/src/constraints.txt pip wheel --no-deps --wheel-dir /wheels .

# A venv of its own, so that the image has what runs and not what builds.
FROM ${PYTHON_IMAGE} AS installed
# `remote`: the tokenizers that an aligner behind a server needs. `redis`: limits shared by several
# processes. `traces`: OpenTelemetry. Empty leaves all of them out.
ARG EXTRAS=remote,redis,traces
COPY constraints.txt /constraints.txt
COPY --from=wheel /wheels /wheels
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv \
    && /opt/venv/bin/pip install --constraint /constraints.txt \
       "stream-aligner-proxy[${EXTRAS}] @ file://$(echo /wheels/*.whl)" \
    && /opt/venv/bin/pip check \
    && /opt/venv/bin/pip uninstall --yes pip

FROM ${VLLM_IMAGE} AS cuda
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="stream-aligner-proxy (CUDA)" \
      org.opencontainers.image.description="Corrects an LLM's reply, sentence by sentence, while it is being written" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
ARG EXTRAS=redis,traces
COPY constraints.txt deploy/constraints-beside.awk /build/
COPY --from=wheel /wheels /wheels
# What this vLLM was built with stays as it is; the constraints hold for the rest.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip freeze | awk -f /build/constraints-beside.awk - /build/constraints.txt > /build/all.txt \
    && python3 -m pip install --constraint /build/all.txt \
       "stream-aligner-proxy[${EXTRAS}] @ file://$(echo /wheels/*.whl)" \
    && rm -r /wheels /build
# The user has no entry in /etc/passwd; caches go to /tmp.
ENV HOME=/tmp USER=aligner XDG_CACHE_HOME=/tmp/cache HF_HOME=/tmp/huggingface \
    VLLM_CACHE_ROOT=/tmp/cache/vllm TRITON_CACHE_DIR=/tmp/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor HF_HUB_OFFLINE=1 \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /etc/stream-aligner
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
    CMD ["stream-aligner", "health"]
ENTRYPOINT ["stream-aligner"]
CMD ["serve", "--config", "/etc/stream-aligner/config.yaml"]

FROM ${PYTHON_IMAGE} AS gateway
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="stream-aligner-proxy" \
      org.opencontainers.image.description="Corrects an LLM's reply, sentence by sentence, while it is being written" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
COPY --from=installed /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp XDG_CACHE_HOME=/tmp/cache HF_HOME=/tmp/huggingface \
    HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /etc/stream-aligner
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
    CMD ["stream-aligner", "health"]
ENTRYPOINT ["stream-aligner"]
CMD ["serve", "--config", "/etc/stream-aligner/config.yaml"]
