# Airflow's own image with this package in it. The versions are those that its tests run with (requirements/dev.lock).
ARG AIRFLOW_VERSION=3.3.2
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim-bookworm AS wheel
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY airflow_extract_provider ./airflow_extract_provider
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM apache/airflow:${AIRFLOW_VERSION}-python${PYTHON_VERSION}
ARG AIRFLOW_VERSION
# Volumes that are mounted here take its owner over: as root's, Airflow could write nothing into them.
RUN mkdir -p /opt/airflow/auth /opt/airflow/sources
COPY --from=wheel /wheels /tmp/wheels
# Airflow is named, with the image's version: otherwise pip could replace it by another one.
RUN pip install --no-cache-dir "apache-airflow==${AIRFLOW_VERSION}" \
      "$(ls /tmp/wheels/airflow_extract_provider-*.whl)[kafka,receiver,redis]"
