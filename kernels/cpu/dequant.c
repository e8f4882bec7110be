/* Block layouts: struct definitions of ggml's ggml-common.h; the formulas are in each function.
 * h(o): IEEE half at byte o. nib(i): low nibble of qs[i % 16] for i < 16, else the high one. */
#include "kernels/cpu/dequant.h"

#include <assert.h>
#include <string.h>

const int8_t DEQUANT_IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                1,    13,   25,  38,  53,  69,  89,  113};
const int8_t DEQUANT_MXFP4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static float bits_to_f32(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t f32_to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

float f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 31u, fraction = h & 0x3FFu;
    if (exponent == 31) return bits_to_f32(sign | 0x7F800000u | fraction << 13);
    if (exponent != 0) return bits_to_f32(sign | (exponent + 112) << 23 | fraction << 13);
    const float v = (float)fraction * 0x1p-24f; /* zero and denormals: exact */
    return sign != 0 ? -v : v;
}

uint16_t f32_to_f16(float v) {
    const uint32_t u = f32_to_bits(v), sign = (u >> 16) & 0x8000u, a = u & 0x7FFFFFFFu;
    if (a > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);  /* NaN */
    if (a >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* rounds to 2^16: infinity */
    if (a < 0x38800000u) {                                   /* below 2^-14: denormal */
        /* Adding 0.5 puts the last place of the sum at 2^-24: the hardware rounds for us. */
        const uint32_t r = f32_to_bits(bits_to_f32(a) + 0.5f) - f32_to_bits(0.5f);
        return (uint16_t)(sign | r);
    }
    const uint32_t r = a + 0xFFFu + ((a >> 13) & 1u) - (112u << 23);
    return (uint16_t)(sign | r >> 13);
}

float bf16_to_f32(uint16_t h) {
    return bits_to_f32((uint32_t)h << 16);
}

uint16_t f32_to_bf16(float v) {
    const uint32_t u = f32_to_bits(v);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(u >> 16 | 64);
    return (uint16_t)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

static uint16_t u16_load(const void *p) {
    const uint8_t *b = p;
    return (uint16_t)(b[0] | b[1] << 8);
}

static uint32_t u32_load(const void *p) {
    const uint8_t *b = p;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

float f16_load(const void *p) {
    return f16_to_f32(u16_load(p));
}

float e8m0_half(uint8_t e) {
    return bits_to_f32(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

static int nib(const uint8_t *qs, int i) {
    return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
}

/* 18 bytes: d @0, qs[16] @2; y = d (q - 8) */
static void q4_0(const uint8_t *b, float *y) {
    const float d = f16_load(b);
    for (int i = 0; i < 32; i++) y[i] = d * (float)(nib(b + 2, i) - 8);
}

/* 20 bytes: d @0, m @2, qs[16] @4; y = d q + m */
static void q4_1(const uint8_t *b, float *y) {
    const float d = f16_load(b), m = f16_load(b + 2);
    for (int i = 0; i < 32; i++) y[i] = d * (float)nib(b + 4, i) + m;
}

/* 22 bytes: d @0, qh u32 @2, qs[16] @6; bit i of qh is bit 4 of q; y = d (q - 16) */
static void q5_0(const uint8_t *b, float *y) {
    const float d = f16_load(b);
    const uint32_t qh = u32_load(b + 2);
    for (int i = 0; i < 32; i++) y[i] = d * (float)((nib(b + 6, i) | (int)(qh >> i & 1) << 4) - 16);
}

/* 24 bytes: d @0, m @2, qh u32 @4, qs[16] @8; y = d q + m */
static void q5_1(const uint8_t *b, float *y) {
    const float d = f16_load(b), m = f16_load(b + 2);
    const uint32_t qh = u32_load(b + 4);
    for (int i = 0; i < 32; i++) y[i] = d * (float)(nib(b + 8, i) | (int)(qh >> i & 1) << 4) + m;
}

/* 34 bytes: d @0, qs i8[32] @2; y = d q */
static void q8_0(const uint8_t *b, float *y) {
    const float d = f16_load(b);
    for (int i = 0; i < 32; i++) y[i] = d * (float)(int8_t)b[2 + i];
}

/* 84 bytes: scales[16] @0 (low nibble scale, high nibble min), qs[64] @16, d @80, dmin @82 */
static void q2_k(const uint8_t *b, float *y) {
    const float d = f16_load(b + 80), dmin = f16_load(b + 82);
    for (int i = 0; i < 256; i++) {
        const int half = i / 128, k = i % 128 / 32, l = i % 32, sc = b[i / 16];
        const int q = b[16 + 32 * half + l] >> 2 * k & 3;
        y[i] = d * (float)(sc & 15) * (float)q - dmin * (float)(sc >> 4);
    }
}

int dequant_q3_scale(const uint8_t *b, int j) {
    const int low = j < 8 ? b[j] & 15 : b[j - 8] >> 4;
    return (low | (b[8 + j % 4] >> 2 * (j / 4) & 3) << 4) - 32;
}

/* 110 bytes: hmask[32] @0, qs[64] @32, scales[12] @96, d @108; y = d s (q - 4 unless hmask) */
static void q3_k(const uint8_t *b, float *y) {
    const float d = f16_load(b + 108);
    for (int i = 0; i < 256; i++) {
        const int half = i / 128, k = i % 128 / 32, l = i % 32;
        const int q = (b[32 + 32 * half + l] >> 2 * k & 3) - ((b[l] >> (4 * half + k) & 1) ? 0 : 4);
        y[i] = d * (float)dequant_q3_scale(b + 96, i / 16) * (float)q;
    }
}

void dequant_k4_scale(const uint8_t *b, int j, int *scale, int *min) {
    if (j < 4) {
        *scale = b[j] & 63;
        *min = b[j + 4] & 63;
    } else {
        *scale = (b[j + 4] & 15) | (b[j - 4] >> 6) << 4;
        *min = b[j + 4] >> 4 | (b[j] >> 6) << 4;
    }
}

/* 144 bytes: d @0, dmin @2, scales[12] @4, qs[128] @16; y = d s q - dmin m, one (s, m) for 32 */
static void q4_k(const uint8_t *b, float *y) {
    const float d = f16_load(b), dmin = f16_load(b + 2);
    for (int i = 0; i < 256; i++) {
        const int j = i / 32, byte = b[16 + 32 * (j / 2) + i % 32];
        int s, m;
        dequant_k4_scale(b + 4, j, &s, &m);
        y[i] = d * (float)s * (float)(j % 2 ? byte >> 4 : byte & 15) - dmin * (float)m;
    }
}

/* 176 bytes: d @0, dmin @2, scales[12] @4, qh[32] @16 (bit j for the j-th 32), qs[128] @48 */
static void q5_k(const uint8_t *b, float *y) {
    const float d = f16_load(b), dmin = f16_load(b + 2);
    for (int i = 0; i < 256; i++) {
        const int j = i / 32, byte = b[48 + 32 * (j / 2) + i % 32];
        const int q = (j % 2 ? byte >> 4 : byte & 15) | (b[16 + i % 32] >> j & 1) << 4;
        int s, m;
        dequant_k4_scale(b + 4, j, &s, &m);
        y[i] = d * (float)s * (float)q - dmin * (float)m;
    }
}

/* 210 bytes: ql[128] @0, qh[64] @128, scales i8[16] @192, d @208; y = d s (q - 32) */
static void q6_k(const uint8_t *b, float *y) {
    const float d = f16_load(b + 208);
    for (int i = 0; i < 256; i++) {
        const int half = i / 128, k = i % 128 / 32, l = i % 32;
        const int low = b[64 * half + l + 32 * (k & 1)];
        const int high = b[128 + 32 * half + l] >> 2 * k & 3;
        const int q = ((k < 2 ? low & 15 : low >> 4) | high << 4) - 32;
        y[i] = d * (float)(int8_t)b[192 + i / 16] * (float)q;
    }
}

/* 18 bytes: d @0, qs[16] @2; y = d T[q] */
static void iq4_nl(const uint8_t *b, float *y) {
    const float d = f16_load(b);
    for (int i = 0; i < 32; i++) y[i] = d * (float)DEQUANT_IQ4[nib(b + 2, i)];
}

int dequant_iq4xs_scale(const uint8_t *block, int j) {
    const int low = block[4 + j / 2] >> 4 * (j % 2) & 15;
    return (low | (u16_load(block + 2) >> 2 * j & 3) << 4) - 32;
}

/* 136 bytes: d @0, scales_h u16 @2, scales_l[4] @4, qs[128] @8; y = d s T[q], one s for 32 */
static void iq4_xs(const uint8_t *b, float *y) {
    const float d = f16_load(b);
    for (int j = 0; j < 8; j++) {
        const float s = d * (float)dequant_iq4xs_scale(b, j);
        for (int i = 0; i < 32; i++) y[32 * j + i] = s * (float)DEQUANT_IQ4[nib(b + 8 + 16 * j, i)];
    }
}

/* 17 bytes: e @0, qs[16] @1; y = E[q] 2^(e - 128) */
static void mxfp4(const uint8_t *b, float *y) {
    const float d = e8m0_half(b[0]);
    for (int i = 0; i < 32; i++) y[i] = d * (float)DEQUANT_MXFP4[nib(b + 1, i)];
}

static void f32(const uint8_t *b, float *y) {
    memcpy(y, b, sizeof *y);
}

static void f16(const uint8_t *b, float *y) {
    *y = f16_load(b);
}

static void bf16(const uint8_t *b, float *y) {
    *y = bf16_to_f32(u16_load(b));
}

typedef void dequant_block(const uint8_t *block, float *y);

static dequant_block *block_function(dtype t) {
    switch (t) {
    case DTYPE_F32:
        return f32;
    case DTYPE_F16:
        return f16;
    case DTYPE_BF16:
        return bf16;
    case DTYPE_Q4_0:
        return q4_0;
    case DTYPE_Q4_1:
        return q4_1;
    case DTYPE_Q5_0:
        return q5_0;
    case DTYPE_Q5_1:
        return q5_1;
    case DTYPE_Q8_0:
        return q8_0;
    case DTYPE_Q2_K:
        return q2_k;
    case DTYPE_Q3_K:
        return q3_k;
    case DTYPE_Q4_K:
        return q4_k;
    case DTYPE_Q5_K:
        return q5_k;
    case DTYPE_Q6_K:
        return q6_k;
    case DTYPE_IQ4_NL:
        return iq4_nl;
    case DTYPE_IQ4_XS:
        return iq4_xs;
    case DTYPE_MXFP4:
        return mxfp4;
    case DTYPE_I8:
        break;
    }
    return NULL;
}

void dequant_row(dtype t, const void *src, int n, float *out) {
    const dtype_info *d = dtype_get((int)t);
    dequant_block *block = block_function(t);
    assert(d != NULL && block != NULL && n >= 0 && n % d->block_elems == 0);
    const uint8_t *b = src;
    for (int i = 0; i < n; i += d->block_elems, b += d->block_bytes) block(b, out + i);
}
