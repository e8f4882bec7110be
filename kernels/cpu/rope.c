#include "kernels/cpu/rope.h"

#include <math.h>
#include <stddef.h>

void rope_angles(int position, const float *freq, int n_rot, float mscale, float *cos_sin) {
    const int half = n_rot / 2;
    for (int i = 0; i < half; i++) {
        const double angle = (double)position * (double)freq[i];
        cos_sin[i] = (float)(cos(angle) * (double)mscale);
        cos_sin[half + i] = (float)(sin(angle) * (double)mscale);
    }
}

void rope_rotate(float *x, int n_heads, int head_dim, const float *cos_sin, int n_rot, bool neox) {
    const int half = n_rot / 2;
    const float *c = cos_sin, *s = cos_sin + half;
    for (int h = 0; h < n_heads; h++, x += head_dim) {
        for (int i = 0; i < half; i++) {
            float *a = neox ? x + i : x + 2 * i;
            float *b = neox ? a + half : a + 1;
            const float x0 = *a, x1 = *b;
            *a = x0 * c[i] - x1 * s[i];
            *b = x0 * s[i] + x1 * c[i];
        }
    }
}
