# A Space of the Docker kind, or any machine with a container engine: docker build -t mergelab . && docker run -p 7860:7860 mergelab
ARG BASE=python:3.12-slim
FROM ${BASE}

RUN useradd -m -u 1000 user
USER user
ENV HOME=/home/user \
    PATH=/home/user/.local/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/home/user/.cache/huggingface \
    MERGELAB_HOME=/home/user/.cache/mergelab \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860
WORKDIR /home/user/app

# The versions first, so that a change of ours does not install everything again.
COPY --chown=user requirements.txt ./
COPY --chown=user .ci/constraints.txt .ci/
RUN pip install --user --no-cache-dir -c .ci/constraints.txt -r requirements.txt

COPY --chown=user . .

EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/config', timeout=5)"]
CMD ["python", "app.py"]
