/* Rotary position embedding. Thread: any. */
#ifndef INFERD_KERNELS_CPU_ROPE_H
#define INFERD_KERNELS_CPU_ROPE_H

#include <stdbool.h>

/* cos and sin of position * freq[i], times mscale: [n_rot / 2] cosines, then as many sines. The
 * angle is taken in double: at position 8192 a float would be off by 5e-4 already. */
void rope_angles(int position, const float *freq, int n_rot, float mscale, float *cos_sin);

/* Rotates the first n_rot dims of n_heads heads in place: pairs (2i, 2i+1), or (i, i + n_rot/2). */
void rope_rotate(float *x, int n_heads, int head_dim, const float *cos_sin, int n_rot, bool neox);
#endif
