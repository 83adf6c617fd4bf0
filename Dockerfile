# The daemon and the status page as an image; docs/guides/docker.md says how to use it.
# For NVIDIA GPUs: --build-arg TORCH_INDEX=https://pypi.org/simple (torch with CUDA, gigabytes).
ARG BASE=debian:12.15-slim

FROM ${BASE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-pip python3-venv \
 && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# torch comes first: the build that the index holds satisfies the packages that need torch, and this layer, the
# largest, stays when only Backfire has changed. Its tests, and its headers for programs compiled against it, go.
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m venv --without-pip /opt/backfire \
 && python3 -m pip --python /opt/backfire/bin/python install --index-url "${TORCH_INDEX}" "${TORCH}" \
 && torch=$(echo /opt/backfire/lib/python3*/site-packages/torch) \
 && rm -rf "${torch}/test" "${torch}/include" "${torch}/share" \
 && find "${torch}/bin" -type f ! -name torch_shm_manager -delete
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY daemon daemon
RUN python3 -m pip wheel --no-deps --wheel-dir /wheel .
# Comma-separated, such as heic,text.
ARG EXTRAS=
RUN wheel=$(echo /wheel/*.whl) \
 && python3 -m pip --python /opt/backfire/bin/python install "${wheel}${EXTRAS:+[${EXTRAS}]}"

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates libstdc++6 python3 \
 && rm -rf /var/lib/apt/lists/*
# The numbers of the user to whom the pictures on the host belong. They may be taken: macOS's group 20 is dialout.
ARG UID=1000
ARG GID=1000
RUN groupadd --non-unique --gid "${GID}" backfire \
 && useradd --no-log-init --non-unique --uid "${UID}" --gid "${GID}" --no-create-home --home-dir /tmp backfire \
 && install -d -o backfire -g backfire /pictures /var/lib/backfire/state /var/lib/backfire/models
COPY --from=build /opt/backfire /opt/backfire
COPY packaging/docker/config.yaml /etc/backfire/config.yaml
ENV PATH=/opt/backfire/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1
# By number, so that an engine can see that it is not root.
USER ${UID}:${GID}
# Commands read the config.yaml of the folder in which they run.
WORKDIR /etc/backfire
ENTRYPOINT ["backfire"]
CMD ["run"]
