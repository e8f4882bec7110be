/* The AVX-512 kernels: every body over vec_avx512.h. */
#include "kernels/cpu/kernels_isa.h"
#include "kernels/cpu/vec_avx512.h"

/* Two signed byte planes: c = 256 high + low, -128 <= low <= 127, so high rounds to nearest. */
static void store_codes(act_row *o, vi first, vi second) {
    const __m512i half = _mm512_set1_epi32(128);
    const __m512i h0 = _mm512_srai_epi32(_mm512_add_epi32(first, half), 8);
    const __m512i h1 = _mm512_srai_epi32(_mm512_add_epi32(second, half), 8);
    _mm_storeu_si128((__m128i *)o->c0, _mm512_cvtepi32_epi8(h0));
    _mm_storeu_si128((__m128i *)(o->c0 + 16), _mm512_cvtepi32_epi8(h1));
    _mm_storeu_si128((__m128i *)o->c1, _mm512_cvtepi32_epi8(first)); /* the low byte is `low` */
    _mm_storeu_si128((__m128i *)(o->c1 + 16), _mm512_cvtepi32_epi8(second));
}

/* The low byte of i is l. */
static void store_low(int8_t *l, vi first, vi second) {
    _mm_storeu_si128((__m128i *)l, _mm512_cvtepi32_epi8(first));
    _mm_storeu_si128((__m128i *)(l + 16), _mm512_cvtepi32_epi8(second));
}

#define ATTENTION_K_GROUPS  4
#define ATTENTION_V_VECTORS 4
#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/norm_body.h"
#include "kernels/cpu/quantise_body.h"
#include "kernels/cpu/scan_body.h"

const cpu_kernels KERNELS_AVX512 = {
    .name = "avx512-vnni",
    .rms_norm = rms_norm,
    .quantise = quantise,
    .silu_mul = silu_mul,
    .linear = linear_avx512,
    .attention = attention,
    .scan_max = scan_max,
    .scan_find = scan_find,
    .scan_count_above = scan_count_above,
    .scan_exp = scan_exp,
};

/* The same but for products of many rows. */
const cpu_kernels KERNELS_AMX = {
    .name = "avx512-amx",
    .rms_norm = rms_norm,
    .quantise = quantise,
    .silu_mul = silu_mul,
    .linear = linear_amx,
    .attention = attention,
    .scan_max = scan_max,
    .scan_find = scan_find,
    .scan_count_above = scan_count_above,
    .scan_exp = scan_exp,
};
