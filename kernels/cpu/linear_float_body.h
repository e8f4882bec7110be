/* y = W x for float weights: 16 rows are the lanes, one fma an input. A block of 32 inputs is
 * summed from zero and then added to the total, in order, for every tiling alike. The including
 * file sets LINEAR_FLOAT_TILE: rows of x that share a load of W (1, 2, 4 or 8). */
#include "base/planted.h"

VEC_INLINE vf load_weight(pack_codes codes, const uint8_t *panel, size_t k) {
    switch (codes) {
    case CODES_F32:
        return vf_load((const float *)(const void *)panel + k * PACK_ROWS);
    case CODES_F16:
        return vf_load_f16(panel + k * PACK_ROWS * 2);
    default:
        return vf_load_bf16(panel + k * PACK_ROWS * 2);
    }
}

VEC_INLINE void store_panel(vf sum, const linear_out *o, int t) {
    float *y = o->y + (size_t)t * o->ld;
    if (o->bias != NULL) sum = vf_add(sum, vf_load(o->bias));
    if (o->add) sum = vf_add(vf_load(y), sum);
    vf_store(y, sum);
}

/* Half precision's mantissa, by Dekker's split: only for the negative control. */
VEC_INLINE vf to_eleven_bits(vf x) {
    const vf c = vf_mul(x, vf_set1(8193.0f)), minus = vf_set1(-1.0f);
    return vf_fma(vf_fma(x, minus, c), minus, c);
}

VEC_INLINE void float_tile(pack_codes codes, const pack *w, const act *a, const uint8_t *panel,
                           int t0, int n_t, const linear_out *o, int t_out) {
    vf total[LINEAR_FLOAT_TILE];
    for (int t = 0; t < n_t; t++) total[t] = vf_set1(0.0f);
    for (int b = 0; b < w->n_blocks; b++) {
        vf part[LINEAR_FLOAT_TILE];
        for (int t = 0; t < n_t; t++) part[t] = vf_set1(0.0f);
        for (int k = b * PACK_BLOCK; k < (b + 1) * PACK_BLOCK; k++) {
            const vf wk = load_weight(codes, panel, (size_t)k);
            for (int t = 0; t < n_t; t++)
                part[t] = vf_fma(wk, vf_set1(a->f[(size_t)(t0 + t) * a->ld + (size_t)k]), part[t]);
        }
        for (int t = 0; t < n_t; t++) total[t] = vf_add(total[t], part[t]);
        if (PLANTED(FAULT_F16_ACCUMULATE))
            for (int t = 0; t < n_t; t++) total[t] = to_eleven_bits(total[t]);
    }
    for (int t = 0; t < n_t; t++) store_panel(total[t], o, t_out + t);
}

VEC_INLINE void float_panel(pack_codes codes, const pack *w, const act *a, int i_panel, int t0,
                            int n_t, const linear_out *o) {
    const uint8_t *panel = w->data + (size_t)i_panel * w->panel_bytes;
    int t = 0;
    for (; t + LINEAR_FLOAT_TILE <= n_t; t += LINEAR_FLOAT_TILE)
        float_tile(codes, w, a, panel, t0 + t, LINEAR_FLOAT_TILE, o, t);
    for (; t + 2 <= n_t; t += 2) float_tile(codes, w, a, panel, t0 + t, 2, o, t);
    if (t < n_t) float_tile(codes, w, a, panel, t0 + t, 1, o, t);
}

static void linear_float(const pack *w, const act *a, int p0, int p1, int t0, int n_t,
                         const linear_out *o) {
    for (int p = p0; p < p1; p++) {
        const linear_out at = linear_out_at(o, p - p0);
        switch (w->format->codes) {
        case CODES_F32:
            float_panel(CODES_F32, w, a, p, t0, n_t, &at);
            break;
        case CODES_F16:
            float_panel(CODES_F16, w, a, p, t0, n_t, &at);
            break;
        default:
            float_panel(CODES_BF16, w, a, p, t0, n_t, &at);
            break;
        }
    }
}
