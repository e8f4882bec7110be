#include "kernels/cpu/exp_body.h"

/* RMS norm and the SwiGLU product. */
static void rms_norm(float *y, const float *x, const float *w, int n, int n_padded, float eps) {
    vf ss = vf_set1(0.0f);
    for (int i = 0; i < n_padded; i += 16) {
        const vf v = vf_load(x + i); /* zeros past n */
        ss = vf_fma(v, v, ss);
    }
    const float mean = vf_sum(ss) / (float)n;
    const vf scale = vf_set1(1.0f / sqrtf(mean + eps));
    for (int i = 0; i < n_padded; i += 16)
        vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), scale), vf_load(w + i)));
}

/* silu(g) = g / (1 + e^-g). Below -88 g counts as -88: silu is then 0 to float accuracy. */
static void silu_mul(float *gate, const float *up, int n) {
    const vf one = vf_set1(1.0f), zero = vf_set1(0.0f), limit = vf_set1(-88.0f);
    for (int i = 0; i < n; i += 16) {
        const vf g = vf_max(limit, vf_load(gate + i)); /* NaN stays */
        const vf e = vf_exp(vf_sub(zero, g));
        vf_store(gate + i, vf_mul(vf_div(g, vf_add(one, e)), vf_load(up + i)));
    }
}
