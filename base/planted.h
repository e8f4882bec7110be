/* Negative controls: a build with -DINFERD_PLANTED_FAULT=N has fault N and no other, and the test
 * that is meant to notice must fail (tests/conformance/negative_controls.sh). 0, and every normal
 * build: none; the conditions are constants and leave no code. */
#ifndef INFERD_BASE_PLANTED_H
#define INFERD_BASE_PLANTED_H

enum {
    FAULT_NONE,
    FAULT_ROPE_PAIRING,    /* (i, i + n/2) where (2i, 2i+1) is meant, and the other way round */
    FAULT_NO_BIAS,         /* q, k, v biases are dropped */
    FAULT_EPS,             /* 1e-5 whatever the file says */
    FAULT_WINDOW,          /* one key too many */
    FAULT_GATE_UP,         /* swapped */
    FAULT_F16_ACCUMULATE,  /* sums of float products are kept in half precision */
    FAULT_NO_HEAD_NORM,    /* qwen3's norms of q and k are dropped */
    FAULT_NO_ROPE_FACTORS, /* rope_freqs and rope_factors_* are ignored */
    FAULT_ATTN_SCALE,      /* 1 / head_dim */
    FAULT_COUNT
};

#ifdef INFERD_PLANTED_FAULT
#define PLANTED(fault) (INFERD_PLANTED_FAULT == (fault))
#else
#define PLANTED(fault) 0
#endif
#endif
