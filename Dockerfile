# The service (target `serve`, the default) and training jobs (target `train`); docs/deploy.md explains the arguments.

# Pinned by version. By digest too: --build-arg PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS requirements
# Which build of torch: `cpu`, a CUDA build such as `cu130`, or empty for the one that the package index has.
ARG TORCH_BUILD=
# The package index that has this build; torch alone is taken from there.
ARG TORCH_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY constraints.txt pyproject.toml ./
COPY deploy/image/requirements.py ./
RUN python3 -m venv /opt/willbuy \
    && python3 requirements.py pyproject.toml > serve.txt \
    && python3 requirements.py pyproject.toml --extra train > train.txt
# Torch first and by itself: it is most of the image, and changes least.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    /opt/willbuy/bin/python -m pip install --no-deps ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} \
        "$(grep '^torch==' constraints.txt)${TORCH_BUILD:++$TORCH_BUILD}" \
    # Headers and tests of torch: a tenth of the image that nothing here reads.
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
# What runs needs no installer.
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
# A volume that is new takes its owner from the folder where it is mounted.
RUN groupadd --gid 10001 willbuy \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin willbuy \
    && install --directory --owner 10001 --group 10001 /artifacts /keys
WORKDIR /artifacts
ENTRYPOINT ["willbuy"]

FROM base AS train
# LightGBM's wheel leaves OpenMP's library to the system.
# hadolint ignore=DL3008 # Debian keeps one version of a package at a time, so a pinned one is gone after the next fix
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=train-environment /opt/willbuy /opt/willbuy
USER 10001:10001
CMD ["train", "--help"]

# Last, so that a build without --target makes it.
FROM base AS serve
COPY --from=serve-environment /opt/willbuy /opt/willbuy
USER 10001:10001
EXPOSE 8000
# Whether the process answers, not whether Redis does: a restart would not bring Redis back.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
