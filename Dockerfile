# captioner serve in a container: docker build -t captioner . && docker compose up
FROM python:3.13-slim AS build
# Wheels of PyTorch for CPUs; for CUDA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY . .
RUN python -m venv /opt/captioner \
    && /opt/captioner/bin/pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" '.[web,heif]'

FROM python:3.13-slim
COPY --from=build /opt/captioner /opt/captioner
# It needs only /tmp, so the root file system may be read-only: docker run --read-only --tmpfs /tmp
ENV HOME=/tmp \
    PATH=/opt/captioner/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /models
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# It refuses to start without $CAPTIONER_TOKEN or --no-token.
ENTRYPOINT ["captioner", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--model", "photos"]
