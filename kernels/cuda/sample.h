/* Sampling on the device: every rule of step.h, exactly, without a full sort. Logits stay on the
 * device; ids, and a `sampled` for each row that asks for more, are what the backend reads back.
 *
 *   start-up   sampler_init -> *_bytes() -> the backend allocates; workspace zeroed once
 *   step       sampler_plan_make fills host memory, uploaded with step.sample, .bias, .seen
 *   launch     cuda_sample
 *
 * Same (seed, position) as the CPU: same uniform, inverse CDF over the survivors by ascending id,
 * so the same token up to float noise at the borders. A row in which every token is forbidden
 * answers like one that is not finite. A row's result depends on no other row, and float sums run
 * in a fixed order. Thread: the backend's. */
#ifndef INFERD_KERNELS_CUDA_SAMPLE_H
#define INFERD_KERNELS_CUDA_SAMPLE_H

#include <cuda_runtime.h>

#include "base/status.h"
#include "kernels/step.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SAMPLER_VOCAB_MAX = 1 << 18, SAMPLER_RANGES_MAX = 128 };

typedef struct sampler {
    int n_vocab, n_samples_max;
    int logits_stride;            /* floats between rows: a multiple of 8, >= n_vocab */
    int n_entries_max;            /* entries (bias, seen) of rows that are sampled at once */
    const uint8_t *never_sampled; /* device [n_vocab], readable up to logits_stride; or NULL */
    int n_sms, sm;
} sampler;

/* Offsets into the uploaded plan buffer, and which kernels the step needs. */
typedef struct sampler_plan {
    bool greedy_only; /* argmax of every row and nothing else: one kernel */
    bool entries;     /* some row has bias or seen entries */
    bool filters;     /* some row draws with a filter */
    bool prefix;      /* and some filter may need more than a short list */
    bool detail;      /* some row wants more than an id: read `sampled` back, else ids do */
    int n_rows;
    int n_ranges; /* rows are sampled in ranges whose entries fit: [range_end[i - 1], range_end[i])
                   */
    int range_end[SAMPLER_RANGES_MAX];
    size_t bytes;
} sampler_plan;

/* n_entries: the most bias and seen entries that a step's arrays hold. Rows may share lists (the
 * choices of a request do), so a step may need more than that: they are then sampled in ranges.
 * E_UNSUPPORTED: n_vocab above SAMPLER_VOCAB_MAX. */
status sampler_init(sampler *s, int n_vocab, int logits_stride, int n_samples_max, int n_entries,
                    const uint8_t *never_sampled, int device, error *err);
size_t sampler_plan_bytes(const sampler *s);
size_t sampler_workspace_bytes(const sampler *s);

/* E_INVAL: more rows than init was told, a row with more entries, or more ranges than
 * SAMPLER_RANGES_MAX. */
status sampler_plan_make(const sampler *s, const step *st, void *buffer, sampler_plan *p);

typedef struct sampler_args {
    float *logits;          /* [n_rows, logits_stride]; entries' values change during the launch and
                               are restored by its end */
    const sample_row *rows; /* device copies of the step's arrays */
    const token_bias *bias;
    const token_seen *seen;
    const void *plan; /* uploaded plan buffer */
    void *workspace;
    int32_t *token; /* out [n_rows]: id, or -1 when the row is not finite */
    sampled *out;   /* out [n_rows], written in full when p->detail; may be NULL else */
    bool pdl;
} sampler_args;

status cuda_sample(const sampler *s, const sampler_plan *p, const sampler_args *args,
                   cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
