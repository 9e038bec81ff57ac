# Any two images with glibc, the C++ library (libstdc++) and the same Python (3.11 or newer) at `python3` will do, and
# only the first of them needs pip. Nothing runs a shell, so that the second may be one without:
#   --build-arg BUILD_BASE=IMAGE-WITH-PIP --build-arg BASE=IMAGE-WITHOUT-A-SHELL
ARG BUILD_BASE=python:3.13-slim
ARG BASE=${BUILD_BASE}

FROM ${BUILD_BASE} AS build
WORKDIR /build
COPY locks/runtime.txt ./
# A folder of plain packages: the image needs neither pip nor a virtual environment's links to an interpreter.
RUN ["python3", "-m", "pip", "install", "--no-cache-dir", "--no-compile", "--only-binary", ":all:", \
     "--require-hashes", "--no-deps", "--target", "/packages", "-r", "runtime.txt"]
COPY lora_sidecar /packages/lora_sidecar
# The root file system is read-only where it runs. Checked by nothing: a changed time stamp must not cost every start.
# Without docstrings: nothing reads them there, and they would be 1.6 MB of memory.
RUN ["python3", "-OO", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "/packages"]

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lora-sidecar" \
      org.opencontainers.image.description="Keeps the LoRA adapters of a vLLM server loaded across its restarts." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /packages /packages
# The checkpoint's folder, for a volume to be mounted on; a command for people; and the modules of the base that are
# used, compiled: many bases have none compiled, and where it runs it can write none, so each start would compile them.
RUN ["python3", "-OO", "-c", "import os, sys; \
state = '/var/lib/lora-sidecar'; os.makedirs(state); os.chown(state, 65532, 65532); \
command = '/usr/local/bin/lora-sidecar'; os.makedirs(os.path.dirname(command), exist_ok=True); \
open(command, 'w').write(f'#!{sys.executable}\\nfrom lora_sidecar.__main__ import main\\nmain()\\n'); \
os.chmod(command, 0o755); \
sys.path.insert(0, '/packages'); import lora_sidecar.cli.main, lora_sidecar.daemon, lora_sidecar.cli.healthcheck"]
ENV PYTHONPATH=/packages PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONOPTIMIZE=2
USER 65532:65532
EXPOSE 9400
# For docker and podman. Kubernetes does not look at it: there the kubelet asks /livez.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["lora-sidecar", "healthcheck"]
ENTRYPOINT ["lora-sidecar"]
CMD ["run", "--config", "/etc/lora-sidecar/sidecar.yaml"]
