/* The AVX2 kernels: every body over vec_avx2.h. */
#include "kernels/cpu/kernels_isa.h"
#include "kernels/cpu/vec_avx2.h"

/* 16-bit words, each four (a b c d) as (a c b d): linear_avx2.c broadcasts (a c) and (b d). */
static void store_codes(act_row *o, vi first, vi second) {
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0,
                                           1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    /* packs interleaves 128-bit halves: permute puts them in order */
    const __m256i w0 = _mm256_permute4x64_epi64(_mm256_packs_epi32(first.a, first.b), 0xD8);
    const __m256i w1 = _mm256_permute4x64_epi64(_mm256_packs_epi32(second.a, second.b), 0xD8);
    _mm256_storeu_si256((__m256i *)o->c0, _mm256_shuffle_epi8(w0, order));
    _mm256_storeu_si256((__m256i *)o->c1, _mm256_shuffle_epi8(w1, order));
}

/* The low byte of i is l. */
static void store_low(int8_t *l, vi first, vi second) {
    const __m256i byte = _mm256_set1_epi32(255);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* undoes the packs' halves */
    const __m256i w0 =
        _mm256_packs_epi32(_mm256_and_si256(first.a, byte), _mm256_and_si256(first.b, byte));
    const __m256i w1 =
        _mm256_packs_epi32(_mm256_and_si256(second.a, byte), _mm256_and_si256(second.b, byte));
    _mm256_storeu_si256((__m256i *)l,
                        _mm256_permutevar8x32_epi32(_mm256_packus_epi16(w0, w1), order));
}

#define ATTENTION_K_GROUPS  1
#define ATTENTION_V_VECTORS 1
#include "kernels/cpu/attention_body.h"
#include "kernels/cpu/norm_body.h"
#include "kernels/cpu/quantise_body.h"
#include "kernels/cpu/scan_body.h"

const cpu_kernels KERNELS_AVX2 = {
    .name = "avx2",
    .rms_norm = rms_norm,
    .quantise = quantise,
    .silu_mul = silu_mul,
    .linear = linear_avx2,
    .attention = attention,
    .scan_max = scan_max,
    .scan_find = scan_find,
    .scan_count_above = scan_count_above,
    .scan_exp = scan_exp,
};
