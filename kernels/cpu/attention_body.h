#include "kernels/cpu/exp_body.h"

/* Attention over the paged cache: out = softmax(scale q K^T, causal, window) V, for the query heads
 * that share one KV head ("rows": token by token, head by head).
 *
 * Keys are taken in tiles of 64 whose bounds are multiples of 64 in the sequence, with the running
 * maximum and sum of the online softmax (Milakov & Gimelshein 2018). What a row adds up, and in
 * which order, depends on its own position only: not on the rows beside it, the chunk, or the block
 * size. Masked keys get weight 0, which leaves a sum as it is; keys that no row of the micro-tile
 * sees are never read as values, so stale memory cannot leak in.
 *
 * Up to 4 rows share every load of K and V. Scores: 16 keys are the lanes (the cache is transposed
 * for that), one fma a dim. Values: 16 dims are the lanes, one fma a key. The including file sets
 * ATTENTION_K_GROUPS and ATTENTION_V_VECTORS: how many vectors of keys (dims) go side by side. */
enum { TILE_KEYS = 64, TILE_GROUPS = TILE_KEYS / KV_GROUP, ROWS_MAX = 4 };

/* A micro-tile: rows that go over the keys together. */
typedef struct attention_rows {
    const attention_task *task;
    int n_rows;
    const float *q[ROWS_MAX];
    float *out[ROWS_MAX];
    int first[ROWS_MAX], end[ROWS_MAX]; /* visible keys: [first, end) */
    int first_min, end_max;
    float m[ROWS_MAX], l[ROWS_MAX];      /* running maximum and sum */
    float o[ROWS_MAX * KV_HEAD_DIM_MAX]; /* running output */
    float s[ROWS_MAX][TILE_KEYS];        /* scores, then weights */
    const uint8_t *base[TILE_GROUPS];    /* layer's memory of each 16 keys' block */
    int offset[TILE_GROUPS];             /* first key of the 16 in its block */
} attention_rows;

VEC_INLINE vf load_elem(dtype type, const uint8_t *p, size_t i) {
    switch (type) {
    case DTYPE_F32:
        return vf_load((const float *)(const void *)p + i);
    case DTYPE_F16:
        return vf_load_f16(p + 2 * i);
    case DTYPE_BF16:
        return vf_load_bf16(p + 2 * i);
    default:
        return vf_load_i8(p + i);
    }
}

/* Scores of n_r rows against groups g .. g + n_g of the tile. */
VEC_INLINE void score_groups(attention_rows *a, dtype type, int n_r, int g, int n_g) {
    const attention_task *t = a->task;
    const kv_layout *kv = t->kv;
    const uint8_t *k[ATTENTION_K_GROUPS];
    vf acc[ROWS_MAX][ATTENTION_K_GROUPS];
    for (int i = 0; i < n_g; i++) {
        k[i] = a->base[g + i] + kv_k_at(kv, t->kv_head, a->offset[g + i] / KV_GROUP);
        for (int r = 0; r < n_r; r++) acc[r][i] = vf_set1(0.0f);
    }
    for (int d = 0; d < kv->head_dim; d++) {
        for (int i = 0; i < n_g; i++) {
            const vf kd = load_elem(type, k[i], (size_t)d * KV_GROUP);
            for (int r = 0; r < n_r; r++) acc[r][i] = vf_fma(vf_set1(a->q[r][d]), kd, acc[r][i]);
        }
    }
    for (int i = 0; i < n_g; i++) {
        vf scale = vf_set1(t->scale);
        if (type == DTYPE_I8) {
            const uint8_t *ks = a->base[g + i] + kv_k_scale_at(kv, t->kv_head, a->offset[g + i]);
            scale = vf_mul(scale, vf_load((const float *)(const void *)ks));
        }
        for (int r = 0; r < n_r; r++)
            vf_store(a->s[r] + (g + i) * KV_GROUP, vf_mul(acc[r][i], scale));
    }
}

/* o = alpha o + weights V for dims d .. d + 16 n_v, keys j0 .. j1 of the tile. */
VEC_INLINE void add_values(attention_rows *a, dtype type, int n_r, int d, int n_v, int j0, int j1,
                           const float *alpha) {
    const attention_task *t = a->task;
    const kv_layout *kv = t->kv;
    vf acc[ROWS_MAX][ATTENTION_V_VECTORS];
    for (int r = 0; r < n_r; r++) {
        for (int i = 0; i < n_v; i++)
            acc[r][i] = vf_mul(vf_load(a->o + r * kv->v_dim + d + 16 * i), vf_set1(alpha[r]));
    }
    for (int j = j0; j < j1; j++) {
        const int g = j / KV_GROUP;
        const uint8_t *v = a->base[g] + kv_v_at(kv, t->kv_head, a->offset[g] + j % KV_GROUP);
        for (int i = 0; i < n_v; i++) {
            const vf vd = load_elem(type, v, (size_t)(d + 16 * i));
            for (int r = 0; r < n_r; r++) acc[r][i] = vf_fma(vf_set1(a->s[r][j]), vd, acc[r][i]);
        }
    }
    for (int r = 0; r < n_r; r++) {
        for (int i = 0; i < n_v; i++) vf_store(a->o + r * kv->v_dim + d + 16 * i, acc[r][i]);
    }
}

/* Scores to weights: masks, moves the running maximum, gives the factor for what was summed. */
VEC_INLINE float soften_row(attention_rows *a, int r, int tile) {
    const int lo = a->first[r] - tile, hi = a->end[r] - tile;
    float *s = a->s[r];
    vf p[TILE_GROUPS];
    vf top = vf_set1(-INFINITY);
    for (int g = 0; g < TILE_GROUPS; g++) {
        p[g] = vf_keep(vf_load(s + g * KV_GROUP), lo - g * KV_GROUP, hi - g * KV_GROUP, -INFINITY);
        top = vf_max(p[g], top);
    }
    const float tile_max = vf_hmax(top), m = tile_max > a->m[r] ? tile_max : a->m[r];
    const vf shift = vf_set1(m == -INFINITY ? 0.0f : m); /* nothing visible yet: weights are 0 */
    for (int g = 0; g < TILE_GROUPS; g++) {
        p[g] = vf_exp(vf_sub(p[g], shift));
        vf_store(s + g * KV_GROUP, p[g]);
    }
    const float sum = vf_sum(vf_add(vf_add(p[0], p[1]), vf_add(p[2], p[3])));
    float alpha[16];
    vf_store(alpha, vf_exp(vf_set1(a->m[r] - (m == -INFINITY ? 0.0f : m))));
    a->l[r] = fmaf(a->l[r], alpha[0], sum);
    a->m[r] = m;
    return alpha[0];
}

/* I8: a value's weight takes the scale of its token. Keys that nobody sees stay out. */
VEC_INLINE void scale_weights(attention_rows *a, int n_r, int j0, int j1) {
    const attention_task *t = a->task;
    for (int j = j0; j < j1; j++) {
        const int g = j / KV_GROUP;
        float scale;
        memcpy(&scale, a->base[g] + kv_v_scale_at(t->kv, t->kv_head, a->offset[g] + j % KV_GROUP),
               sizeof scale);
        for (int r = 0; r < n_r; r++) a->s[r][j] *= scale;
    }
}

VEC_INLINE void attend_tile(attention_rows *a, dtype type, int n_r, int tile) {
    const attention_task *t = a->task;
    const kv_layout *kv = t->kv;
    const int j0 = a->first_min > tile ? a->first_min - tile : 0;
    const int j1 = a->end_max - tile < TILE_KEYS ? a->end_max - tile : TILE_KEYS;
    const int g0 = j0 / KV_GROUP, g1 = (j1 + KV_GROUP - 1) / KV_GROUP;
    for (int g = g0; g < g1; g++) {
        const int key = tile + g * KV_GROUP;
        a->base[g] = t->pool + kv_layer_at(kv, t->blocks[key / kv->block_tokens], t->layer);
        a->offset[g] = key % kv->block_tokens;
    }
    int g = g0;
    for (; g + ATTENTION_K_GROUPS <= g1; g += ATTENTION_K_GROUPS)
        score_groups(a, type, n_r, g, ATTENTION_K_GROUPS);
    for (; g < g1; g++) score_groups(a, type, n_r, g, 1);

    float alpha[ROWS_MAX];
    for (int r = 0; r < n_r; r++) alpha[r] = soften_row(a, r, tile);
    if (type == DTYPE_I8) scale_weights(a, n_r, j0, j1);
    int d = 0;
    for (; d + 16 * ATTENTION_V_VECTORS <= kv->v_dim; d += 16 * ATTENTION_V_VECTORS)
        add_values(a, type, n_r, d, ATTENTION_V_VECTORS, j0, j1, alpha);
    for (; d < kv->v_dim; d += 16) add_values(a, type, n_r, d, 1, j0, j1, alpha);
}

VEC_INLINE void attend_rows(attention_rows *a, dtype type, int n_r) {
    const int v_dim = a->task->kv->v_dim, head_dim = a->task->kv->head_dim;
    for (int r = 0; r < n_r; r++) {
        a->m[r] = -INFINITY;
        a->l[r] = 0.0f;
        memset(a->o + r * v_dim, 0, (size_t)v_dim * sizeof(float));
    }
    for (int tile = a->first_min / TILE_KEYS * TILE_KEYS; tile < a->end_max; tile += TILE_KEYS)
        attend_tile(a, type, n_r, tile);
    for (int r = 0; r < n_r; r++) {
        const float inverse = 1.0f / a->l[r];
        for (int d = 0; d < head_dim; d++) a->out[r][d] = a->o[r * v_dim + d] * inverse;
    }
}

#define ATTEND_CASES(type)                                                                         \
    switch (a->n_rows) {                                                                           \
    case 1:                                                                                        \
        attend_rows(a, type, 1);                                                                   \
        break;                                                                                     \
    case 2:                                                                                        \
        attend_rows(a, type, 2);                                                                   \
        break;                                                                                     \
    case 3:                                                                                        \
        attend_rows(a, type, 3);                                                                   \
        break;                                                                                     \
    default:                                                                                       \
        attend_rows(a, type, 4);                                                                   \
        break;                                                                                     \
    }

static void attend_f32(attention_rows *a) {
    ATTEND_CASES(DTYPE_F32)
}
static void attend_f16(attention_rows *a) {
    ATTEND_CASES(DTYPE_F16)
}
static void attend_bf16(attention_rows *a) {
    ATTEND_CASES(DTYPE_BF16)
}
static void attend_i8(attention_rows *a) {
    ATTEND_CASES(DTYPE_I8)
}
#undef ATTEND_CASES

static void attention(const attention_task *t) {
    const int n = t->n_rows * t->n_group, head_dim = t->kv->head_dim;
    attention_rows a;
    a.task = t;
    for (int i = 0; i < n; i += ROWS_MAX) {
        a.n_rows = n - i < ROWS_MAX ? n - i : ROWS_MAX;
        for (int r = 0; r < a.n_rows; r++) {
            const int token = (i + r) / t->n_group, head = (i + r) % t->n_group;
            a.q[r] = t->q + (size_t)token * t->q_ld + (size_t)head * (size_t)head_dim;
            a.out[r] = t->out + (size_t)token * t->out_ld + (size_t)head * (size_t)head_dim;
            a.end[r] = t->position + token + 1;
            a.first[r] = t->window > 0 && a.end[r] > t->window ? a.end[r] - t->window : 0;
        }
        a.first_min = a.first[0]; /* tokens ascend */
        a.end_max = a.end[a.n_rows - 1];
        switch (t->kv->type) {
        case DTYPE_F32:
            attend_f32(&a);
            break;
        case DTYPE_F16:
            attend_f16(&a);
            break;
        case DTYPE_BF16:
            attend_bf16(&a);
            break;
        default:
            attend_i8(&a);
            break;
        }
    }
}
