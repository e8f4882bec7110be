/* Drives a backend by hand: sequences with block tables, step descriptors, samples. Blocks are
 * handed out in a scattered order, so that nothing can rely on neighbours. */
#ifndef INFERD_TESTS_CONFORMANCE_RIG_H
#define INFERD_TESTS_CONFORMANCE_RIG_H

#include "engine/weights.h"
#include "kernels/backend.h"

enum { RIG_SEQ_BLOCKS = 256, RIG_COPIES_MAX = 8, RIG_LISTS_MAX = 4096 };

typedef struct rig_options {
    const char *backend;
    int threads;
    bool deterministic;
    int n_tokens_max, n_seqs_max, n_samples_max, kv_block_tokens, kv_blocks;
} rig_options;

typedef struct rig {
    rig_options o;
    gguf *g; /* NULL when opened from a model_desc */
    weights *w;
    const model_desc *desc;
    backend *b;
    backend_memory memory;
    step s;       /* being built */
    sampled *out; /* [n_samples_max] of the last run */
    size_t logits_capacity;
    float *logits; /* [n_samples, n_vocab] as rig_read_logits left them */
    int32_t *free_blocks;
    int n_free;
    int n_samples; /* of the last run */
} rig;

typedef struct rig_seq {
    int32_t block[RIG_SEQ_BLOCKS];
    int n_blocks, len;
} rig_seq;

/* Opens the backend and loads. E_NOTFOUND, E_UNSUPPORTED: the backend is not here. */
status rig_open_file(rig *r, const rig_options *o, const char *path, int context_length,
                     error *err);
status rig_open_desc(rig *r, const rig_options *o, const model_desc *desc, error *err);
void rig_close(rig *r);

/* Adds the next n tokens of seq to the step; takes blocks as needed. Returns the first row.
 * One-row sequences go first. */
int rig_add(rig *r, rig_seq *seq, const int32_t *ids, int n);
/* Adds a greedy sample of row (ascending); the caller changes what it wants. */
sample_row *rig_sample(rig *r, int row);
void rig_add_bias(rig *r, sample_row *s, int32_t token, float bias);
void rig_add_seen(rig *r, sample_row *s, int32_t token, int n_output);
/* from's first n_tokens become to's: whole blocks are shared, a partial one is copied in the next
 * step. */
void rig_fork(rig *r, const rig_seq *from, int n_tokens, rig_seq *to);
/* Gives back the blocks from i_block on (those before are shared with another sequence). */
void rig_drop(rig *r, rig_seq *seq, int i_block);

/* Computes the step; results in r->out. */
status rig_run(rig *r, error *err);
/* Raw logits of the last run's samples; row i at rig_logits(r, i). */
status rig_read_logits(rig *r, error *err);
const float *rig_logits(const rig *r, int i_sample);
#endif
