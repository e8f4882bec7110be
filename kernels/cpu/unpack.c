/* Reading packed weights back, row by row: the portable kernels and the embedding use it. */
#include <string.h>

#include "kernels/cpu/dequant.h"
#include "kernels/cpu/pack.h"

static uint32_t word_at(const uint8_t *vectors, int i_vector, int row) {
    uint32_t w;
    memcpy(&w, vectors + 64 * i_vector + 4 * row, sizeof w);
    return w;
}

/* Codes 4 j .. 4 j + 3 of a row, as the bytes of a word. */
static uint32_t code_word(pack_codes kind, const uint8_t *v, int j, int row) {
    const int half = j / 4;
    const uint32_t two_bits = 0x03030303u, one_bit = 0x01010101u, nibble = 0x0F0F0F0Fu;
    switch (kind) {
    case CODES_8:
        return word_at(v, j, row);
    case CODES_2:
        return word_at(v, half, row) >> 2 * (j % 4) & two_bits;
    case CODES_3:
        return (word_at(v, half, row) >> 2 * (j % 4) & two_bits) |
               (word_at(v, 2, row) >> j & one_bit) << 2;
    default:
        break;
    }
    const uint32_t low = word_at(v, j % 4, row) >> 4 * half & nibble;
    if (kind == CODES_5) return low | (word_at(v, 4, row) >> j & one_bit) << 4;
    if (kind == CODES_6) return low | (word_at(v, 4 + half, row) >> 2 * (j % 4) & two_bits) << 4;
    return low;
}

void pack_block_codes(const pack *w, int i_panel, int i_block, int row, int16_t out[PACK_BLOCK]) {
    const pack_format *f = w->format;
    const uint8_t *v = w->data + (size_t)i_panel * w->panel_bytes + w->codes_at +
                       (size_t)i_block * (size_t)f->code_bytes;
    for (int j = 0; j < 8; j++) {
        const uint32_t word = code_word(f->codes, v, j, row);
        for (int i = 0; i < 4; i++) {
            const int code = (int)(word >> 8 * i & 255);
            out[4 * j + i] = (int16_t)((f->table != NULL ? f->table[code] : code) - f->zero);
        }
    }
}

static float half_at(const uint8_t *p, int i) {
    return f16_load(p + 2 * i);
}

pack_scale pack_block_scale(const pack *w, int i_panel, int i_block, int row) {
    const uint8_t *panel = w->data + (size_t)i_panel * w->panel_bytes;
    const uint8_t *h = pack_header_at(w, panel, i_block);
    const uint8_t *s = pack_block_scales_at(w, panel, i_block);
    pack_scale o = {{0}, {0}};
    switch (w->format->scales) {
    case SCALES_NONE:
        break;
    case SCALES_F16:
        o.d[0] = o.d[1] = half_at(s, row);
        break;
    case SCALES_F16_MIN:
        o.d[0] = o.d[1] = half_at(s, row);
        o.m[0] = o.m[1] = half_at(s, PACK_ROWS + row);
        break;
    case SCALES_BF16:
        o.d[0] = o.d[1] = bf16_to_f32((uint16_t)(s[2 * row] | s[2 * row + 1] << 8));
        break;
    case SCALES_K32:
        o.d[0] = o.d[1] = half_at(h, row) * (float)(int8_t)s[row];
        break;
    case SCALES_K32_MIN:
        o.d[0] = o.d[1] = half_at(h, row) * (float)s[row];
        o.m[0] = o.m[1] = half_at(h, PACK_ROWS + row) * (float)s[PACK_ROWS + row];
        break;
    case SCALES_K16:
        for (int i = 0; i < 2; i++)
            o.d[i] = half_at(h, row) * (float)(int8_t)s[PACK_ROWS * i + row];
        break;
    case SCALES_K16_MIN:
        for (int i = 0; i < 2; i++) {
            o.d[i] = half_at(h, row) * (float)(s[PACK_ROWS * i + row] & 15);
            o.m[i] = half_at(h, PACK_ROWS + row) * (float)(s[PACK_ROWS * i + row] >> 4);
        }
        break;
    }
    return o;
}

static float float_at(const pack *w, int i_panel, int k, int row) {
    const uint8_t *panel = w->data + (size_t)i_panel * w->panel_bytes;
    const size_t i = (size_t)k * PACK_ROWS + (size_t)row;
    float v;
    switch (w->format->codes) {
    case CODES_F32:
        memcpy(&v, panel + 4 * i, sizeof v);
        return v;
    case CODES_F16:
        return f16_load(panel + 2 * i);
    default:
        return bf16_to_f32((uint16_t)(panel[2 * i] | panel[2 * i + 1] << 8));
    }
}

void pack_row(const pack *w, int row, float *out) {
    const int i_panel = row / PACK_ROWS, r = row % PACK_ROWS;
    if (pack_is_float(w)) {
        for (int k = 0; k < w->n_in; k++) out[k] = float_at(w, i_panel, k, r);
        return;
    }
    int16_t code[PACK_BLOCK];
    for (int b = 0; b < w->n_blocks; b++) {
        pack_block_codes(w, i_panel, b, r, code);
        const pack_scale s = pack_block_scale(w, i_panel, b, r);
        for (int i = 0; i < PACK_BLOCK; i++)
            out[b * PACK_BLOCK + i] = s.d[i / 16] * (float)code[i] + s.m[i / 16];
    }
}
