/* Vectors of 16 lanes: one AVX-512 register. See vec_portable.h for what each operation means. */
#ifndef INFERD_KERNELS_CPU_VEC_H
#define INFERD_KERNELS_CPU_VEC_H

#include <immintrin.h>
#include <stdint.h>

#define VEC_INLINE static inline __attribute__((always_inline, unused))

typedef __m512 vf;
typedef __m512i vi;

VEC_INLINE vf vf_set1(float x) {
    return _mm512_set1_ps(x);
}
VEC_INLINE vf vf_load(const float *p) {
    return _mm512_loadu_ps(p);
}
VEC_INLINE void vf_store(float *p, vf a) {
    _mm512_storeu_ps(p, a);
}
VEC_INLINE vf vf_load_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
VEC_INLINE vf vf_load_bf16(const void *p) {
    const __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}
VEC_INLINE vf vf_load_i8(const void *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
VEC_INLINE vf vf_load_u8(const void *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
VEC_INLINE vf vf_add(vf a, vf b) {
    return _mm512_add_ps(a, b);
}
VEC_INLINE vf vf_sub(vf a, vf b) {
    return _mm512_sub_ps(a, b);
}
VEC_INLINE vf vf_mul(vf a, vf b) {
    return _mm512_mul_ps(a, b);
}
VEC_INLINE vf vf_div(vf a, vf b) {
    return _mm512_div_ps(a, b);
}
VEC_INLINE vf vf_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
VEC_INLINE vf vf_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}
VEC_INLINE vf vf_keep(vf a, int lo, int hi, float other) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 m = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(lo)) &
                        _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(hi));
    return _mm512_mask_mov_ps(_mm512_set1_ps(other), m, a);
}
VEC_INLINE vf vf_zero_below(vf x, float limit, vf y) {
    const __mmask16 m = _mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_NLT_UQ);
    return _mm512_maskz_mov_ps(m, y);
}
VEC_INLINE vf vf_scale_pow2(vf y, vf t) {
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}
VEC_INLINE float vf_sum(vf a) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}
VEC_INLINE float vf_hmax(vf a) {
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
}
VEC_INLINE uint32_t vf_equal_mask(vf a, float x) {
    return _mm512_cmp_ps_mask(a, _mm512_set1_ps(x), _CMP_EQ_OQ);
}
VEC_INLINE uint32_t vf_above_mask(vf a, float x) {
    return _mm512_cmp_ps_mask(a, _mm512_set1_ps(x), _CMP_GT_OQ);
}

VEC_INLINE vi vi_zero(void) {
    return _mm512_setzero_si512();
}
VEC_INLINE vi vf_abs_bits(vf a) {
    return _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7FFFFFFF));
}
VEC_INLINE vi vi_max(vi a, vi b) {
    return _mm512_max_epi32(a, b);
}
VEC_INLINE int32_t vi_hmax(vi a) {
    return _mm512_reduce_max_epi32(a);
}
VEC_INLINE __m256i halves_added(vi a) {
    return _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
}
VEC_INLINE void vi_hsum4(vi a, vi b, vi c, vi d, int32_t out[4]) {
    const __m256i ab = _mm256_hadd_epi32(halves_added(a), halves_added(b));
    const __m256i cd = _mm256_hadd_epi32(halves_added(c), halves_added(d));
    const __m256i all = _mm256_hadd_epi32(ab, cd); /* a b c d, of each 128 bits */
    _mm_storeu_si128((__m128i *)out,
                     _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}
VEC_INLINE vi vf_round(vf a) {
    return _mm512_cvt_roundps_epi32(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
VEC_INLINE vi vi_high24(vi a) {
    return _mm512_srai_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(128)), 8);
}
VEC_INLINE vf vf_from_i32(vi a) {
    return _mm512_cvtepi32_ps(a);
}
VEC_INLINE void vi_store(int32_t *p, vi a) {
    _mm512_storeu_si512(p, a);
}
#endif
