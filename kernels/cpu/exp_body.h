#ifndef INFERD_KERNELS_CPU_EXP_BODY_H
#define INFERD_KERNELS_CPU_EXP_BODY_H
/* e^x for vectors: x = n ln 2 + r, |r| <= ln 2 / 2, e^r by Cephes' polynomial of degree 6 (Moshier,
 * expf.c: relative error 2e-8 before rounding). 0 below -86 (no denormals); x <= 88. NaN stays. */
VEC_INLINE vf vf_exp(vf x) {
    const vf magic = vf_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    const vf t = vf_fma(x, vf_set1(1.44269504088896341f), magic);
    const vf n = vf_sub(t, magic);
    vf r = vf_fma(n, vf_set1(-0.693359375f), x);
    r = vf_fma(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_set1(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set1(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1f));
    p = vf_fma(vf_mul(p, r), r, r);
    p = vf_add(p, vf_set1(1.0f));
    return vf_zero_below(x, -86.0f, vf_scale_pow2(p, t));
}
#endif
