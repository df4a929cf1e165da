# The command ldm-jax:
#
#   docker build -t ldm-jax .                                for CPUs
#   docker build -t ldm-jax:cuda --build-arg EXTRA=cuda .    for NVIDIA GPUs
#   docker run --rm -v "$PWD/runs:/work/runs" ldm-jax info runs/text
#
# EXTRA is an extra of setup.cfg, or several, separated by commas; with cuda jax
# brings its own CUDA libraries, so the base image is the same.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ARG EXTRA=""
WORKDIR /source
COPY setup.cfg setup.py pyproject.toml README.md LICENSE ./
COPY ldm_jax ldm_jax
COPY configs configs
RUN python -m venv /opt/ldm \
  && /opt/ldm/bin/pip install --no-cache-dir ".${EXTRA:+[${EXTRA}]}"

FROM python:${PYTHON}-slim
COPY --from=build /opt/ldm /opt/ldm
RUN useradd --create-home ldm && install -d -o ldm /work
ENV PATH=/opt/ldm/bin:$PATH
USER ldm
WORKDIR /work
ENTRYPOINT ["ldm-jax"]
CMD ["--help"]
