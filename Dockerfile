# Diastole behind OpenAI's HTTP API on port 8000. docs/guides/deployment.md says how to build and run it.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt scikit-build-core nanobind ninja cmake
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY src src
# The wheel holds operators for every instruction set; which one runs is decided at start.
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation -w /wheels .

FROM python:${PYTHON}-slim
# PyPI's torch for Linux brings gigabytes of CUDA; this index has the build for CPUs.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# What is put into the image; empty: nothing, the models are mounted.
ARG MODEL=smollm2-135m
ENV DIASTOLE_CACHE=/var/cache/diastole \
    DIASTOLE_SERVER_HOST=0.0.0.0 \
    DIASTOLE_SERVER_PORT=8000 \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/diastole
COPY constraints.txt ./
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir -c constraints.txt --index-url "${TORCH_INDEX}" torch \
 && pip install --no-cache-dir -c constraints.txt /wheels/*.whl
RUN useradd --system --uid 10001 --home-dir /var/lib/diastole diastole \
 && install -d -o diastole -g diastole /var/cache/diastole
USER diastole
RUN if [ -n "${MODEL}" ]; then diastole pull "${MODEL}"; fi
# Weights in the layout of this machine's kernels are kept here between starts.
VOLUME /var/cache/diastole
EXPOSE 8000
# Healthy while the model loads; unhealthy once the engine is lost for good.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['DIASTOLE_SERVER_PORT'] + '/health', timeout=4)"]
ENTRYPOINT ["diastole"]
CMD ["serve"]
