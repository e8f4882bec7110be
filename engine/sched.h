/* The scheduler: a pure state machine over sequences. Time comes in as an argument, results as an
 * array, requests as groups; out come plans and events. No device, clock, lock or malloc, so it
 * runs as it is in simulation.
 *
 *   add -> WAITING --admit--> RUNNING --commit--> DONE -> retired (the owner frees the group)
 *             ^---- preempt ----'
 *
 * Invariants
 *  1. Waiting order within an account (a tenant): priority, then preempted before new, then
 *     deadline class, then arrival. Between accounts: preempted before new, then the one that has
 *     had the fewest tokens, then arrival.
 *  2. Running order: the oldest of all, then priority (of those without an account: else one
 *     tenant could push out the others), then arrival. Blocks are given in that order; a sequence
 *     may only push out later ones. The oldest never yields.
 *  3. A sequence without a row's block keeps what it has and sits the step out.
 *  4. After LIMIT_PREEMPTIONS_BEFORE_PIN preemptions it comes back only when all it may still need
 *     can be set aside, and then runs to its end.
 *  5. A request whose reader is slow (paused) gets no rows, and yields its place and blocks to
 *     whoever needs them; meanwhile it takes no place in the queue either.
 *  6. Nothing of a sequence with rows in flight is given away.
 *  7. While a sequence with penalties waits for a result nothing is planned ahead.
 *  8. Blocks are published to the prefix cache only after a finite logits row has attended to them.
 *  9. The sequences of an account (a tenant) hold no more blocks than its bound, unless the bound
 *     was lowered and one of them holds all. What one lacks it takes from its own, by the order
 *     of 2. Others pass by those who wait for their account.
 * 10. Who cannot meet its deadline any more does not take the place of another who waits.
 *
 * Thread: engine. Callbacks (on_event) run inside these functions. */
#ifndef INFERD_ENGINE_SCHED_H
#define INFERD_ENGINE_SCHED_H

#include "engine/plan.h"

typedef struct sched_counters {
    uint64_t prompt_tokens, generated_tokens, cached_prompt_tokens, preemptions;
    uint64_t finished, cancelled, failed;
} sched_counters;

/* What the requests of one account hold. */
typedef struct sched_account {
    int n_blocks_max; /* as its latest request said; 0: no bound */
    int n_blocks;     /* in tables of its sequences; one that several of them share counts once */
    int n_reserved;   /* set aside for its pinned sequences */
    int n_running;    /* its running sequences */
    sequence *first, *last;            /* its waiting sequences, by rank */
    struct sched_account *prev, *next; /* accounts with waiting ones; NULL at the ends */
    uint64_t served; /* tokens of prompt and output, as if it had always had its part: fair turns */
    const sequence *refused; /* the waiting one that did not fit, when no more was left than */
    int refused_spare;
    uint64_t passed_by; /* the admission round in which one of it did not fit: no other gets in */
} sched_account;

typedef struct sched {
    kv_pool *kv; /* borrowed */
    int max_sequences, max_step_tokens;

    sequence **running; /* owned [max_sequences], in running order when sorted */
    int n_running;
    bool sorted;
    sched_account *waiting; /* the first of those with waiting sequences */
    uint64_t now_serving;   /* `served`, of the account that was let in last, before it was */
    seq_group live;         /* list head: not ended */
    seq_group retired;      /* list head: ended and nothing in flight; the owner frees them */
    uint64_t n_arrived;

    sched_account *account;  /* owned [LIMIT_ACCOUNTS + 1]; 0 is everybody's without one */
    uint64_t n_admissions;   /* rounds of sched_admit */
    int n_reserved;          /* blocks set aside for pinned sequences */
    const sequence *refused; /* the waiting one that did not fit, when no more was free than */
    int refused_spare;
    int i_first_decode; /* where the next step's decodes start, when not all fitted the last */

    int64_t next_check_ns; /* earliest deadline or time limit of the live */
    int64_t prefill_ns;    /* measured, a token; 0: not yet */
    int64_t decode_ns;     /* measured, a step without prefill; 0: not yet */
    int64_t step_ns;       /* measured, a step that decodes, with or without prefill; 0: not yet */
    int output_16;         /* sixteenths of a token: outputs of late */

    int n_live, n_groups_waiting;
    uint64_t waiting_tokens;
    int n_events; /* emitted since the owner last set it to 0 */
    sched_counters counters;
} sched;

/* Takes no ownership of kv. E_NOMEM. */
BASE_MUST_USE status sched_init(sched *s, kv_pool *kv, int max_sequences, int max_step_tokens);
/* Everything must have ended and been freed. */
void sched_deinit(sched *s);

/* Takes g: it is on the retired list when its time is over. */
void sched_add(sched *s, seq_group *g);

/* Ends what was stopped, has expired, or whose text side is done. Cheap enough for once a step, but
 * only needed when something was flagged or next_check_ns has come. */
void sched_sweep(sched *s, int64_t now_ns);

/* Plans the next step while n_in_flight older ones are unread. Returns its number of sequences; 0:
 * nothing can be planned now. */
int sched_plan(sched *s, plan *p, int n_in_flight, int64_t now_ns);

/* Takes the results of the oldest plan in flight; result[p->step.n_samples]. step_ns: what it cost.
 */
void sched_commit(sched *s, plan *p, const sampled *result, int64_t step_ns, int64_t now_ns);

/* Ends every live request. */
void sched_end_all(sched *s, engine_end end);

/* A group that has been retired, or NULL. */
seq_group *sched_take_retired(sched *s);

/* True: some request is neither paused nor waiting for a step in flight. */
bool sched_has_work(const sched *s);

/* Shared by the scheduler's files. */
bool seq_paused(const sequence *q);
void sched_start(sched *s, sequence *q, int64_t now_ns);
void sched_preempt(sched *s, sequence *q, bool own_fault);
void sched_release(sched *s, sequence *q);
void sched_emit(sched *s, seq_group *g, const engine_event *event);
void sched_finish(sched *s, sequence *q, finish_reason reason);
void sched_end(sched *s, seq_group *g, engine_end end);
void sched_unlink_done(sched *s, seq_group *g);
void sched_enqueue(sched *s, sequence *q);
void sched_dequeue(sched *s, sequence *q);
/* The first in waiting order whose account was not passed by in this round; NULL: none. */
sequence *sched_next_waiting(const sched *s);
/* What g will take of its account's turn, from when it starts; at its end what it took. */
void sched_charge(sched *s, seq_group *g);
void sched_settle(seq_group *g);
/* A sequence has come to its end of itself after n_output tokens. */
void sched_note_output(sched *s, int n_output);
/* Its deadline comes before its end would, by what outputs and steps were of late. */
bool sched_hopeless(const sched *s, const sequence *q, int64_t now_ns);
/* Blocks come and go here only, so that reservations and accounts stay exact. */
block_id sched_take_block(sched *s, sequence *q);
void sched_share_block(sched *s, sequence *q, block_id id);
void sched_give_block(sched *s, sequence *q, block_id id);
void sched_reserve(sched *s, sequence *q, int n_blocks); /* beside what it holds */
/* Blocks that q, running, may take before its account is full. INT_MAX: no bound. */
int sched_account_left(const sequence *q);
/* Blocks that running sequences need for what they know already; of account a, or of all (NULL). */
int sched_outstanding(const sched *s, const sched_account *a);
/* The part of sched_plan that moves waiting sequences to running. */
void sched_admit(sched *s, int64_t now_ns);
#endif
