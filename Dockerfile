# The service (target `serve`, the default) and training jobs (target `train`); docs/deploy.md explains the arguments.

# Pinned by version. To pin the digest too: --build-arg PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS requirements
# Build of torch: `cpu`, a CUDA build such as `cu130`, or empty for the build in the package index.
ARG TORCH_BUILD=
# Package index with this build; only torch is installed from there.
ARG TORCH_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY constraints.txt pyproject.toml ./
COPY deploy/image/requirements.py ./
RUN python3 -m venv /opt/willbuy \
    && python3 requirements.py pyproject.toml --extra kafka > serve.txt \
    && python3 requirements.py pyproject.toml --extra train > train.txt
# Torch first and in a separate layer: it is most of the image and changes least.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    /opt/willbuy/bin/python -m pip install --no-deps ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} \
        "$(grep '^torch==' constraints.txt)${TORCH_BUILD:++$TORCH_BUILD}" \
    # Headers and tests of torch are a tenth of the image and unused.
    && rm -rf /opt/willbuy/lib/python3*/site-packages/torch/include /opt/willbuy/lib/python3*/site-packages/torch/test
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    /opt/willbuy/bin/python -m pip install --constraint constraints.txt --requirement serve.txt

FROM requirements AS wheel
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    python3 -m venv /opt/wheel \
    && /opt/wheel/bin/python -m pip install --constraint constraints.txt hatchling
COPY README.md LICENSE ./
COPY app app
COPY model model
COPY training training
RUN /opt/wheel/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

FROM requirements AS serve-environment
COPY --from=wheel /dist /dist
# The running service needs no installer.
RUN /opt/willbuy/bin/python -m pip install --no-deps --no-index /dist/*.whl \
    && /opt/willbuy/bin/python -m pip uninstall --yes setuptools pip

FROM requirements AS train-environment
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    /opt/willbuy/bin/python -m pip install --constraint constraints.txt --requirement train.txt
COPY --from=wheel /dist /dist
RUN /opt/willbuy/bin/python -m pip install --no-deps --no-index /dist/*.whl \
    && /opt/willbuy/bin/python -m pip uninstall --yes setuptools pip

FROM ${PYTHON_IMAGE} AS base
LABEL org.opencontainers.image.title="willbuy" \
    org.opencontainers.image.description="Real-time purchase prediction for e-shops" \
    org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/willbuy/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    WILLBUY_ARTIFACT=/artifacts/model.pt
# A new volume takes its owner from the folder where it is mounted.
RUN groupadd --gid 10001 willbuy \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin willbuy \
    && install --directory --owner 10001 --group 10001 /artifacts /keys
WORKDIR /artifacts
ENTRYPOINT ["willbuy"]

FROM base AS train
# LightGBM's wheel needs the system's OpenMP library.
# hadolint ignore=DL3008 # Debian keeps only one version of a package, so a pinned one disappears with the next fix
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=train-environment /opt/willbuy /opt/willbuy
USER 10001:10001
CMD ["train", "--help"]

# The last stage, because a build without --target builds it.
FROM base AS serve
COPY --from=serve-environment /opt/willbuy /opt/willbuy
USER 10001:10001
EXPOSE 8000
# Checks the process and not Redis, because a restart would not repair Redis.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
