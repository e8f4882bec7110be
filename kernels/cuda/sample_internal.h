/* What the sampling files share among themselves. sample.h is the interface.
 *
 * A step with more than greedy rows runs these, in order:
 *   prepare  rows with bias or seen entries: raw and adjusted value of each entry to a list, a mark
 *            (HOLE) in its place in the logits. A row is then "rest + list": no sum is corrected by
 *            subtraction, and raw and adjusted values come out of one read.
 *   scan     the one full read: maxima of 32-token groups and 4,096-token slices, sums, finiteness
 *   pick     greedy rows, temperature alone, filters that leave at most 2,048 candidates
 *   prefix   what pick left: top-p alone, long lists
 *   detail   log-probability, rank, most likely tokens
 * The last of them puts the marked logits back. */
#ifndef INFERD_KERNELS_CUDA_SAMPLE_INTERNAL_H
#define INFERD_KERNELS_CUDA_SAMPLE_INTERNAL_H

#include "kernels/cuda/sample.h"

enum {
    SLICE = 4096,        /* tokens of a scan block */
    GROUPS = SLICE / 32, /* 32-token groups in a slice */
    BINS = 1024,
    LIST_MAX = 2048,  /* candidates that are sorted in shared memory */
    TOP_K_LIST = 1024 /* largest top-k that tries the list */
};

/* pick's verdict on a row. */
enum { ROW_DONE = 0, ROW_PREFIX = 1, ROW_TOP_K = 2 /* prefix, after an exact top-k */ };

struct sample_args {
    float *logits;
    size_t stride;
    const sample_row *rows;
    const token_bias *bias;
    const token_seen *seen;
    const int32_t *entry_start; /* [n_rows] first entry of each row */
    const uint8_t *never;       /* [n_vocab] or NULL */
    int n_vocab, n_slices, n_rows;
    bool restore; /* this kernel is the last: put the marked logits back */
    /* workspace */
    float *entry_raw, *entry_adj; /* [n_entries_max] */
    float *group_top, *group_raw; /* [row][slice][GROUPS] maximum of what may be drawn, of all;
                                     the same array when never is NULL */
    float *slice_top, *slice_raw; /* [row][slice] maximum of what may be drawn, of raw logits */
    float *sum_top, *sum_raw;     /* [row][slice] sums of exp, relative to those */
    int32_t *slice_arg, *slice_bad;
    float *row_top; /* [row] maximum of the adjusted logits */
    int32_t *pending;
    unsigned long long *best; /* [row] zero at rest: greedy-only kernel */
    unsigned *ticket;         /* [row] zero at rest */
    int32_t *token;
    sampled *out;
};

/* Launches; cluster: blocks a row (1, 2, 4, 8; above 1 from sm_90 only). */
status sample_prepare_launch(const sample_args *a, bool pdl, cudaStream_t stream);
status sample_scan_launch(const sample_args *a, bool greedy_only, bool pdl, cudaStream_t stream);
status sample_pick_launch(const sample_args *a, bool pdl, cudaStream_t stream);
status sample_prefix_launch(const sample_args *a, int cluster, bool pdl, cudaStream_t stream);
status sample_detail_launch(const sample_args *a, int cluster, bool pdl, cudaStream_t stream);

#endif
