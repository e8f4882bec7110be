/* y = W x for quantised weights with AVX-512-VNNI. A vector of 64 code bytes holds 4 inputs of 16
 * rows; vpdpbusd multiplies it with 4 broadcast activation bytes and adds into 16 int32 sums: 24
 * instructions a block for the three byte planes of x, then c = 256 high + mid, two conversions and
 * three or four multiplications.
 *
 * A tile is n_p panels times n_t rows of x, n_p n_t <= 4: 12 sums that depend on nothing but
 * themselves keep both units busy (an instruction takes 5 cycles, two start in each). One row takes
 * 4 panels: they share its broadcasts, and as four streams they draw more from memory than one.
 *
 * One row, 4 bits: 50 vector instructions for 512 weights, 25 cycles, 6 ns at 4 GHz; reading them
 * takes 6-7 ns a thread with two threads (55 GB/s). Many rows: 37, 19 cycles for 512 products. */
#include "kernels/cpu/linear_avx512.h"

#define LINEAR_FLOAT_TILE 8
#include "kernels/cpu/linear_float_body.h"

enum { TILE_MAX = 4 };

/* With few rows the codes stream from memory: they are asked for this far ahead, in each panel of
 * the tile; from a panel's end in the same place of the next tile. */
enum { PREFETCH_ROWS_MAX = 4, PREFETCH_BLOCKS = 12 };

/* What lies PREFETCH_BLOCKS ahead of block b, and the next panel's scales bit by bit. next: the
 * same panel of the next tile, or panel itself after the last. */
VEC_INLINE void prefetch(const pack *w, const uint8_t *panel, const uint8_t *next, int b) {
    const size_t bytes = (size_t)w->format->code_bytes;
    const uint8_t *at = panel + w->codes_at + (size_t)(b + PREFETCH_BLOCKS) * bytes;
    if (b + PREFETCH_BLOCKS >= w->n_blocks) {
        const int over = b + PREFETCH_BLOCKS - w->n_blocks;
        at = next + w->codes_at + (size_t)(over < w->n_blocks ? over : 0) * bytes;
    }
    UNROLL
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)at + i, _MM_HINT_T0);
    if ((size_t)b * 64 < w->codes_at)
        _mm_prefetch((const char *)next + (size_t)b * 64, _MM_HINT_T0);
}

VEC_INLINE __m512i word(const void *q) {
    int32_t v;
    memcpy(&v, q, sizeof v);
    return _mm512_set1_epi32(v);
}

/* -zero * (sum of the activations of vectors j0 .. j1). */
VEC_INLINE __m512i start(int zero, const int32_t *sum16, int j0, int j1) {
    if (zero == 0) return _mm512_setzero_si512();
    return _mm512_set1_epi32(-zero * ((j0 < 4 ? sum16[0] : 0) + (j1 > 4 ? sum16[1] : 0)));
}

/* The sums of a tile: [panel][row]. */
typedef struct dots {
    __m512i high[TILE_MAX], mid[TILE_MAX], low[TILE_MAX];
} dots;

/* Vectors [j0, j1) of the codes at c[0 .. n_p) times rows q[0 .. n_t), without zero * (sum of the
 * activations). */
VEC_INLINE void multiply(pack_codes codes, int zero, const uint8_t *table, const uint8_t *const *c,
                         int n_p, const act_row *q, int n_t, int j0, int j1, dots *o) {
    UNROLL
    for (int p = 0; p < n_p; p++) {
        UNROLL
        for (int t = 0; t < n_t; t++) {
            o->high[p * n_t + t] = _mm512_setzero_si512();
            o->mid[p * n_t + t] = start(zero, q[t].sum_c16, j0, j1);
            o->low[p * n_t + t] = start(zero, q[t].sum_l16, j0, j1);
        }
    }
    UNROLL
    for (int i = j0; i < j1; i++) {
        /* 0 4 1 5 ..: two vectors share a load when codes have 4 bits */
        const int j = j1 - j0 == 8 ? i / 2 + i % 2 * 4 : i;
        __m512i v[TILE_MAX];
        UNROLL
        for (int p = 0; p < n_p; p++) v[p] = unpack(codes, table, c[p], j);
        UNROLL
        for (int t = 0; t < n_t; t++) {
            const __m512i high = word(q[t].c0 + 4 * j), mid = word(q[t].c1 + 4 * j);
            const __m512i low = word(q[t].l + 4 * j);
            UNROLL
            for (int p = 0; p < n_p; p++) {
                const int k = p * n_t + t;
                o->high[k] = _mm512_dpbusd_epi32(o->high[k], v[p], high);
                o->mid[k] = _mm512_dpbusd_epi32(o->mid[k], v[p], mid);
                o->low[k] = _mm512_dpbusd_epi32(o->low[k], v[p], low);
            }
        }
    }
}

VEC_INLINE vf scaled(vf scale, float d, const dots *s, int k, vf acc) {
    const __m512i c = _mm512_add_epi32(_mm512_slli_epi32(s->high[k], 8), s->mid[k]);
    const vf dot = vf_fma(vf_from_i32(c), vf_set1(256.0f), vf_from_i32(s->low[k]));
    return vf_fma(vf_mul(scale, vf_set1(d)), dot, acc);
}

VEC_INLINE block_scales scales_at(pack_scales kind, const pack *w, const uint8_t *panel, int p,
                                  int b) {
    const uint8_t *at = panel + (size_t)p * w->panel_bytes;
    return load_scales(kind, pack_header_at(w, at, b), pack_block_scales_at(w, at, b));
}

/* A tile at work: the sums of its panels, from `panel` on, and rows. */
typedef struct tile {
    const pack *w;
    const uint8_t *panel;
    vf acc[TILE_MAX];
} tile;

/* Adds vectors [j0, j1) of block b, scaled. Scales are loaded where they are used, or they would
 * take registers from the sums. */
VEC_INLINE void add_products(pack_codes codes, pack_scales kind, int zero, tile *x, int n_p,
                             int n_t, int b, const act_row *q, int j0, int j1) {
    const pack *w = x->w;
    const uint8_t *c[TILE_MAX];
    UNROLL
    for (int p = 0; p < n_p; p++)
        c[p] = x->panel + (size_t)p * w->panel_bytes + w->codes_at +
               (size_t)b * (size_t)w->format->code_bytes;
    dots sum;
    multiply(codes, zero, w->format->table, c, n_p, q, n_t, j0, j1, &sum);
    UNROLL
    for (int p = 0; p < n_p; p++) {
        const vf d = scales_at(kind, w, x->panel, p, b).d[j0 / 4];
        UNROLL
        for (int t = 0; t < n_t; t++) {
            const int k = p * n_t + t;
            x->acc[k] = scaled(d, q[t].d, &sum, k, x->acc[k]);
        }
    }
}

/* n_p panels from `panel` on for rows t0 .. t0 + n_t of one act_block: for each sum the order of
 * linear_portable.c:add_block. next: as for prefetch, relative to the panel. */
VEC_INLINE void code_tile(pack_codes codes, pack_scales kind, int zero, const pack *w, const act *a,
                          const uint8_t *panel, size_t next, int n_p, int t0, int n_t, bool streams,
                          const linear_out *o, int t_out) {
    const bool halves = kind == SCALES_K16 || kind == SCALES_K16_MIN;
    const bool mins = kind == SCALES_F16_MIN || kind == SCALES_K32_MIN || kind == SCALES_K16_MIN;
    tile x = {.w = w, .panel = panel};
    UNROLL
    for (int k = 0; k < n_p * n_t; k++) x.acc[k] = vf_set1(0.0f);
    const act_block *block = act_at(a, t0, 0);
    for (int b = 0; b < w->n_blocks; b++, block++) {
        const act_row *q = &block->row[t0 % ACT_ROWS];
        UNROLL
        for (int p = 0; p < n_p && streams; p++) {
            const uint8_t *at = panel + (size_t)p * w->panel_bytes;
            prefetch(w, at, at + next, b);
        }
        add_products(codes, kind, zero, &x, n_p, n_t, b, q, 0, halves ? 4 : 8);
        if (halves) add_products(codes, kind, zero, &x, n_p, n_t, b, q, 4, 8);
        UNROLL
        for (int p = 0; p < n_p && mins; p++) {
            const block_scales s = scales_at(kind, w, panel, p, b);
            UNROLL
            for (int t = 0; t < n_t; t++) {
                vf *y = &x.acc[p * n_t + t];
                *y = vf_fma(s.m[0], vf_set1(halves ? q[t].s16[0] : q[t].s), *y);
                if (halves) *y = vf_fma(s.m[1], vf_set1(q[t].s16[1]), *y);
            }
        }
    }
    UNROLL
    for (int p = 0; p < n_p; p++) {
        const linear_out at = linear_out_at(o, p);
        UNROLL
        for (int t = 0; t < n_t; t++) store_panel(x.acc[p * n_t + t], &at, t_out + t);
    }
}

/* Once a weight type, so that the compiler sees its constants; under sanitizers once for all, or
 * compiling takes minutes. */
#if defined(__SANITIZE_ADDRESS__)
#define PER_TYPE static __attribute__((noinline))
#else
#define PER_TYPE VEC_INLINE
#endif

/* Panels [p0, p1), at most 4; the same number follows when more. */
PER_TYPE void four_panels(pack_codes codes, pack_scales kind, int zero, const pack *w, const act *a,
                          int p0, int p1, bool more, int t0, int n_t, const linear_out *o) {
    const uint8_t *first = w->data + (size_t)p0 * w->panel_bytes;
    const size_t next = more ? (size_t)(p1 - p0) * w->panel_bytes : 0;
    const bool streams = n_t <= PREFETCH_ROWS_MAX;
#define TILE(n_p, n_rows)                                                                          \
    code_tile(codes, kind, zero, w, a, panel, next, n_p, t0 + t, n_rows, streams, &at, t)
    for (int t = 0; t < n_t;) {
        /* A tile lies within one act_block. */
        const int left = n_t - t, to = (t0 + t) % 4;
        const int n = left >= 4 && to == 0 ? 4 : left >= 2 && to % 2 == 0 ? 2 : 1;
        for (int p = p0; p < p1;) {
            const uint8_t *panel = first + (size_t)(p - p0) * w->panel_bytes;
            const linear_out at = linear_out_at(o, p - p0);
            if (n == 4) {
                TILE(1, 4);
                p += 1;
            } else if (n == 2 && p1 - p >= 2) {
                TILE(2, 2);
                p += 2;
            } else if (n == 2) {
                TILE(1, 2);
                p += 1;
            } else if (p1 - p >= 4) {
                TILE(4, 1);
                p += 4;
            } else if (p1 - p >= 2) {
                TILE(2, 1);
                p += 2;
            } else {
                TILE(1, 1);
                p += 1;
            }
        }
        t += n;
    }
#undef TILE
}

VEC_INLINE void code_panels(pack_codes codes, pack_scales scales, int zero, const pack *w,
                            const act *a, int p0, int p1, int t0, int n_t, const linear_out *o) {
    for (int p = p0; p < p1; p += 4) {
        const int end = p + 4 < p1 ? p + 4 : p1;
        const linear_out at = linear_out_at(o, p - p0);
        four_panels(codes, scales, zero, w, a, p, end, end < p1, t0, n_t, &at);
    }
}
#include "kernels/cpu/linear_types_body.h"

void linear_avx512(const pack *w, const act *a, int p0, int p1, int t0, int n_t,
                   const linear_out *o) {
    if (pack_is_float(w)) {
        linear_float(w, a, p0, p1, t0, n_t, o);
    } else {
        linear_types(w, a, p0, p1, t0, n_t, o);
    }
}
