#include "kernels/cpu/exp_body.h"

/* Passes over one row of logits, for sampling. */
static bool scan_max(const float *logits, int n, float *max) {
    vf m = vf_set1(-INFINITY), bad = vf_set1(0.0f);
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const vf v = vf_load(logits + i);
        m = vf_max(v, m); /* a NaN leaves m as it is, and is caught below */
        bad = vf_fma(vf_max(vf_set1(0.0f), v), vf_set1(0.0f), bad); /* 0, or NaN for NaN and +inf */
    }
    float top = vf_hmax(m), wrong = vf_sum(bad);
    for (; i < n; i++) {
        top = logits[i] > top ? logits[i] : top;
        wrong += (logits[i] < 0.0f ? 0.0f : logits[i]) * 0.0f;
    }
    *max = top;
    return wrong == 0.0f;
}

static int scan_find(const float *logits, int n, float x) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const uint32_t m = vf_equal_mask(vf_load(logits + i), x);
        if (m != 0) return i + __builtin_ctz(m);
    }
    while (i < n && !(logits[i] == x)) i++;
    return i;
}

static int scan_count_above(const float *logits, int n, float x) {
    int i = 0, count = 0;
    for (; i + 16 <= n; i += 16) count += __builtin_popcount(vf_above_mask(vf_load(logits + i), x));
    for (; i < n; i++) count += logits[i] > x;
    return count;
}

/* Float lanes for 64 vectors, then double: the sum of a large vocabulary stays exact to 1e-7. */
static double scan_exp(const float *logits, int n, float max, float inv_temperature, float *w) {
    const vf m = vf_set1(max), t = vf_set1(inv_temperature);
    double sum = 0.0;
    for (int start = 0; start < n; start += 1024) {
        const int end = n - start < 1024 ? n : start + 1024;
        vf part = vf_set1(0.0f);
        for (int i = start; i < end; i += 16) {
            float tail[16];
            const int left = end - i;
            if (left < 16) {
                for (int k = 0; k < 16; k++) tail[k] = k < left ? logits[i + k] : -INFINITY;
            }
            const vf v = vf_load(left < 16 ? tail : logits + i);
            const vf e = vf_exp(vf_mul(vf_sub(v, m), t));
            part = vf_add(part, e);
            if (w == NULL) continue;
            if (left < 16) {
                vf_store(tail, e);
                memcpy(w + i, tail, (size_t)left * sizeof *w);
            } else {
                vf_store(w + i, e);
            }
        }
        sum += (double)vf_sum(part);
    }
    return sum;
}
