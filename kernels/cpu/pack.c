#include "kernels/cpu/pack.h"

#include <assert.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/cpu/dequant.h"

/* The code books plus their zero, so that codes are unsigned for the byte dot products. */
static const uint8_t TABLE_IQ4[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                      129, 141, 153, 166, 181, 197, 217, 241};
static const uint8_t TABLE_MXFP4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

static const pack_format FORMATS[] = {
    {DTYPE_F32, CODES_F32, SCALES_NONE, 0, NULL, 0, 0, 4 * 512},
    {DTYPE_F16, CODES_F16, SCALES_NONE, 0, NULL, 0, 0, 2 * 512},
    {DTYPE_BF16, CODES_BF16, SCALES_NONE, 0, NULL, 0, 0, 2 * 512},
    {DTYPE_Q4_0, CODES_4, SCALES_F16, 8, NULL, 0, 32, 256},
    {DTYPE_Q4_1, CODES_4, SCALES_F16_MIN, 0, NULL, 0, 64, 256},
    {DTYPE_Q5_0, CODES_5, SCALES_F16, 16, NULL, 0, 32, 320},
    {DTYPE_Q5_1, CODES_5, SCALES_F16_MIN, 0, NULL, 0, 64, 320},
    {DTYPE_Q8_0, CODES_8, SCALES_F16, 128, NULL, 0, 32, 512},
    {DTYPE_Q2_K, CODES_2, SCALES_K16_MIN, 0, NULL, 64, 32, 128},
    {DTYPE_Q3_K, CODES_3, SCALES_K16, 4, NULL, 32, 32, 192},
    {DTYPE_Q4_K, CODES_4, SCALES_K32_MIN, 0, NULL, 64, 32, 256},
    {DTYPE_Q5_K, CODES_5, SCALES_K32_MIN, 0, NULL, 64, 32, 320},
    {DTYPE_Q6_K, CODES_6, SCALES_K16, 32, NULL, 32, 32, 384},
    {DTYPE_IQ4_NL, CODES_4_TABLE, SCALES_F16, 128, TABLE_IQ4, 0, 32, 256},
    {DTYPE_IQ4_XS, CODES_4_TABLE, SCALES_K32, 128, TABLE_IQ4, 32, 16, 256},
    {DTYPE_MXFP4, CODES_4_TABLE, SCALES_BF16, 12, TABLE_MXFP4, 0, 32, 256},
};

const pack_format *pack_format_of(dtype t) {
    for (size_t i = 0; i < sizeof FORMATS / sizeof FORMATS[0]; i++) {
        if (FORMATS[i].type == t) return &FORMATS[i];
    }
    return NULL;
}

status pack_plan(const tensor_view *t, pack *out, error *err) {
    const pack_format *f = pack_format_of(t->type);
    const dtype_info *info = dtype_get((int)t->type);
    if (f == NULL || info == NULL)
        return error_set(err, E_UNSUPPORTED, "%s: weight type %d is not built in the CPU backend",
                         t->name, (int)t->type);
    if (t->n_in < 1 || t->n_out < 1 || t->n_in > (1 << 26) || t->n_out > (1 << 26) ||
        t->n_in % info->block_elems != 0)
        return error_set(err, E_INVAL, "%s: shape [%d, %d] is not possible for %s", t->name,
                         t->n_in, t->n_out, info->name);
    pack w = {.format = f, .n_in = t->n_in, .n_out = t->n_out};
    w.n_blocks = (t->n_in + PACK_BLOCK - 1) / PACK_BLOCK;
    w.n_panels = (t->n_out + PACK_ROWS - 1) / PACK_ROWS;
    const size_t n_supers = ((size_t)w.n_blocks + PACK_SUPER - 1) / PACK_SUPER;
    const size_t scales =
        n_supers * (size_t)f->header_bytes + (size_t)w.n_blocks * (size_t)f->scale_bytes;
    w.codes_at = (scales + 63) / 64 * 64;
    w.panel_bytes = w.codes_at + (size_t)w.n_blocks * (size_t)f->code_bytes;
    size_t total = 0;
    if (!checked_mul_size((size_t)w.n_panels, w.panel_bytes, &total))
        return error_set(err, E_INVAL, "%s: shape [%d, %d] is too large", t->name, t->n_in,
                         t->n_out);
    *out = w;
    return OK;
}

size_t pack_bytes(const pack *w) {
    return (size_t)w->n_panels * w->panel_bytes;
}

/* What one row contributes to one block: unsigned codes, and its scales as stored. */
typedef struct row_block {
    uint8_t code[PACK_BLOCK];
    uint16_t d, m;       /* f16 or bf16 bits; of the super-block for K types */
    uint8_t s[2], sm[2]; /* K types: sub-scales and sub-minimums */
} row_block;

static uint16_t u16_at(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static void nibbles(const uint8_t *qs, uint8_t *code) {
    for (int i = 0; i < 16; i++) {
        code[i] = qs[i] & 15;
        code[16 + i] = qs[i] >> 4;
    }
}

static void fifth_bits(const uint8_t *qh, uint8_t *code) {
    for (int i = 0; i < 32; i++) code[i] |= (uint8_t)((qh[i / 8] >> i % 8 & 1) << 4);
}

/* Blocks of 32: see dequant.c for the layouts. */
static void read_simple(dtype t, const uint8_t *b, row_block *o) {
    o->d = u16_at(b);
    switch (t) {
    case DTYPE_Q4_1:
        o->m = u16_at(b + 2);
        nibbles(b + 4, o->code);
        break;
    case DTYPE_Q5_0:
        nibbles(b + 6, o->code);
        fifth_bits(b + 2, o->code);
        break;
    case DTYPE_Q5_1:
        o->m = u16_at(b + 2);
        nibbles(b + 8, o->code);
        fifth_bits(b + 4, o->code);
        break;
    case DTYPE_Q8_0:
        for (int i = 0; i < 32; i++) o->code[i] = b[2 + i] ^ 0x80;
        break;
    case DTYPE_MXFP4:
        o->d = f32_to_bf16(e8m0_half(b[0]));
        nibbles(b + 1, o->code);
        break;
    default:
        nibbles(b + 2, o->code);
        break; /* Q4_0, IQ4_NL */
    }
}

/* -x of IEEE half bits. */
static uint16_t f16_negate(uint16_t h) {
    return h ^ 0x8000;
}

/* The j-th 32 values (0..7) of a block of 256. */
static void read_super(dtype t, const uint8_t *b, int j, row_block *o) {
    int s = 0, m = 0;
    const int half = j / 4, shift = 2 * (j % 4); /* Q2_K, Q3_K, Q6_K: 128 values, then quarters */
    switch (t) {
    case DTYPE_Q2_K:
        o->d = u16_at(b + 80);
        o->m = f16_negate(u16_at(b + 82));
        memcpy(o->s, b + 2 * j, 2);
        for (int i = 0; i < 32; i++) o->code[i] = b[16 + 32 * half + i] >> shift & 3;
        break;
    case DTYPE_Q3_K:
        o->d = u16_at(b + 108);
        for (int h = 0; h < 2; h++) o->s[h] = (uint8_t)dequant_q3_scale(b + 96, 2 * j + h);
        for (int i = 0; i < 32; i++)
            o->code[i] = (uint8_t)((b[32 + 32 * half + i] >> shift & 3) | (b[i] >> j & 1) << 2);
        break;
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
        o->d = u16_at(b);
        o->m = f16_negate(u16_at(b + 2));
        dequant_k4_scale(b + 4, j, &s, &m);
        o->s[0] = (uint8_t)s;
        o->sm[0] = (uint8_t)m;
        const uint8_t *qs = b + (t == DTYPE_Q4_K ? 16 : 48) + 32 * (j / 2);
        for (int i = 0; i < 32; i++) o->code[i] = qs[i] >> 4 * (j % 2) & 15;
        if (t == DTYPE_Q5_K)
            for (int i = 0; i < 32; i++) o->code[i] |= (uint8_t)((b[16 + i] >> j & 1) << 4);
        break;
    case DTYPE_Q6_K:
        o->d = u16_at(b + 208);
        memcpy(o->s, b + 192 + 2 * j, 2);
        const uint8_t *ql = b + 64 * half + 32 * (j & 1), *qh = b + 128 + 32 * half;
        for (int i = 0; i < 32; i++)
            o->code[i] = (uint8_t)((ql[i] >> 4 * (j % 4 / 2) & 15) | (qh[i] >> shift & 3) << 4);
        break;
    default: /* IQ4_XS */
        assert(t == DTYPE_IQ4_XS);
        o->d = u16_at(b);
        o->s[0] = (uint8_t)dequant_iq4xs_scale(b, j);
        nibbles(b + 8 + 16 * j, o->code);
        break;
    }
}

static uint32_t word_of(const uint8_t *code, int j) {
    uint32_t w;
    memcpy(&w, code + 4 * j, sizeof w);
    return w;
}

static void put_word(uint8_t *vectors, int i_vector, int row, uint32_t w) {
    memcpy(vectors + 64 * i_vector + 4 * row, &w, sizeof w);
}

/* One bit (or two) of every code, collected over j: see the head of pack.h. */
static uint32_t bit_plane(const uint8_t *code, int bit) {
    uint32_t w = 0;
    for (int j = 0; j < 8; j++) w |= (word_of(code, j) >> bit & 0x01010101u) << j;
    return w;
}

static uint32_t two_bit_plane(const uint8_t *code, int bit, int j0) {
    uint32_t w = 0;
    for (int j = 0; j < 4; j++) w |= (word_of(code, j0 + j) >> bit & 0x03030303u) << 2 * j;
    return w;
}

static void put_codes(pack_codes kind, uint8_t *out, int row, const uint8_t *code) {
    int at = 0;
    switch (kind) {
    case CODES_8:
        for (int j = 0; j < 8; j++) put_word(out, j, row, word_of(code, j));
        return;
    case CODES_2:
    case CODES_3:
        put_word(out, 0, row, two_bit_plane(code, 0, 0));
        put_word(out, 1, row, two_bit_plane(code, 0, 4));
        if (kind == CODES_3) put_word(out, 2, row, bit_plane(code, 2));
        return;
    default:
        for (; at < 4; at++)
            put_word(out, at, row,
                     (word_of(code, at) & 0x0F0F0F0Fu) | (word_of(code, at + 4) & 0x0F0F0F0Fu)
                                                             << 4);
        if (kind == CODES_5) put_word(out, at, row, bit_plane(code, 4));
        if (kind == CODES_6) {
            put_word(out, at, row, two_bit_plane(code, 4, 0));
            put_word(out, at + 1, row, two_bit_plane(code, 4, 4));
        }
        return;
    }
}

static void put_u16(uint8_t *at, int i, uint16_t v) {
    memcpy(at + 2 * i, &v, sizeof v);
}

static void put_scales(pack_scales kind, uint8_t *header, uint8_t *block, int row,
                       const row_block *r) {
    uint8_t *d = kind >= SCALES_K32 ? header : block;
    put_u16(d, row, r->d);
    switch (kind) {
    case SCALES_F16_MIN:
        put_u16(d, PACK_ROWS + row, r->m);
        break;
    case SCALES_K32:
        block[row] = r->s[0];
        break;
    case SCALES_K32_MIN:
        put_u16(d, PACK_ROWS + row, r->m);
        block[row] = r->s[0];
        block[PACK_ROWS + row] = r->sm[0];
        break;
    case SCALES_K16_MIN:
        put_u16(d, PACK_ROWS + row, r->m); /* fall through */
    case SCALES_K16:
        block[row] = r->s[0];
        block[PACK_ROWS + row] = r->s[1];
        break;
    default:
        break;
    }
}

static void pack_float_panel(const pack *w, const uint8_t *src, size_t row_bytes, int n_rows,
                             uint8_t *panel) {
    const size_t e = w->format->codes == CODES_F32 ? 4 : 2;
    for (int r = 0; r < n_rows; r++) {
        const uint8_t *s = src + (size_t)r * row_bytes;
        uint8_t *d = panel + (size_t)r * e;
        if (e == 4) {
            for (int k = 0; k < w->n_in; k++) memcpy(d + (size_t)k * 64, s + (size_t)k * 4, 4);
        } else {
            for (int k = 0; k < w->n_in; k++) memcpy(d + (size_t)k * 32, s + (size_t)k * 2, 2);
        }
    }
}

static void pack_code_panel(const pack *w, const uint8_t *src, size_t row_bytes, int n_rows,
                            uint8_t *panel) {
    const pack_format *f = w->format;
    const dtype_info *info = dtype_get((int)f->type);
    const size_t block_bytes = (size_t)info->block_bytes;
    for (int b = 0; b < w->n_blocks; b++) {
        uint8_t *header = panel + (pack_header_at(w, panel, b) - panel);
        uint8_t *scales = panel + (pack_block_scales_at(w, panel, b) - panel);
        uint8_t *codes = panel + w->codes_at + (size_t)b * (size_t)f->code_bytes;
        for (int r = 0; r < n_rows; r++) {
            const uint8_t *row = src + (size_t)r * row_bytes;
            row_block rb = {0};
            if (info->block_elems == PACK_BLOCK) {
                read_simple(f->type, row + (size_t)b * block_bytes, &rb);
            } else {
                read_super(f->type, row + (size_t)(b / PACK_SUPER) * block_bytes, b % PACK_SUPER,
                           &rb);
            }
            put_codes(f->codes, codes, r, rb.code);
            put_scales(f->scales, header, scales, r, &rb);
        }
    }
}

void pack_panels(const pack *w, const tensor_view *t, int panel0, int panel1) {
    const size_t row_bytes = dtype_row_bytes(t->type, t->n_in);
    for (int p = panel0; p < panel1; p++) {
        uint8_t *panel = w->data + (size_t)p * w->panel_bytes;
        const uint8_t *src = (const uint8_t *)t->data + (size_t)p * PACK_ROWS * row_bytes;
        const int left = w->n_out - p * PACK_ROWS, n_rows = left < PACK_ROWS ? left : PACK_ROWS;
        /* Fresh pages are zero, so only what no row writes would need clearing: nothing does. */
        if (pack_is_float(w)) {
            pack_float_panel(w, src, row_bytes, n_rows, panel);
        } else {
            pack_code_panel(w, src, row_bytes, n_rows, panel);
        }
    }
}
