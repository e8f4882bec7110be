/* y = W x for quantised weights and many rows of x with AMX. A panel's codes are unpacked once into
 * byte tiles (a vector of 4 inputs x 16 rows of W is a row of AMX's B operand as it is). An
 * act_block is three A operands of 16 rows: both bytes of c for rows 0-7, for rows 8-15, and l.
 *
 *   C [high of x 0, mid of x 0, high of x 1, ...][16 rows of W]  =  A [16][32]  B [32][16]
 *
 * One block of 32 inputs: for 16 rows of x 3 tile products (16 cycles each) and the float work, 8
 * instructions a row; for the same 8,192 products linear_avx512.c needs 16 x 33 instructions.
 * Measured for 4 bits in cache: 3.8 ns for 512 products, linear_avx512.c 6.7.
 * The integers are the same, and so is the float order: the results are equal bit for bit. */
#include "kernels/cpu/linear_avx512.h"

enum { CHUNK_BLOCKS = 32, ROWS_WORTH = 6 /* fewer rows are left to linear_avx512.c */ };

/* gcc's tile loads do not tell the compiler that they read memory (its header says so for 8 bytes
 * of the configuration, and for none of a tile): without this, stores to it may come later or not
 * at all. */
#define TILE_SOURCE(p) __asm__ volatile("" : : "r"(p) : "memory")

/* The palette: tiles 0-3 C, 6 B, 4, 5 and 7 A. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* B operands hold 32 inputs, or 16 where scales change every 16. */
VEC_INLINE void configure(int n_inputs) {
    tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.rows[i] = (uint8_t)(i != 6 ? 16 : n_inputs / 4);
        c.row_bytes[i] = (uint16_t)(i < 4 || i == 6 ? 64 : n_inputs);
    }
    TILE_SOURCE(&c);
    _tile_loadconfig(&c);
}

/* C of one block and each half of its inputs: both bytes of c, row by row; l. */
typedef struct products {
    _Alignas(64) int32_t c[2][2 * ACT_ROWS][16];
    int32_t l[2][ACT_ROWS][16];
} products;

/* 32 inputs (or the half that starts at byte h) of n_t rows; then their results to memory. */
VEC_INLINE void start_products(const uint8_t *tile, const act_block *q, int h, int n_t) {
    _tile_loadd(6, tile + 256 * h, 64);
    _tile_loadd(4, q->row[0].c0 + 16 * h, 64);
    _tile_zero(0);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(5, q->row[0].l + 16 * h, sizeof(act_row));
    _tile_zero(1);
    _tile_dpbsud(1, 5, 6);
    if (n_t > 8) {
        _tile_loadd(7, q->row[8].c0 + 16 * h, 64);
        _tile_zero(2);
        _tile_dpbsud(2, 7, 6);
    }
}

VEC_INLINE void store_products(int h, int n_t, products *out) {
    _tile_stored(0, out->c[h][0], 64);
    _tile_stored(1, out->l[h][0], 64);
    if (n_t > 8) _tile_stored(2, out->c[h][16], 64);
}

/* zero * (sum of the activations), for 16 rows. */
typedef struct offsets {
    _Alignas(64) int32_t c[2][ACT_ROWS];
    int32_t l[2][ACT_ROWS];
} offsets;

VEC_INLINE offsets zero_offsets(int zero, const act_block *q, bool halves) {
    offsets o;
    for (int t = 0; t < ACT_ROWS; t++) {
        const int32_t *c = q->row[t].sum_c16, *l = q->row[t].sum_l16;
        o.c[0][t] = zero * (halves ? c[0] : c[0] + c[1]);
        o.l[0][t] = zero * (halves ? l[0] : l[0] + l[1]);
        if (!halves) continue;
        o.c[1][t] = zero * c[1];
        o.l[1][t] = zero * l[1];
    }
    return o;
}

/* The dot product of row t from its planes. */
VEC_INLINE vf joined(const products *p, int h, int t, const offsets *o, int zero) {
    const __m512i high = _mm512_load_si512(p->c[h][2 * t]);
    const __m512i mid = _mm512_load_si512(p->c[h][2 * t + 1]);
    __m512i c = _mm512_add_epi32(_mm512_slli_epi32(high, 8), mid);
    __m512i l = _mm512_load_si512(p->l[h][t]);
    if (zero != 0) {
        c = _mm512_sub_epi32(c, _mm512_set1_epi32(o->c[h][t]));
        l = _mm512_sub_epi32(l, _mm512_set1_epi32(o->l[h][t]));
    }
    return vf_fma(vf_from_i32(c), vf_set1(256.0f), vf_from_i32(l));
}

/* Adds a block's share to rows [t0, t1): the order of linear_portable.c:add_block. */
VEC_INLINE void add_products(pack_scales kind, int zero, const block_scales *s, const act_block *q,
                             const products *p, const offsets *o, int t0, int t1, vf *acc) {
    const bool halves = kind == SCALES_K16 || kind == SCALES_K16_MIN;
    for (int t = t0; t < t1; t++) {
        const act_row *x = &q->row[t];
        const vf d = vf_set1(x->d);
        acc[t] = vf_fma(vf_mul(s->d[0], d), joined(p, 0, t, o, zero), acc[t]);
        if (halves) acc[t] = vf_fma(vf_mul(s->d[1], d), joined(p, 1, t, o, zero), acc[t]);
        if (kind == SCALES_F16_MIN || kind == SCALES_K32_MIN)
            acc[t] = vf_fma(s->m[0], vf_set1(x->s), acc[t]);
        if (kind == SCALES_K16_MIN) {
            acc[t] = vf_fma(s->m[0], vf_set1(x->s16[0]), acc[t]);
            acc[t] = vf_fma(s->m[1], vf_set1(x->s16[1]), acc[t]);
        }
    }
}

/* The codes of the block CHUNK_BLOCKS after b, or of as many as the panel has, and the next panel's
 * scales bit by bit: unpacking is too short to wait for memory, and the products have the time. */
VEC_INLINE void prefetch(const pack *w, const uint8_t *panel, int b) {
    const int ahead = w->n_blocks < CHUNK_BLOCKS ? w->n_blocks : CHUNK_BLOCKS;
    const size_t bytes = (size_t)w->format->code_bytes;
    const uint8_t *next = panel + w->panel_bytes;
    const uint8_t *at = b + ahead < w->n_blocks
                            ? panel + w->codes_at + (size_t)(b + ahead) * bytes
                            : next + w->codes_at + (size_t)(b + ahead - w->n_blocks) * bytes;
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)at + i, _MM_HINT_T0);
    if ((size_t)b * 64 < w->codes_at)
        _mm_prefetch((const char *)next + (size_t)b * 64, _MM_HINT_T0);
}

/* Blocks [b0, b1) of one panel for the first n_t (8 or 16) rows of an act_block; tiles: unpacked
 * from b0. The float work of a block is woven into the tile work of the one two further on, so that
 * both units are busy and nothing is loaded while it is still on its way to the cache. */
VEC_INLINE void group_blocks(pack_scales kind, int zero, const pack *w, const uint8_t *panel,
                             const uint8_t *tiles, const act_block *q, int b0, int b1, int n_t,
                             bool streams, float (*sums)[16]) {
    enum { AHEAD = 2, RING = 4 };
    const bool halves = kind == SCALES_K16 || kind == SCALES_K16_MIN;
    products p[RING];
    vf acc[ACT_ROWS];
    for (int t = 0; t < n_t; t++) acc[t] = vf_load(sums[t]);
    for (int b = b0 - AHEAD; b < b1; b++) {
        const int next = b + AHEAD;
        if (streams && b >= b0) prefetch(w, panel, b);
        const uint8_t *tile = tiles + (size_t)(next - b0) * 512;
        block_scales s;
        offsets o;
        if (next < b1) start_products(tile, q + next, 0, n_t);
        if (b >= b0) {
            s = load_scales(kind, pack_header_at(w, panel, b), pack_block_scales_at(w, panel, b));
            if (zero != 0) o = zero_offsets(zero, q + b, halves);
            add_products(kind, zero, &s, q + b, &p[b % RING], &o, 0, n_t / 2, acc);
        }
        if (next < b1) {
            store_products(0, n_t, &p[next % RING]);
            if (halves) start_products(tile, q + next, 1, n_t);
        }
        if (b >= b0) add_products(kind, zero, &s, q + b, &p[b % RING], &o, n_t / 2, n_t, acc);
        if (halves && next < b1) store_products(1, n_t, &p[next % RING]);
    }
    for (int t = 0; t < n_t; t++) vf_store(sums[t], acc[t]);
}

enum { GROUPS_MAX = 16 };

/* Up to GROUPS_MAX groups of rows from t0, a multiple of 16. */
VEC_INLINE void amx_panel(pack_codes codes, pack_scales kind, int zero, const pack *w, const act *a,
                          int i_panel, int t0, int n_t, const linear_out *o) {
    const uint8_t *panel = w->data + (size_t)i_panel * w->panel_bytes;
    _Alignas(64) uint8_t tiles[CHUNK_BLOCKS * 512];
    _Alignas(64) float sums[GROUPS_MAX * ACT_ROWS][16];
    const int n_groups = (n_t + ACT_ROWS - 1) / ACT_ROWS;
    memset(sums, 0, (size_t)n_groups * ACT_ROWS * sizeof sums[0]);
    for (int b0 = 0; b0 < w->n_blocks; b0 += CHUNK_BLOCKS) {
        const int b1 = w->n_blocks - b0 < CHUNK_BLOCKS ? w->n_blocks : b0 + CHUNK_BLOCKS;
        for (int b = b0; b < b1; b++) {
            const uint8_t *c = panel + w->codes_at + (size_t)b * (size_t)w->format->code_bytes;
            for (int j = 0; j < 8; j++)
                _mm512_store_si512(tiles + (size_t)(b - b0) * 512 + 64 * j,
                                   unpack(codes, w->format->table, c, j));
        }
        for (int g = 0; g < n_groups; g++) {
            const act_block *q = act_at(a, t0 + g * ACT_ROWS, 0);
            float(*s)[16] = sums + g * ACT_ROWS;
            if (n_t - g * ACT_ROWS > 8) {
                group_blocks(kind, zero, w, panel, tiles, q, b0, b1, 16, g == 0, s);
            } else {
                group_blocks(kind, zero, w, panel, tiles, q, b0, b1, 8, g == 0, s);
            }
        }
    }
    for (int t = 0; t < n_t; t++) {
        float *y = o->y + (size_t)t * o->ld;
        vf v = vf_load(sums[t]);
        if (o->bias != NULL) v = vf_add(v, vf_load(o->bias));
        if (o->add) v = vf_add(vf_load(y), v);
        vf_store(y, v);
    }
}

VEC_INLINE void code_panels(pack_codes codes, pack_scales scales, int zero, const pack *w,
                            const act *a, int p0, int p1, int t0, int n_t, const linear_out *o) {
    configure(scales == SCALES_K16 || scales == SCALES_K16_MIN ? 16 : 32);
    for (int p = p0; p < p1; p++) {
        const linear_out at = linear_out_at(o, p - p0);
        amx_panel(codes, scales, zero, w, a, p, t0, n_t, &at);
    }
    _tile_release();
}
#include "kernels/cpu/linear_types_body.h"

void linear_amx(const pack *w, const act *a, int p0, int p1, int t0, int n_t, const linear_out *o) {
    if (pack_is_float(w)) {
        linear_avx512(w, a, p0, p1, t0, n_t, o);
        return;
    }
    for (int t = 0; t < n_t;) {
        const int at = t0 + t, to_group = (ACT_ROWS - at % ACT_ROWS) % ACT_ROWS;
        linear_out rest = *o;
        rest.y += (size_t)t * o->ld;
        int n = n_t - t;
        if (to_group != 0 || n < ROWS_WORTH) { /* up to the next group, or what is left */
            n = to_group != 0 && to_group < n ? to_group : n;
            linear_avx512(w, a, p0, p1, at, n, &rest);
        } else {
            n = n < GROUPS_MAX * ACT_ROWS ? n : GROUPS_MAX * ACT_ROWS;
            linear_types(w, a, p0, p1, at, n, &rest);
        }
        t += n;
    }
}
