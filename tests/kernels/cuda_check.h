/* Shared by the stand-alone CUDA checks: error handling, a seeded generator, device copies. Each
 * check is a plain main that prints a line a case and ends 1 when any case is wrong; small enough
 * for compute-sanitizer. Not thread-safe. */
#ifndef INFERD_TESTS_CUDA_CHECK_H
#define INFERD_TESTS_CUDA_CHECK_H

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#define CUDA_OK(call)                                                                              \
    do {                                                                                           \
        const cudaError_t e_ = (call);                                                             \
        if (e_ != cudaSuccess) {                                                                   \
            printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e_));                     \
            exit(2);                                                                               \
        }                                                                                          \
    } while (0)

struct rng {
    uint64_t state;
    uint32_t next() { /* splitmix64 */
        uint64_t z = (state += 0x9E3779B97F4A7C15ull);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        return (uint32_t)((z ^ (z >> 31)) >> 32);
    }
    int below(int n) { return (int)(((uint64_t)next() * (uint64_t)n) >> 32); }
    float uniform() { return (float)(next() >> 8) * (1.0f / 16777216.0f); }
    float normal() { /* Box-Muller */
        const float u = uniform() + 1e-7f, v = uniform();
        return sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * v);
    }
};

/* A device array that frees itself. */
template <class T> struct device_array {
    T *p = nullptr;
    size_t n = 0;
    explicit device_array(size_t count) : n(count) {
        CUDA_OK(cudaMalloc((void **)&p, (count ? count : 1) * sizeof(T)));
    }
    explicit device_array(const std::vector<T> &v) : device_array(v.size()) { put(v); }
    device_array(const device_array &) = delete;
    ~device_array() { cudaFree(p); }
    void put(const std::vector<T> &v) {
        if (!v.empty()) {
            CUDA_OK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
            CUDA_OK(cudaDeviceSynchronize()); /* a pageable copy may still be on its way */
        }
    }
    std::vector<T> get() const {
        std::vector<T> v(n);
        if (n) CUDA_OK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
        return v;
    }
    void fill(int byte) { CUDA_OK(cudaMemset(p, byte, n * sizeof(T))); }
};

/* A machine without a device skips: the caller returns 0. */
static inline bool cuda_device_missing(void) {
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess && n > 0) return false;
    printf("SKIP: no CUDA device\n");
    return true;
}
#endif
