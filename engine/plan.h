/* One planned step: the descriptor the backend reads, and whose rows and samples are whose.
 * Thread: engine. Memory: all of it at init. */
#ifndef INFERD_ENGINE_PLAN_H
#define INFERD_ENGINE_PLAN_H

#include "engine/sequence.h"
#include "kernels/backend.h"

typedef struct plan_entry {
    sequence *seq;
    int n_rows;
    int i_sample, n_samples; /* its samples in step.sample */
} plan_entry;

typedef struct plan {
    step step;
    plan_entry *entry; /* owned [n_seqs] */
    int32_t *i_prompt; /* owned [n_samples] the prompt position a sample scores; 0: a drawn token */
    backend_limits cap;
    int n_decode_tokens, n_prefill_tokens;
    int n_blocks_aside; /* block-table entries that plan_add leaves free, for one to come */
    void *memory;       /* owned: the step's arrays */
} plan;

/* cap: as given to backend_ops.reserve, without zeros. E_NOMEM. */
BASE_MUST_USE status plan_init(plan *p, const backend_limits *cap);
void plan_deinit(plan *p);
void plan_clear(plan *p);

/* Puts q->rows rows of q, whose blocks are there, into the step; fewer when only those fit, none
 * when not one fits. Returns the number, and moves q's planned positions past them. */
int plan_add(plan *p, sequence *q, int block_tokens);
/* The backend will copy block `from` to `to` before the step's first write. */
void plan_copy(plan *p, block_id from, block_id to);
#endif
