# inferd in an image: docker build --target cpu -t inferd:cpu .   or   --target cuda -t inferd:cuda
# Both hold one binary (and its client) and what it links at run time; they run as uid 65532 with a read-only root.

FROM debian:12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
        gcc g++ clang cmake ninja-build pkg-config python3 python3-venv ca-certificates \
        protobuf-compiler protobuf-c-compiler libprotobuf-c-dev libprotobuf-dev libyaml-dev libmicrohttpd-dev libutf8proc-dev \
        libjansson-dev libssl-dev libedit-dev zlib1g-dev libgrpc-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY cmake cmake
COPY scripts scripts
# What is built from source changes seldom: layers of their own.
RUN INFERD_GRPC_DIR=/opt/grpc-core scripts/build_grpc.sh
RUN INFERD_MICROHTTPD_DIR=/opt/microhttpd scripts/build_microhttpd.sh
COPY . .

FROM build AS build-cpu
RUN cmake --preset static -DINFERD_GRPC=bundled -DINFERD_GRPC_DIR=/opt/grpc-core -DINFERD_MICROHTTPD_DIR=/opt/microhttpd && \
    cmake --build --preset static -- inferd inferctl && scripts/image_root.sh build/static /image

FROM build AS build-cuda
RUN INFERD_CUDA_OPTIONS="-DINFERD_STATIC=ON -DINFERD_GRPC=bundled -DINFERD_GRPC_DIR=/opt/grpc-core -DINFERD_MICROHTTPD_DIR=/opt/microhttpd" \
    scripts/build_cuda.sh && \
    scripts/image_root.sh build/cuda-all /image

FROM scratch AS cpu
COPY --from=build-cpu /image /
USER 65532:65532
EXPOSE 50051 50052 9090
ENTRYPOINT ["/usr/bin/inferd"]

# cuBLASLt comes with NVIDIA's base image; the driver from the host.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS cuda
RUN apt-get update && apt-get install -y --no-install-recommends libcublas-13-0 && rm -rf /var/lib/apt/lists/*
COPY --from=build-cuda /image/usr/bin /usr/bin
COPY --from=build-cuda /image/usr/share/doc/inferd /usr/share/doc/inferd
USER 65532:65532
EXPOSE 50051 50052 9090
ENTRYPOINT ["/usr/bin/inferd"]
