/* y = W x for quantised weights, in plain C: the definition that the SIMD files must equal bit for
 * bit. For each block of 32 inputs, in order: the integer dot product (exact), scaled by the
 * weight's and the activation's scale, then the minimum times the activation's sum. */
#include "kernels/cpu/kernels_isa.h"
#include "kernels/cpu/vec_portable.h"

#define LINEAR_FLOAT_TILE 2
#include "kernels/cpu/linear_float_body.h"

/* The integer dot product of 16 inputs, from those of c and l: exact, then two roundings. */
static float dot16(const int16_t *code, const int16_t *c, const int8_t *l) {
    int32_t sum_c = 0, sum_l = 0;
    for (int i = 0; i < 16; i++) {
        sum_c += (int32_t)code[i] * c[i];
        sum_l += (int32_t)code[i] * l[i];
    }
    return fmaf((float)sum_c, 256.0f, (float)sum_l);
}

static float dot32(const int16_t *code, const int16_t *c, const int8_t *l) {
    int32_t sum_c = 0, sum_l = 0;
    for (int i = 0; i < 32; i++) {
        sum_c += (int32_t)code[i] * c[i];
        sum_l += (int32_t)code[i] * l[i];
    }
    return fmaf((float)sum_c, 256.0f, (float)sum_l);
}

/* Adds one block's share of one output to acc. */
static float add_block(const pack_format *f, const int16_t *code, const pack_scale *s,
                       const act_row *q, float acc) {
    int16_t c[PACK_BLOCK];
    memcpy(c, q->c0, sizeof q->c0);
    memcpy(c + 16, q->c1, sizeof q->c1);
    switch (f->scales) {
    case SCALES_K16:
    case SCALES_K16_MIN:
        acc = fmaf(s->d[0] * q->d, dot16(code, c, q->l), acc);
        acc = fmaf(s->d[1] * q->d, dot16(code + 16, c + 16, q->l + 16), acc);
        if (f->scales == SCALES_K16) return acc;
        acc = fmaf(s->m[0], q->s16[0], acc);
        return fmaf(s->m[1], q->s16[1], acc);
    case SCALES_F16_MIN:
    case SCALES_K32_MIN:
        acc = fmaf(s->d[0] * q->d, dot32(code, c, q->l), acc);
        return fmaf(s->m[0], q->s, acc);
    default:
        return fmaf(s->d[0] * q->d, dot32(code, c, q->l), acc);
    }
}

static void linear_codes(const pack *w, const act *a, int i_panel, int t0, int n_t,
                         const linear_out *o) {
    for (int row = 0; row < PACK_ROWS; row++) {
        /* Rows of x in small groups, so that a block is unpacked once for several. */
        enum { GROUP = 16 };
        for (int t = 0; t < n_t; t += GROUP) {
            const int n = n_t - t < GROUP ? n_t - t : GROUP;
            float acc[GROUP] = {0};
            for (int b = 0; b < w->n_blocks; b++) {
                int16_t code[PACK_BLOCK];
                pack_block_codes(w, i_panel, b, row, code);
                const pack_scale s = pack_block_scale(w, i_panel, b, row);
                for (int i = 0; i < n; i++) {
                    const int row_x = t0 + t + i;
                    acc[i] = add_block(w->format, code, &s,
                                       &act_at(a, row_x, b)->row[row_x % ACT_ROWS], acc[i]);
                }
            }
            for (int i = 0; i < n; i++) {
                float *y = o->y + (size_t)(t + i) * o->ld + row;
                const float v = o->bias != NULL ? acc[i] + o->bias[row] : acc[i];
                *y = o->add ? *y + v : v;
            }
        }
    }
}

void linear_portable(const pack *w, const act *a, int p0, int p1, int t0, int n_t,
                     const linear_out *o) {
    if (pack_is_float(w)) {
        linear_float(w, a, p0, p1, t0, n_t, o);
        return;
    }
    for (int p = p0; p < p1; p++) {
        const linear_out at = linear_out_at(o, p - p0);
        linear_codes(w, a, p, t0, n_t, &at);
    }
}
