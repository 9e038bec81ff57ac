# The base may be any image with Python 3.11 to 3.13 at `python3`: --build-arg BASE=...
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /build
COPY locks/runtime.txt ./
# A folder of plain packages: the final image needs neither pip nor a virtual environment's interpreter links.
RUN python3 -m pip install --no-cache-dir --no-compile --require-hashes --target /packages -r runtime.txt
COPY lora_sidecar /packages/lora_sidecar
# Without docstrings: nothing reads them there, and they would be 1.6 MB of memory.
RUN python3 -OO -m compileall -q /packages

FROM ${BASE}
LABEL org.opencontainers.image.title="lora-sidecar" \
      org.opencontainers.image.description="Keeps the LoRA adapters of a vLLM server loaded across its restarts."
ENV PYTHONPATH=/packages PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONOPTIMIZE=2
COPY --from=build /packages /packages
# A checkpoint volume that is mounted here must be writable for this user (fsGroup in Kubernetes).
RUN mkdir -p /var/lib/lora-sidecar && chown 65532:65532 /var/lib/lora-sidecar
USER 65532:65532
EXPOSE 9400
ENTRYPOINT ["python3", "-m", "lora_sidecar"]
CMD ["run", "--config", "/etc/lora-sidecar/sidecar.yaml"]
