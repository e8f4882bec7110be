/* The engine's side of a request: a group of sequences, one per choice, in one allocation made by
 * the submitting thread, sized for all the request may ever need. From then on engine thread only.
 *
 *   tokens of a sequence:   prompt | output            | not drawn yet
 *                           0 ........ n_known ........ n_known + n_pending ......... len_max
 *   in the KV cache:        0 .. n_computed .. n_planned
 *
 * There are no phases: whatever lies between n_planned and n_known + n_pending is to be computed.
 * One such token is a decode, more are a prefill. Pending tokens are being drawn by a step in
 * flight; only the device knows them yet. */
#ifndef INFERD_ENGINE_SEQUENCE_H
#define INFERD_ENGINE_SEQUENCE_H

#include "engine/engine.h"
#include "engine/kv.h"

typedef struct seq_group seq_group;

typedef enum seq_state {
    SEQ_HELD,    /* a further choice: waits for the first one's prompt */
    SEQ_WAITING, /* in the waiting list, owns no block */
    SEQ_RUNNING, /* in the running list */
    SEQ_DONE     /* finished; owns blocks only while a step in flight may still write them */
} seq_state;

/* Distinct tokens of a sequence with their counts in the output: the penalties' input. */
typedef struct seen_table {
    token_seen *entry; /* [n_max]; NULL: no penalty, nothing is kept */
    int32_t *slot;     /* [mask + 1] index into entry plus 1; open addressing */
    uint32_t mask;
    int n, n_max;
} seen_table;

typedef struct sequence {
    seq_group *group;
    int choice;
    seq_state state;
    uint64_t age;  /* arrival order; smaller is older; unique */
    uint64_t rank; /* of the list it is in; smaller goes first */

    int n_known, n_pending, n_output;
    int n_computed, n_planned;
    int n_in_flight;      /* steps in flight that hold rows of it */
    int i_sample;         /* in the newest of them, of the newest pending token */
    int n_scored;         /* prompt positions 1 .. n_scored have had their EVENT_PROMPT */
    int n_scored_planned; /* or will have when what is in flight returns */

    block_id *block; /* [n_blocks], capacity for len_max tokens */
    int n_blocks;
    int n_published; /* leading blocks that went through kv_publish */
    kv_chain chain;  /* the history of those */
    int n_reserved;  /* blocks set aside for it */

    int preemptions;
    int n_pushed_out; /* preemptions not of its own reader's making: these lead to the pin */
    bool pinned;      /* all it may still need is set aside: never preempted while it can run */

    /* sched_plan's, of this step: its reader is slow; tokens to compute; rows it gets */
    bool paused;
    int todo, rows;
    int32_t *output; /* [n_output], capacity len_max - n_prompt */
    seen_table seen;
    struct sequence *prev, *next; /* waiting list */
} sequence;

struct seq_group {
    engine_request *request; /* borrowed; NULL once ENDED was emitted */
    int n_prompt, n_choices;
    int len_max;    /* tokens a sequence may reach: max_tokens, context, pool and account */
    int max_tokens; /* INT_MAX: no limit of its own */
    int deadline_class;
    uint64_t arrival; /* serial number, given by the scheduler */
    kv_chain root;
    struct sched_account *account; /* the scheduler's */
    uint64_t charged;              /* tokens, to the account, when it started */

    bool started, prompt_done;
    bool waits; /* counted among the waiting */
    int n_unfinished, n_running, n_in_flight;
    int cached_tokens, preemptions;
    int64_t admitted_ns, prefilled_ns;

    /* One array, two views, so that no token comes twice. bias[0, n_user): the request's own, the
     * forbidden tokens among them first. bias[n_user_forbidden, n_bias): the others of its own,
     * then every token that must not be drawn before min_tokens, at -INFINITY. */
    token_bias *bias;
    int n_user, n_user_forbidden, n_bias;

    const int32_t *eog; /* borrowed from the engine; none under ignore_eos */
    int n_eog;
    bool needs_host; /* penalties: a row can be planned only when the token before it is known */

    seq_group *prev, *next; /* live list, then retired list */
    sequence *seq;          /* [n_choices], in the same allocation */
};

/* What a group's size depends on. */
typedef struct seq_limits {
    int context, n_vocab, kv_blocks, block_tokens;
    const int32_t *eog; /* [n_eog] */
    int n_eog;
} seq_limits;

/* E_INVAL: a field outside engine.h's contract; E_TOO_LARGE: can never fit the pool; E_NOMEM.
 * Thread: any. */
BASE_MUST_USE status seq_group_open(engine_request *r, const seq_limits *l, seq_group **out);
void seq_group_close(seq_group *g); /* NULL is legal */

static inline int blocks_for(int n_tokens, int block_tokens) {
    return (int)(((int64_t)n_tokens + block_tokens - 1) / block_tokens);
}

static inline int32_t seq_token(const sequence *q, int i) {
    const seq_group *g = q->group;
    return i < g->n_prompt ? g->request->prompt[i] : q->output[i - g->n_prompt];
}
/* tokens [first, first + n) of q, all known. */
void seq_tokens(const sequence *q, int first, int n, int32_t *out);

/* Records a drawn token. */
void seq_append(sequence *q, int32_t token);
/* End-of-sequence, or one of the request's stop ids. */
bool seq_is_stop(const sequence *q, int32_t token);
/* The bias entries for the n-th output token (from 0). */
const token_bias *seq_bias(const sequence *q, int n_output, int *n);
/* Choice 0 keeps the request's seed. */
uint64_t seq_seed(const sequence *q);
#endif
