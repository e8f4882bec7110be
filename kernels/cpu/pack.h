/* Weights as the kernels read them: panels of 16 output rows, repacked once at load.
 *
 * A panel holds 16 rows of W over all inputs, in blocks of 32 inputs. Scales and codes are two
 * streams; the sizes add up to the file's (K types: 2-3 % more, sub-scales become whole bytes).
 *
 *   panel:  [scales: (super-block header every 8 blocks) block block ...] pad to 64
 *           [codes:  block 0 | block 1 | ...]
 *
 * Codes of a block are vectors of 64 bytes; word r of vector j belongs to row r of the panel, its
 * byte i to input 4 j + i. That is the operand of one byte dot product for 16 rows at once:
 *
 *   8 bits: vectors j = 0..7 as they are
 *   4 bits: vector i = 0..3 holds j = i in its low nibbles, j = i + 4 in the high ones
 *   bit 4 (5 bits): one more vector, bit j of a byte belongs to vector j
 *   bits 4, 5 (6 bits) or 0, 1 (2 and 3 bits): two more vectors, j / 4 says which, bits 2 (j % 4)
 *   bit 2 (3 bits): one more vector as for 5 bits
 *
 * A weight is w = scale (code - zero) + min, or scale table[code] with the table made unsigned by
 * adding zero. Plain floats: [n_in padded to 32][16 rows]. Rows past n_out and inputs past n_in are
 * zeros. Thread: any number may read, disjoint panels may be written at once. */
#ifndef INFERD_KERNELS_CPU_PACK_H
#define INFERD_KERNELS_CPU_PACK_H

#include "kernels/model_desc.h"

#include "base/status.h"

enum { PACK_ROWS = 16, PACK_BLOCK = 32, PACK_SUPER = 8 /* blocks */ };

typedef enum pack_codes {
    CODES_F32,
    CODES_F16,
    CODES_BF16,
    CODES_2,
    CODES_3,
    CODES_4,
    CODES_4_TABLE, /* nibbles that index a table */
    CODES_5,
    CODES_6,
    CODES_8
} pack_codes;

typedef enum pack_scales {
    SCALES_NONE,
    SCALES_F16,     /* f16 d[16] a block */
    SCALES_F16_MIN, /* f16 d[16], m[16] */
    SCALES_BF16,    /* bf16 d[16] */
    SCALES_K32,     /* header f16 d[16]; i8 s[16] a block: d s */
    SCALES_K32_MIN, /* header f16 d[16], -dmin[16]; u8 s[16], m[16]: d s, -dmin m */
    SCALES_K16,     /* header f16 d[16]; i8 s[2][16]: one for each 16 inputs */
    SCALES_K16_MIN  /* header f16 d[16], -dmin[16]; u8 [2][16]: s low nibble, m high nibble */
} pack_scales;

/* The layout of one weight type. */
typedef struct pack_format {
    dtype type;
    pack_codes codes;
    pack_scales scales;
    int zero;
    const uint8_t *table;                      /* [16], CODES_4_TABLE only */
    int header_bytes, scale_bytes, code_bytes; /* a super-block's header; a block's scales; codes */
} pack_format;

typedef struct pack {
    const pack_format *format;
    int n_in, n_out;    /* as in the model */
    int n_blocks;       /* of 32 inputs, padding included */
    int n_panels;       /* of 16 rows, padding included */
    size_t codes_at;    /* offset of the codes in a panel */
    size_t panel_bytes; /* multiple of 64 */
    uint8_t *data;      /* [n_panels][panel_bytes], 64-byte aligned; borrowed */
} pack;

/* NULL when the type cannot be a weight. */
const pack_format *pack_format_of(dtype t);
static inline bool pack_is_float(const pack *w) {
    return w->format->codes <= CODES_BF16;
}

/* Shape and sizes of the packed form of t; data stays NULL. E_UNSUPPORTED (type), E_INVAL (a
 * shape that is not a whole number of blocks, or too large). */
status pack_plan(const tensor_view *t, pack *out, error *err);
size_t pack_bytes(const pack *w);
/* Fills panels [panel0, panel1) of w->data from the tensor. */
void pack_panels(const pack *w, const tensor_view *t, int panel0, int panel1);

/* Row `row` as n_in floats, exactly as dequant_row gives it up to one rounding. */
void pack_row(const pack *w, int row, float *out);

/* One row's codes of a block as signed integers (code - zero, or the table's value). */
void pack_block_codes(const pack *w, int i_panel, int i_block, int row, int16_t out[PACK_BLOCK]);
/* One row's scales and minimums of a block, for inputs 0..15 and 16..31. */
typedef struct pack_scale {
    float d[2], m[2];
} pack_scale;
pack_scale pack_block_scale(const pack *w, int i_panel, int i_block, int row);

/* Address of a block's scales or codes, and of its super-block's header. */
static inline const uint8_t *pack_block_scales_at(const pack *w, const uint8_t *panel,
                                                  int i_block) {
    const pack_format *f = w->format;
    return panel + (size_t)(i_block / PACK_SUPER + 1) * (size_t)f->header_bytes +
           (size_t)i_block * (size_t)f->scale_bytes;
}
static inline const uint8_t *pack_header_at(const pack *w, const uint8_t *panel, int i_block) {
    const pack_format *f = w->format;
    return panel +
           (size_t)(i_block / PACK_SUPER) * (size_t)(f->header_bytes + PACK_SUPER * f->scale_bytes);
}
#endif
