/* GGUF blocks -> chunks (weight_format.cuh), and chunks -> halves for cuBLASLt.
 *   row_norm_kernel  thread a row: exponent e with max|d| (and |m| / 32) <= 2^e; row_scale
 *   repack_kernel    thread a (tile, unit, lane)
 *   expand_kernel    warp a (tile, chunk); reads the chunk once, writes 16 rows x 64 * UNITS halves
 * Load time is bound by the copy to the device; expand moves format + 2 bytes a weight: an 8B
 * layer's gate_up (117 M weights) = 302 MB = 70 us at 4.3 TB/s. */
#include <math.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gguf_block.cuh"
#include "kernels/cuda/weight_format.cuh"

namespace {

enum { REPACK_THREADS = 256 };

struct source {
    dtype type;
    const uint8_t *data;
    const int32_t *row_from;
    size_t row_bytes;
    int n_rows, n_in, block_elems, block_bytes;

    __device__ const uint8_t *row(int r) const {
        return data + (size_t)(row_from ? row_from[r] : r) * row_bytes;
    }
};

__global__ void row_norm_kernel(source s, int format, int shift, float scale, int32_t *exponent,
                                float *row_scale, int tile0, int tile_stride, int n_padded) {
    const int r = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (r >= n_padded) return;
    float top = 1e-30f;
    if (r < s.n_rows && s.type != DTYPE_F16) {
        const uint8_t *row = s.row(r);
        if (format == WF_F16) {
            for (int k = 0; k < s.n_in; k++) {
                top = fmaxf(top, fabsf(gguf_block::plain(s.type, row, k)));
            }
        } else {
            const int step = s.type == DTYPE_IQ4_XS ? 32 : s.block_elems;
            for (int k = 0; k < s.n_in; k += step) {
                float d, m;
                const uint8_t *b = row + (size_t)(k / s.block_elems) * (size_t)s.block_bytes;
                gguf_block::block_scale(s.type, b, k % s.block_elems, d, m);
                top = fmaxf(top, fmaxf(fabsf(d), fabsf(m) * (1.0f / 32)));
            }
        }
    }
    int e = 0;
    frexpf(fminf(top, 1e30f), &e);
    /* halves: the largest becomes 2^14; F16 rows stay as they are */
    const int power = format == WF_F16 ? (s.type == DTYPE_F16 ? 0 : e - 14) : 24 - shift + e;
    exponent[r] = e;
    const int tile = tile0 + r / TILE_ROWS * tile_stride;
    row_scale[tile * TILE_ROWS + r % TILE_ROWS] = r < s.n_rows ? ldexpf(scale, power) : 0.0f;
}

/* Weights, high bits and scales of one lane in one unit, for both of its rows. */
template <int F> struct lane_words {
    uint32_t w[16];
    uint32_t fifth, pairs[2];
};

template <int F>
__device__ void gather(const source &s, const uint8_t *const (&row)[2], const int32_t (&e)[2],
                       int k0, lane_words<F> &o) {
    const int place[4] = {4, 8, 0, 12}; /* of the high bits of a0..a3 */
    for (int step = 0; step < 4; step++) {
        for (int j = 0; j < 4; j++) {
            for (int h = 0; h < 2; h++) {
                const int k = k0 + 4 * step + j, a = (j >> 1) * 2 + h, half = j & 1;
                if (row[h] == nullptr || k >= s.n_in) continue;
                if constexpr (F == WF_F16) {
                    float v = gguf_block::plain(s.type, row[h], k);
                    if (s.type != DTYPE_F16) v = ldexpf(v, 14 - e[h]);
                    const uint32_t bits = __half_as_ushort(__float2half_rn(v));
                    o.w[4 * step + a] |= bits << (16 * half);
                    continue;
                }
                const uint8_t *b = row[h] + (size_t)(k / s.block_elems) * (size_t)s.block_bytes;
                const uint32_t q = (uint32_t)gguf_block::quant(s.type, b, k % s.block_elems);
                if constexpr (F == WF_Q80) {
                    o.w[2 * step + (a >> 1)] |= q << (16 * h + 8 * half);
                    continue;
                }
                o.w[step] |= (q & 15) << (16 * half + 4 * a);
                if constexpr (wf_frag<F>::HAS_FIFTH) {
                    o.fifth |= (q >> 4) << (16 * half + place[a] + step);
                }
                if constexpr (F == WF_Q6K) {
                    o.pairs[step >> 1] |= (q >> 4) << (16 * half + place[a] + 2 * (step & 1));
                }
            }
        }
    }
}

/* S, M, d, m of row h's block at input k, normalised; zero past the matrix. */
template <int F>
__device__ void scale_of(const source &s, const uint8_t *row, int k, int e, int shift,
                         uint32_t &sub, float &d, float &m) {
    sub = F == WF_Q6K ? 128u : 0u;
    d = m = 0;
    if (row == nullptr || k >= s.n_in) return;
    const uint8_t *b = row + (size_t)(k / s.block_elems) * (size_t)s.block_bytes;
    const int i = k % s.block_elems;
    gguf_block::block_scale(s.type, b, i, d, m);
    d = ldexpf(d, shift - e);
    m = ldexpf(m, wf_traits<F>::SHIFT_LO - e - 24); /* the minimum has no subnormal factor */
    if constexpr (wf_frag<F>::HAS_SM) {
        int sc, mn;
        gguf_block::k_scale_min(b + 4, i >> 5, sc, mn);
        sub = (uint32_t)sc | (uint32_t)mn << 8;
    }
    if constexpr (F == WF_Q6K) {
        sub = s.type == DTYPE_Q6_K ? (uint32_t)(uint8_t)(b[192 + i / 16] ^ 0x80)
                                   : (uint32_t)(gguf_block::q3k_scale(b, i / 16) - 32 + 128);
    }
}

template <int F>
__global__ __launch_bounds__(REPACK_THREADS) void repack_kernel(source s, const int32_t *exponent,
                                                                uint8_t *out, int n_tiles,
                                                                int n_units, int tile0,
                                                                int tile_stride) {
    using T = wf_traits<F>;
    const size_t id = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (id >= (size_t)n_tiles * (size_t)n_units * 32) return;
    const int lane = (int)(id & 31), g = lane >> 2, t = lane & 3;
    const int unit = (int)((id >> 5) % (size_t)n_units), tile = (int)((id >> 5) / (size_t)n_units);
    const int u = unit % T::UNITS, k0 = unit * 64 + t * 16;
    uint8_t *c = out + ((size_t)(tile0 + tile * tile_stride) * (size_t)(n_units / T::UNITS) +
                        (size_t)(unit / T::UNITS)) *
                           T::BYTES;
    const uint8_t *row[2];
    int32_t e[2];
    for (int h = 0; h < 2; h++) {
        const int r = tile * TILE_ROWS + g + 8 * h;
        row[h] = r < s.n_rows ? s.row(r) : nullptr;
        e[h] = exponent[r];
    }
    lane_words<F> o = {};
    gather<F>(s, row, e, k0, o);
    for (int v = 0; v < T::NV; v++) {
        *(uint4 *)(c + (u * T::NV + v) * 512 + lane * 16) =
            make_uint4(o.w[4 * v], o.w[4 * v + 1], o.w[4 * v + 2], o.w[4 * v + 3]);
    }
    if constexpr (F != WF_F16) {
        uint8_t *p = c + wf_frag<F>::LOW_BYTES;
        if constexpr (wf_frag<F>::HAS_FIFTH) {
            *(uint32_t *)(p + u * 128 + lane * 4) = o.fifth;
            p += T::UNITS * 128;
        }
        uint32_t s0, s1;
        float d0, d1, m0, m1;
        scale_of<F>(s, row[0], k0, e[0], T::SHIFT_LO, s0, d0, m0);
        scale_of<F>(s, row[1], k0, e[1], T::SHIFT_HI, s1, d1, m1);
        const int gt = g * 2 + (t >> 1);
        if constexpr (wf_frag<F>::HAS_SM) {
            if ((t & 1) == 0) *(uint32_t *)(p + gt * 16 + u * 4) = s0 | s1 << 16;
            if (t == 0 && u == 0) {
                *(uint2 *)(p + 256 + g * 8) = make_uint2(pack_half2(d0, -m0), pack_half2(d1, -m1));
            }
        } else if constexpr (F == WF_Q6K) {
            *(uint2 *)(p + u * 256 + lane * 8) = make_uint2(o.pairs[0], o.pairs[1]);
            *(uint16_t *)(p + 1024 + lane * 8 + u * 2) = (uint16_t)(s0 | s1 << 8);
            if (t == 0 && u == 0) *(uint32_t *)(p + 1280 + g * 4) = pack_half2(d0, d1);
        } else if ((t & 1) == 0) {
            if constexpr (wf_frag<F>::HAS_MIN) {
                *(uint2 *)(p + gt * 8) = make_uint2(pack_half2(d0, d1), pack_half2(m0, m1));
            } else {
                *(uint32_t *)(p + gt * 4) = pack_half2(d0, d1);
            }
        }
    }
}

template <int F>
__global__ __launch_bounds__(REPACK_THREADS) void expand_kernel(cuda_matrix m, __half *out) {
    using T = wf_traits<F>;
    const int n_chunks = m.n_units / T::UNITS;
    const size_t warp = (blockIdx.x * (size_t)blockDim.x + threadIdx.x) >> 5;
    if (warp >= (size_t)m.n_tiles * (size_t)n_chunks) return;
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int tile = (int)(warp / (size_t)n_chunks), chunk = (int)(warp % (size_t)n_chunks);
    wf_frag<F> f;
    f.load(m.chunks + warp * T::BYTES, lane);
    const float s0 = m.row_scale[tile * TILE_ROWS + g], s1 = m.row_scale[tile * TILE_ROWS + g + 8];
#pragma unroll
    for (int u = 0; u < T::UNITS; u++) {
        uint32_t a[16];
        f.expand(u, a);
        const int k0 = (chunk * T::UNITS + u) * 64 + 16 * t;
        for (int h = 0; h < 2; h++) {
            __half *y = out + (size_t)(tile * TILE_ROWS + g + 8 * h) * (size_t)m.n_in + k0;
            const float s = h ? s1 : s0;
            uint32_t w[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float2 v = __half22float2(as_half2(a[4 * (i >> 1) + (i & 1) * 2 + h]));
                w[i] =
                    half2_bits(__floats2half2_rn(saturate_half(v.x * s), saturate_half(v.y * s)));
            }
            if (k0 + 16 <= m.n_in && m.n_in % 8 == 0) {
                *(uint4 *)y = make_uint4(w[0], w[1], w[2], w[3]);
                *(uint4 *)(y + 8) = make_uint4(w[4], w[5], w[6], w[7]);
            } else {
                for (int i = 0; i < 16 && k0 + i < m.n_in; i++) y[i] = ((const __half *)w)[i];
            }
        }
    }
}

template <int F> status repack(const cuda_matrix *m, const repack_args *a, cudaStream_t stream) {
    using T = wf_traits<F>;
    const dtype_info *info = dtype_get(a->type);
    const source s = {a->type,           (const uint8_t *)a->blocks,
                      a->row_from,       dtype_row_bytes(a->type, a->n_in),
                      a->n_rows,         a->n_in,
                      info->block_elems, info->block_bytes};
    const int n_tiles = (a->n_rows + TILE_ROWS - 1) / TILE_ROWS, n_padded = n_tiles * TILE_ROWS;
    row_norm_kernel<<<(unsigned)((n_padded + 127) / 128), 128, 0, stream>>>(
        s, F, T::SHIFT_LO, a->scale, a->exponent, m->row_scale, a->tile0, a->tile_stride, n_padded);
    const size_t n = (size_t)n_tiles * (size_t)m->n_units * 32;
    repack_kernel<F>
        <<<(unsigned)((n + REPACK_THREADS - 1) / REPACK_THREADS), REPACK_THREADS, 0, stream>>>(
            s, a->exponent, m->chunks, n_tiles, m->n_units, a->tile0, a->tile_stride);
    return cuda_status(cudaGetLastError());
}

template <int F> status expand(const cuda_matrix *m, uint16_t *w16, cudaStream_t stream) {
    const size_t n = (size_t)m->n_tiles * (size_t)(m->n_units / wf_traits<F>::UNITS) * 32;
    expand_kernel<F>
        <<<(unsigned)((n + REPACK_THREADS - 1) / REPACK_THREADS), REPACK_THREADS, 0, stream>>>(
            *m, (__half *)w16);
    return cuda_status(cudaGetLastError());
}

struct format_entry {
    const char *name;
    int bytes, units;
    status (*repack)(const cuda_matrix *, const repack_args *, cudaStream_t);
    status (*expand)(const cuda_matrix *, uint16_t *, cudaStream_t);
};
template <int F> constexpr format_entry entry(const char *name) {
    return {name, wf_traits<F>::BYTES, wf_traits<F>::UNITS, repack<F>, expand<F>};
}
const format_entry FORMATS[WF_COUNT] = {
    entry<WF_Q4K>("Q4K"), entry<WF_Q5K>("Q5K"), entry<WF_Q6K>("Q6K"),
    entry<WF_Q80>("Q80"), entry<WF_Q40>("Q40"), entry<WF_Q41>("Q41"),
    entry<WF_Q50>("Q50"), entry<WF_Q51>("Q51"), entry<WF_F16>("F16")};

} // namespace

extern "C" weight_format weight_format_of(dtype t) {
    switch (t) {
    case DTYPE_Q4_K:
        return WF_Q4K;
    case DTYPE_Q5_K:
        return WF_Q5K;
    case DTYPE_Q6_K:
    case DTYPE_Q3_K:
        return WF_Q6K;
    case DTYPE_Q8_0:
    case DTYPE_IQ4_NL:
    case DTYPE_IQ4_XS:
    case DTYPE_MXFP4:
        return WF_Q80;
    case DTYPE_Q4_0:
        return WF_Q40;
    case DTYPE_Q4_1:
        return WF_Q41;
    case DTYPE_Q5_0:
        return WF_Q50;
    case DTYPE_Q5_1:
        return WF_Q51;
    case DTYPE_F32:
    case DTYPE_F16:
    case DTYPE_BF16:
    case DTYPE_Q2_K:
        return WF_F16;
    default:
        return WF_COUNT;
    }
}

extern "C" int weight_chunk_bytes(weight_format f) {
    return FORMATS[f].bytes;
}
extern "C" int weight_chunk_units(weight_format f) {
    return FORMATS[f].units;
}
extern "C" const char *weight_format_name(weight_format f) {
    return FORMATS[f].name;
}

extern "C" int weight_units(weight_format f, int n_in) {
    const int inputs = FORMATS[f].units * UNIT_INPUTS;
    return (n_in + inputs - 1) / inputs * FORMATS[f].units;
}

extern "C" size_t weight_tile_bytes(weight_format f, int n_in) {
    return (size_t)(weight_units(f, n_in) / FORMATS[f].units) * (size_t)FORMATS[f].bytes;
}

extern "C" status cuda_repack(const cuda_matrix *m, const repack_args *a, cudaStream_t stream) {
    if (weight_format_of(a->type) != m->format || a->n_rows <= 0 || a->n_in != m->n_in ||
        dtype_row_bytes(a->type, a->n_in) == 0) {
        return E_INVAL;
    }
    const int last = a->tile0 + ((a->n_rows - 1) / TILE_ROWS) * a->tile_stride;
    if (a->tile0 < 0 || a->tile_stride < 1 || last >= m->n_tiles) return E_INVAL;
    return FORMATS[m->format].repack(m, a, stream);
}

extern "C" status cuda_expand(const cuda_matrix *m, uint16_t *w16, cudaStream_t stream) {
    return FORMATS[m->format].expand(m, w16, stream);
}
