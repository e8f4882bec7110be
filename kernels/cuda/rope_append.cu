/* Head norm, RoPE and append to the paged cache.
 *   q, k heads: x = x * rsqrt(mean(x^2) + eps) * norm (optional), then rotated pairs (u, v):
 *   u' = u cos - v sin, v' = v cos + u sin
 *   pair i is dims (2i, 2i + 1), or (i, i + n_rot / 2) when neox
 *   qkv [n_tokens, (n_heads + 2 n_kv_heads) * head_dim] -> q [n_tokens, n_heads, head_dim], pool
 *   one warp a (token, head), 8 warps a block; lanes share the head's pairs. Any shape; those of
 *   the tensor-core layouts go to rope_append_wide.cu
 *   bytes: read once, written once, 2 bytes a store: 64 rows of the 8B shape 4.3 us (wide: 3.6)
 *   numerics: float32; angles come from step_device.rope (computed in double once a step)
 * Source: Su et al. 2021; GGUF's two pairings. */
#include "kernels/cuda/attention_device.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/rope_append.h"

#define ROPE_WARPS 8
#define ROPE_PAIRS (KV_HEAD_DIM_MAX / 2 / 32) /* of a head in one lane */

__device__ static float load_any(const void *p, int type, size_t i) {
    if (type == DTYPE_F32) return ((const float *)p)[i];
    if (type == DTYPE_F16) return __half2float(((const __half *)p)[i]);
    return __bfloat162float(((const __nv_bfloat16 *)p)[i]);
}

/* What is stored is finite: see kv_layout.h. 65504 for every type, so that all pools agree. */
__device__ static float finite(float x) {
    return x != x ? 0.0f : to_f16_range(x);
}

/* Dims of pair i of a head. */
__device__ static void pair_dims(const rope_args &a, int i, int *u, int *v) {
    const int half = a.n_rot / 2;
    if (i >= half || !a.neox) {
        *u = 2 * i; /* pairs behind n_rot pass through; n_rot is even */
        *v = 2 * i + 1;
    } else {
        *u = i;
        *v = i + half;
    }
}

__device__ static float warp_sum(float x) {
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(ptx::FULL, x, i);
    return x;
}
__device__ static float warp_max(float x) {
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(ptx::FULL, x, i));
    return x;
}

__device__ static void store16(void *p, int type, size_t i, float x) {
    if (type == DTYPE_F32)
        ((float *)p)[i] = x;
    else if (type == DTYPE_BF16)
        ((__nv_bfloat16 *)p)[i] = __float2bfloat16(x);
    else
        ((__half *)p)[i] = __float2half(to_f16_range(x));
}

/* One head's row into the pool: value 0 is K, 1 is V. x: the lane's pairs. */
__device__ static void append(const rope_args &a, int row, int kv_head, int value,
                              float (&x)[ROPE_PAIRS][2], int lane) {
    const int dim = a.kv.head_dim, pos = a.step.row_pos[row];
    const int32_t *block = a.step.block + a.step.block_start[a.step.row_seq[row]];
    const int token = pos % a.kv.block_tokens;
    char *head = a.kv_layer + kv_head_offset(&a.kv, block[pos / a.kv.block_tokens], kv_head);
    float top = 0.0f;
#pragma unroll
    for (int j = 0; j < ROPE_PAIRS; j++) {
        x[j][0] = finite(x[j][0]);
        x[j][1] = finite(x[j][1]);
        top = fmaxf(top, fmaxf(fabsf(x[j][0]), fabsf(x[j][1])));
    }
    float inverse = 0.0f;
    if (a.kv.type == DTYPE_I8) {
        top = warp_max(top);
        const float scale = top > 0.0f ? top / 127.0f : 1.0f;
        inverse = 1.0f / scale;
        if (lane == 0) *(float *)(head + kv_scale_offset(&a.kv, value, token)) = scale;
    }
#pragma unroll
    for (int j = 0; j < ROPE_PAIRS; j++) {
        const int i = lane + 32 * j;
        if (i >= dim / 2) break;
        int d[2];
        if (value == 0)
            pair_dims(a, i, &d[0], &d[1]);
        else
            d[0] = 2 * i, d[1] = 2 * i + 1;
        for (int e = 0; e < 2; e++) {
            char *p = head + kv_elem_offset(&a.kv, value, token, d[e]);
            if (a.kv.type == DTYPE_I8)
                *(int8_t *)p = (int8_t)__float2int_rn(x[j][e] * inverse);
            else
                store16(p, a.kv.type, 0, x[j][e]);
        }
    }
}

__global__ void __launch_bounds__(ROPE_WARPS * 32) rope_append_kernel(const rope_args a) {
    const int lane = threadIdx.x % 32, dim = a.kv.head_dim;
    const int n_all = a.n_heads + 2 * a.kv.n_kv_heads;
    const long long unit = (long long)blockIdx.x * ROPE_WARPS + threadIdx.x / 32;
    const int row = (int)(unit / n_all), head = (int)(unit % n_all);
    ptx::pdl_trigger();
    ptx::pdl_wait();
    if (row >= a.n_tokens) return;
    const bool is_q = head < a.n_heads, is_v = head >= a.n_heads + a.kv.n_kv_heads;
    const size_t src = ((size_t)row * n_all + head) * dim;
    float x[ROPE_PAIRS][2], ss = 0.0f;
#pragma unroll
    for (int j = 0; j < ROPE_PAIRS; j++) {
        const int i = lane + 32 * j;
        x[j][0] = x[j][1] = 0.0f;
        if (i < dim / 2) {
            int u = 2 * i, v = 2 * i + 1;
            if (!is_v) pair_dims(a, i, &u, &v);
            x[j][0] = load_any(a.qkv, a.qkv_type, src + u);
            x[j][1] = load_any(a.qkv, a.qkv_type, src + v);
            ss += x[j][0] * x[j][0] + x[j][1] * x[j][1];
        }
    }
    if (is_v) {
        append(a, row, head - a.n_heads - a.kv.n_kv_heads, 1, x, lane);
        return;
    }
    const float *norm = is_q ? a.q_norm : a.k_norm;
    const float r = norm ? rsqrtf(warp_sum(ss) / (float)dim + a.norm_eps) : 1.0f;
    const float2 *rope = a.step.rope + (size_t)row * (a.n_rot / 2);
#pragma unroll
    for (int j = 0; j < ROPE_PAIRS; j++) {
        const int i = lane + 32 * j;
        if (i >= dim / 2) break;
        int u, v;
        pair_dims(a, i, &u, &v);
        if (norm) {
            x[j][0] *= r * norm[u];
            x[j][1] *= r * norm[v];
        }
        if (i < a.n_rot / 2) {
            const float2 cs = rope[i];
            const float y = x[j][0], z = x[j][1];
            x[j][0] = y * cs.x - z * cs.y;
            x[j][1] = z * cs.x + y * cs.y;
        }
        if (is_q) {
            const size_t dst = ((size_t)row * a.n_heads + head) * dim;
            store16(a.q, a.q_type, dst + u, x[j][0]);
            store16(a.q, a.q_type, dst + v, x[j][1]);
        }
    }
    if (!is_q) append(a, row, head - a.n_heads, 0, x, lane);
}

extern "C" status cuda_rope_append(const attention *a, const rope_append_args *args,
                                   cudaStream_t stream) {
    if (args->n_tokens < 1 || args->n_tokens > a->n_tokens_max) return E_INVAL;
    if (args->n_rot < 0 || args->n_rot > a->kv.head_dim || args->n_rot % 2 != 0) return E_INVAL;
    rope_args p = {};
    p.kv = a->kv;
    p.step = *args->step;
    p.qkv = args->qkv;
    p.q_norm = args->q_norm;
    p.k_norm = args->k_norm;
    p.q = args->q;
    p.kv_layer = (char *)args->kv_layer;
    p.qkv_type = args->qkv_type;
    p.q_type = a->q_type;
    p.n_heads = a->n_heads;
    p.n_tokens = args->n_tokens;
    p.n_rot = args->n_rot;
    p.neox = args->neox;
    p.norm_eps = args->norm_eps;
    const bool pdl = args->pdl && a->sm >= 90;
    if (rope_append_is_wide(&p)) return rope_append_wide_launch(&p, pdl, stream);
    const size_t units = (size_t)args->n_tokens * (size_t)(a->n_heads + 2 * a->kv.n_kv_heads);
    return cuda_launch(rope_append_kernel, dim3((unsigned)((units + ROPE_WARPS - 1) / ROPE_WARPS)),
                       dim3(ROPE_WARPS * 32), 0, stream, pdl, p);
}
