/* Plain attention: any layout, any even head_dim <= 256, any group; the reference of the
 * tensor-core kernels and the fallback for shapes that they are not built for.
 *   out[r,h,:] = softmax(q[r,h,:] K^T * scale) V over keys [max(0, pos + 1 - window), pos]
 *   grid (rows, n_heads), 128 threads: each of 4 warps takes every fourth key, lanes share head_dim
 *   bytes: every query head reads its keys itself; no target, small models only
 *   numerics: float32 throughout; keys in ascending order within a warp, warps merged in order, so
 *   a row's bits depend on its own keys alone
 * Source: online softmax (Milakov & Gimelshein 2018). */
#include "kernels/cuda/attention_device.cuh"

#define PLAIN_WARPS 4
#define PLAIN_DIMS  (KV_HEAD_DIM_MAX / 32) /* of head_dim in one lane */

struct plain_args {
    kv_layout kv;
    step_device step;
    const void *q, *kv_layer;
    void *out;
    int out_type, n_heads, group, window, row0;
    float scale_log2;
};

template <int TYPE>
__device__ static float load_elem(const kv_layout &l, const char *head, int value, int token,
                                  int d) {
    const char *p = head + kv_elem_offset(&l, value, token, d);
    if (TYPE == DTYPE_F32) return *(const float *)p;
    if (TYPE == DTYPE_F16) return __half2float(*(const __half *)p);
    if (TYPE == DTYPE_BF16) return __bfloat162float(*(const __nv_bfloat16 *)p);
    return (float)*(const int8_t *)p * *(const float *)(head + kv_scale_offset(&l, value, token));
}

template <int TYPE> __device__ static float load_query(const void *q, size_t i) {
    if (TYPE == DTYPE_F32) return ((const float *)q)[i];
    if (TYPE == DTYPE_BF16) return __bfloat162float(((const __nv_bfloat16 *)q)[i]);
    return __half2float(((const __half *)q)[i]);
}

__device__ static void store_elem(void *out, int type, size_t i, float v) {
    if (type == DTYPE_F32)
        ((float *)out)[i] = v;
    else if (type == DTYPE_BF16)
        ((__nv_bfloat16 *)out)[i] = __float2bfloat16(v);
    else
        ((__half *)out)[i] = __float2half(to_f16_range(v));
}

template <int TYPE>
__global__ void __launch_bounds__(PLAIN_WARPS * 32) attention_plain_kernel(const plain_args a) {
    __shared__ float so[PLAIN_WARPS][KV_HEAD_DIM_MAX], sm[PLAIN_WARPS], sl[PLAIN_WARPS];
    const int row = a.row0 + blockIdx.x, head = blockIdx.y;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = a.kv.head_dim;
    ptx::pdl_trigger();
    ptx::pdl_wait();
    const int seq = a.step.row_seq[row], pos = a.step.row_pos[row];
    const int32_t *block = a.step.block + a.step.block_start[seq];
    const int low = a.window > 0 && pos + 1 > a.window ? pos + 1 - a.window : 0;

    float q[PLAIN_DIMS], o[PLAIN_DIMS], m = -INFINITY, l = 0.0f;
    const size_t q0 = ((size_t)row * a.n_heads + head) * dim;
#pragma unroll
    for (int j = 0; j < PLAIN_DIMS; j++) {
        const int d = lane + 32 * j;
        q[j] = d < dim ? load_query<TYPE>(a.q, q0 + d) : 0.0f;
        o[j] = 0.0f;
    }
    for (int k = low + warp; k <= pos; k += PLAIN_WARPS) {
        const char *at = (const char *)a.kv_layer +
                         kv_head_offset(&a.kv, block[k / a.kv.block_tokens], head / a.group);
        const int token = k % a.kv.block_tokens;
        float s = 0.0f;
#pragma unroll
        for (int j = 0; j < PLAIN_DIMS; j++) {
            const int d = lane + 32 * j;
            if (d < dim) s = fmaf(q[j], load_elem<TYPE>(a.kv, at, 0, token, d), s);
        }
        for (int i = 16; i > 0; i /= 2) s += __shfl_xor_sync(ptx::FULL, s, i);
        s *= a.scale_log2;
        const float top = fmaxf(m, s), f = exp2f(m - top), p = exp2f(s - top);
        m = top;
        l = l * f + p;
#pragma unroll
        for (int j = 0; j < PLAIN_DIMS; j++) {
            const int d = lane + 32 * j;
            if (d < dim) o[j] = o[j] * f + p * load_elem<TYPE>(a.kv, at, 1, token, d);
        }
    }
#pragma unroll
    for (int j = 0; j < PLAIN_DIMS; j++) so[warp][lane + 32 * j] = o[j];
    if (lane == 0) {
        sm[warp] = m;
        sl[warp] = l;
    }
    __syncthreads(); /* all warps' states are stored */
    for (int d = threadIdx.x; d < dim; d += PLAIN_WARPS * 32) {
        float top = sm[0], sum = 0.0f, v = 0.0f;
        for (int w = 1; w < PLAIN_WARPS; w++) top = fmaxf(top, sm[w]);
        for (int w = 0; w < PLAIN_WARPS; w++) {
            const float f = sm[w] == -INFINITY ? 0.0f : exp2f(sm[w] - top);
            sum += f * sl[w];
            v += f * so[w][d];
        }
        store_elem(a.out, a.out_type, q0 + d, v / sum);
    }
}

status attention_plain_launch(const attention *a, const attention_args *args, int row0,
                              cudaStream_t stream) {
    const int rows = args->n_tokens - row0;
    if (rows <= 0) return OK;
    plain_args p = {};
    p.kv = a->kv;
    p.step = *args->step;
    p.q = args->q;
    p.kv_layer = args->kv_layer;
    p.out = args->out;
    p.out_type = args->out_type;
    p.n_heads = a->n_heads;
    p.group = a->group;
    p.window = a->window;
    p.row0 = row0;
    p.scale_log2 = a->scale * 1.44269504f;
    const dim3 grid((unsigned)rows, (unsigned)a->n_heads);
    const int threads = PLAIN_WARPS * 32;
    switch (a->kv.type) {
    case DTYPE_F32:
        attention_plain_kernel<DTYPE_F32><<<grid, threads, 0, stream>>>(p);
        break;
    case DTYPE_F16:
        attention_plain_kernel<DTYPE_F16><<<grid, threads, 0, stream>>>(p);
        break;
    case DTYPE_BF16:
        attention_plain_kernel<DTYPE_BF16><<<grid, threads, 0, stream>>>(p);
        break;
    case DTYPE_I8:
        attention_plain_kernel<DTYPE_I8><<<grid, threads, 0, stream>>>(p);
        break;
    default:
        return E_UNSUPPORTED;
    }
    return cudaGetLastError() == cudaSuccess ? OK : E_DEVICE;
}
