#include "kernels/cpu/kv.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/dequant.h"

status kv_layout_init(kv_layout *l, dtype type, int block_tokens, int n_layers, int n_kv_heads,
                      int head_dim, error *err) {
    int elem = 0;
    switch (type) {
    case DTYPE_F32:
        elem = 4;
        break;
    case DTYPE_F16:
    case DTYPE_BF16:
        elem = 2;
        break;
    case DTYPE_I8:
        elem = 1;
        break;
    default:
        return error_set(err, E_UNSUPPORTED, "KV cache type %d: the CPU has F32, F16, BF16 and I8",
                         (int)type);
    }
    if (block_tokens < KV_GROUP || block_tokens > 1024 || block_tokens % KV_GROUP != 0)
        return error_set(err, E_INVAL, "KV block of %d tokens: must be a multiple of %d",
                         block_tokens, KV_GROUP);
    /* Shapes are bounded at load (heads, layers, head_dim <= 256): no product below can wrap. */
    const size_t rows = (size_t)n_kv_heads * (size_t)block_tokens;
    *l = (kv_layout){.type = type,
                     .elem_bytes = elem,
                     .block_tokens = block_tokens,
                     .n_layers = n_layers,
                     .n_kv_heads = n_kv_heads,
                     .head_dim = head_dim,
                     .v_dim = (head_dim + 15) / 16 * 16};
    l->k_bytes = rows * (size_t)head_dim * (size_t)elem;
    l->v_bytes = rows * (size_t)l->v_dim * (size_t)elem;
    l->scale_bytes = type == DTYPE_I8 ? rows * sizeof(float) : 0;
    l->layer_bytes = (l->k_bytes + l->v_bytes + 2 * l->scale_bytes + 63) / 64 * 64;
    l->block_bytes = (size_t)n_layers * l->layer_bytes;
    return OK;
}

/* n values, `stride` elements apart. */
static void store_f32(uint8_t *base, size_t stride, const float *x, int n) {
    for (int i = 0; i < n; i++) memcpy(base + 4 * stride * (size_t)i, x + i, 4);
}

static void store_16(dtype type, uint8_t *base, size_t stride, const float *x, int n) {
    for (int i = 0; i < n; i++) {
        const uint16_t h = type == DTYPE_F16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
        memcpy(base + 2 * stride * (size_t)i, &h, 2);
    }
}

/* One head of one token as int8: n values, `stride` apart. A row with a value that is not finite
 * gets a NaN scale, so that it is noticed. */
static void store_i8(uint8_t *base, size_t stride, float *scale, const float *x, int n) {
    float amax = 0.0f;
    bool finite = true;
    for (int i = 0; i < n; i++) {
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
        finite = finite && isfinite(x[i]);
    }
    const float d = amax / 127.0f, inverse = amax > 1e-30f ? 127.0f / amax : 0.0f;
    *scale = finite ? d : NAN;
    for (int i = 0; i < n; i++)
        base[(size_t)i * stride] = finite ? (uint8_t)(int8_t)lrintf(x[i] * inverse) : 0;
}

void kv_append(const kv_layout *l, uint8_t *pool, int32_t block, int offset, int layer,
               const float *k, const float *v) {
    uint8_t *base = pool + kv_layer_at(l, block, layer);
    const int n = l->head_dim, group = offset / KV_GROUP, lane = offset % KV_GROUP;
    for (int h = 0; h < l->n_kv_heads; h++, k += n, v += n) {
        uint8_t *kb = base + kv_k_at(l, h, group) + (size_t)lane * (size_t)l->elem_bytes;
        uint8_t *vb = base + kv_v_at(l, h, offset);
        float scale[2];
        switch (l->type) {
        case DTYPE_I8:
            store_i8(kb, KV_GROUP, &scale[0], k, n);
            store_i8(vb, 1, &scale[1], v, n);
            memcpy(base + kv_k_scale_at(l, h, offset), &scale[0], sizeof scale[0]);
            memcpy(base + kv_v_scale_at(l, h, offset), &scale[1], sizeof scale[1]);
            break;
        case DTYPE_F32:
            store_f32(kb, KV_GROUP, k, n);
            store_f32(vb, 1, v, n);
            break;
        default:
            store_16(l->type, kb, KV_GROUP, k, n);
            store_16(l->type, vb, 1, v, n);
            break;
        }
    }
}
