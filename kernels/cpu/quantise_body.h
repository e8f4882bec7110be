/* Activations to 24-bit integers, see kernels.h. The including file defines
 * store_codes(act_row *o, vi first, vi second): the c of one row's block in its own layout, and
 * store_low(int8_t *l, vi first, vi second): l as bytes. */
static void quantise(const float *x, int n_blocks, act_block *q, int i_row) {
    for (int b = 0; b < n_blocks; b++, x += 32, q++) {
        const vf x0 = vf_load(x), x1 = vf_load(x + 16);
        const int32_t top = vi_hmax(vi_max(vf_abs_bits(x0), vf_abs_bits(x1)));
        float amax;
        memcpy(&amax, &top, sizeof amax);
        vi i0 = vi_zero(), i1 = vi_zero();
        float d = 0.0f;
        if (top >= 0x7F800000) {
            d = NAN; /* NaN or infinity in the block */
        } else if (amax > 1e-30f) {
            d = amax / (float)ACT_LEVELS;
            const vf inverse = vf_set1((float)ACT_LEVELS / amax);
            i0 = vf_round(vf_mul(x0, inverse));
            i1 = vf_round(vf_mul(x1, inverse));
        }
        const vi c0 = vi_high24(i0), c1 = vi_high24(i1);
        act_row *o = &q->row[i_row];
        store_codes(o, c0, c1);
        store_low(o->l, i0, i1);
        int32_t sums[4];
        vi_hsum4(i0, i1, c0, c1, sums);
        o->d = d;
        o->s = d * (float)(sums[0] + sums[1]);
        for (int h = 0; h < 2; h++) {
            o->s16[h] = d * (float)sums[h];
            o->sum_c16[h] = sums[2 + h];
            o->sum_l16[h] = sums[h] - 256 * sums[2 + h];
        }
    }
}
