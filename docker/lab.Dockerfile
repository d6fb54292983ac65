# The lab's environment with JupyterLab, for people who prefer a container to .venv.
# Built by compose.yaml, which sets the arguments from docker/.env.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
FROM ${PYTHON_IMAGE}

ARG LAB_UID=1000
ARG LAB_GID=1000

# The cache folder exists in the image so that a new volume takes over its owner.
RUN groupadd --gid "${LAB_GID}" lab \
    && useradd --uid "${LAB_UID}" --gid "${LAB_GID}" --create-home lab \
    && mkdir -p /lab /home/lab/.cache \
    && chown -R lab:lab /lab /home/lab

ENV PATH=/home/lab/.venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

USER lab
WORKDIR /lab

# The packages change seldom and weigh gigabytes: a layer of their own, before the code.
COPY --chown=lab:lab pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=lab:lab labkit/__init__.py labkit/__init__.py
RUN python -m venv /home/lab/.venv \
    && /home/lab/.venv/bin/pip install --no-cache-dir -c constraints.txt -e ".[dev]"

COPY --chown=lab:lab . .

EXPOSE 8888
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8888/api', timeout=3)"]

# Listens on all of the container's interfaces; compose.yaml publishes the port on the host's
# loopback only. No token is set here: Jupyter takes JUPYTER_TOKEN, or makes one and prints it.
CMD ["jupyter", "lab", "--no-browser", "--ServerApp.ip=0.0.0.0", "--ServerApp.port=8888", \
     "--ServerApp.port_retries=0", "--LabApp.default_url=/lab/tree/notebooks/01_data.ipynb"]
