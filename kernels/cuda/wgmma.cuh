/* wgmma (sm_90a): D[64 x N] += A[64 x 16] B[16 x N], float32 accumulators in registers, B in shared
 * memory, A in shared memory or registers. Issued by a warpgroup of four warps.
 * Descriptors: address >> 4 | leading offset >> 4 << 16 | stride >> 4 << 32 | swizzle << 62.
 * Source: PTX ISA 9.0, asynchronous warpgroup level matrix instructions. */
#ifndef INFERD_KERNELS_CUDA_WGMMA_CUH
#define INFERD_KERNELS_CUDA_WGMMA_CUH

#include "kernels/cuda/ptx.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WGMMA_BUILT 1
#else
#define WGMMA_BUILT 0
#endif

#if WGMMA_BUILT
namespace wgmma {

__device__ __forceinline__ void fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> __device__ __forceinline__ void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* Keeps the compiler from moving accumulators across an asynchronous product. */
template <int N> __device__ __forceinline__ void pin(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define WG8(a, b, c, d, e, f, g, h) "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h
#define WG32                                                                                       \
    WG8(0, 1, 2, 3, 4, 5, 6, 7)                                                                    \
    "," WG8(8, 9, 10, 11, 12, 13, 14, 15) "," WG8(16, 17, 18, 19, 20, 21, 22,                      \
                                                  23) "," WG8(24, 25, 26, 27, 28, 29, 30, 31)
#define WG48 WG32 "," WG8(32, 33, 34, 35, 36, 37, 38, 39) "," WG8(40, 41, 42, 43, 44, 45, 46, 47)
#define WG64 WG48 "," WG8(48, 49, 50, 51, 52, 53, 54, 55) "," WG8(56, 57, 58, 59, 60, 61, 62, 63)
#define WGF8(d, i)                                                                                 \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGF32(d) WGF8(d, 0), WGF8(d, 8), WGF8(d, 16), WGF8(d, 24)
#define WGF48(d) WGF32(d), WGF8(d, 32), WGF8(d, 40)
#define WGF64(d) WGF48(d), WGF8(d, 48), WGF8(d, 56)

/* A and B in shared memory, both K-major; add 0: D = A B. */
#define WG_SS(N, T, REGS, OUT, i0, i1, i2)                                                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p,%" #i2 ",0;\n"                                   \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." T "." T " {" REGS "},%" #i0     \
                 ",%" #i1 ",p,1,1,0,0;\n}"                                                         \
                 : OUT                                                                             \
                 : "l"(da), "l"(db), "r"(add))
/* A in registers, B in shared memory with N contiguous (transposed). */
#define WG_RS(N, T, REGS, OUT, i0, i1, i2, i3, i4)                                                 \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." T "." T " {" REGS "},{%" #i0    \
                 ",%" #i1 ",%" #i2 ",%" #i3 "},%" #i4 ",1,1,1,1;"                                  \
                 : OUT                                                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(db))

template <int N, bool BF16>
__device__ __forceinline__ void smem_smem(float (&d)[N / 2], uint64_t da, uint64_t db, int add) {
    if constexpr (N == 64) {
        if constexpr (BF16)
            WG_SS(64, "bf16", WG32, WGF32(d), 32, 33, 34);
        else
            WG_SS(64, "f16", WG32, WGF32(d), 32, 33, 34);
    } else if constexpr (N == 96) {
        if constexpr (BF16)
            WG_SS(96, "bf16", WG48, WGF48(d), 48, 49, 50);
        else
            WG_SS(96, "f16", WG48, WGF48(d), 48, 49, 50);
    } else {
        static_assert(N == 128, "64, 96 or 128 columns");
        if constexpr (BF16)
            WG_SS(128, "bf16", WG64, WGF64(d), 64, 65, 66);
        else
            WG_SS(128, "f16", WG64, WGF64(d), 64, 65, 66);
    }
}
template <int N, bool BF16>
__device__ __forceinline__ void regs_smem(float (&d)[N / 2], const uint32_t *a, uint64_t db) {
    if constexpr (N == 64) {
        if constexpr (BF16)
            WG_RS(64, "bf16", WG32, WGF32(d), 32, 33, 34, 35, 36);
        else
            WG_RS(64, "f16", WG32, WGF32(d), 32, 33, 34, 35, 36);
    } else if constexpr (N == 96) {
        if constexpr (BF16)
            WG_RS(96, "bf16", WG48, WGF48(d), 48, 49, 50, 51, 52);
        else
            WG_RS(96, "f16", WG48, WGF48(d), 48, 49, 50, 51, 52);
    } else {
        static_assert(N == 128, "64, 96 or 128 columns");
        if constexpr (BF16)
            WG_RS(128, "bf16", WG64, WGF64(d), 64, 65, 66, 67, 68);
        else
            WG_RS(128, "f16", WG64, WGF64(d), 64, 65, 66, 67, 68);
    }
}

} // namespace wgmma
#endif
#endif
