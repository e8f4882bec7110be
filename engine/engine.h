/* The engine: one thread that owns the scheduler, the KV pool and the backend, and turns submitted
 * requests into tokens by continuous batching. It knows token ids only; text (tokenizer, stop
 * strings) is the server's. Threads: open, start, close: main. submit, wake, stats: any. Callbacks:
 * on the engine thread, must not block. */
#ifndef INFERD_ENGINE_ENGINE_H
#define INFERD_ENGINE_ENGINE_H

#include <stdatomic.h>

#include "engine/weights.h"
#include "kernels/backend.h"

typedef struct engine engine;
typedef struct engine_request engine_request;

/* Values of inferd.v1.FinishReason. */
typedef enum finish_reason {
    FINISH_NONE = 0,
    FINISH_STOP_TOKEN = 1,
    FINISH_STOP_STRING = 2,
    FINISH_MAX_TOKENS = 3,
    FINISH_CONTEXT_FULL = 4,
    FINISH_TIME_LIMIT = 5,
    FINISH_ABORTED = 6
} finish_reason;

typedef enum request_phase { PHASE_WAITING, PHASE_PREFILL, PHASE_DECODE } request_phase;

/* Why the terminal event came. */
typedef enum engine_end {
    END_FINISHED,   /* every choice has had its FINISHED event (also ABORTED, TIME_LIMIT) */
    END_CANCELLED,  /* stop had STOP_CANCEL */
    END_DEADLINE,   /* the deadline passed; event.phase says where */
    END_NOT_FINITE, /* a logits row was not finite: this request only */
    END_INTERNAL,   /* this request met a broken invariant or out of host memory */
    END_DRAINING,   /* ended by engine_stop_all */
    END_DEVICE      /* device fault: the process is about to exit */
} engine_end;

enum { STOP_CANCEL = 1, STOP_ABORT = 2 }; /* bits of engine_request.stop */

typedef struct engine_event {
    enum {
        EVENT_STARTED, /* once, at first admission: cached_tokens; for Abort while waiting it comes
                          just before the end */
        EVENT_PROMPT,  /* prompt log-probability of prompt position i_prompt (ascending, from 1: the
                          first token has none), in `sampled`; before the first EVENT_TOKEN */
        EVENT_TOKEN,   /* choice drew a token */
        EVENT_FINISHED, /* choice ended: reason (and token for STOP_TOKEN: the token itself came as
                           EVENT_TOKEN before) */
        EVENT_ENDED     /* exactly once, last; afterwards the engine does not touch the request */
    } kind;
    int choice;
    int i_prompt;
    const sampled *sampled; /* borrowed for the call */
    finish_reason reason;
    engine_end end;
    request_phase phase;
    int cached_tokens;
    int preemptions;
    int64_t admitted_ns, prefilled_ns; /* ENDED: CLOCK_MONOTONIC, 0 if it never got there */
} engine_event;

/* One request. Filled and owned by the caller; borrowed by the engine from a successful submit
 * until EVENT_ENDED returns. Everything above `stop` is constant meanwhile. */
struct engine_request {
    const int32_t *prompt; /* [n_prompt] ids, each < n_vocab; 1 <= n_prompt < context */
    int n_prompt;
    int max_tokens; /* 0: until the context (or engine limit) is full */
    int min_tokens; /* before it end-of-sequence and stop ids are not drawn */
    int n_choices;  /* 1..LIMIT_CHOICES */
    int priority;   /* higher first among the waiting of its account */
    float temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
    int top_k;
    uint64_t
        seed; /* choice c draws with a seed derived from (seed, c); choice 0 uses it unchanged */
    const token_bias *bias; /* [n_bias] distinct tokens */
    int n_bias;
    const int32_t *stop_ids; /* [n_stop_ids] */
    int n_stop_ids;
    bool ignore_eos, logprobs, prompt_logprobs;
    int n_top;
    int64_t deadline_ns;   /* CLOCK_MONOTONIC; TIME_NEVER */
    int64_t time_limit_ns; /* absolute; ends with what there is, reason TIME_LIMIT; TIME_NEVER */
    char cache_salt[LIMIT_CACHE_SALT_BYTES];
    int cache_salt_bytes;
    uint64_t tenant; /* 0: none; prefix-cache entries are shared only within a tenant */
    int account;     /* 0: nobody's; 1..LIMIT_ACCOUNTS: whose this is. Accounts take fair turns by
                        tokens. Requests of one tenant name the same: blocks shared count once */
    int account_blocks_max; /* blocks the account's sequences may hold together, as of its latest
                               request; 0: no bound */
    void (*on_event)(void *ctx, const engine_event *e);
    void *ctx;

    _Atomic unsigned stop; /* set by any thread, then engine_wake(): STOP_* bits */
    _Atomic unsigned
        choices_done; /* bit c: the server matched a stop string in choice c; the engine drops it at
                       * the next step boundary and emits FINISHED with STOP_STRING */
    _Atomic bool
        paused; /* the reader is slow: the engine leaves the request out of steps while set */

    struct { /* engine's own; zero before submit */
        int64_t arrival_ns;
        void *sequences;
        struct engine_request *next;
    } priv;
};

/* After each step, on the engine thread. n_seqs is 0 when no step ran but events were emitted
 * between two (cancelled, expired, drained). */
typedef struct step_report {
    int n_seqs, n_decode_tokens, n_prefill_tokens, n_samples;
    int64_t step_ns; /* begin to results */
} step_report;

typedef struct engine_options {
    int max_sequences;      /* 0: 64; at most LIMIT_SEQUENCES */
    int max_step_tokens;    /* 0: 2048; raised to max_sequences + LIMIT_PREFILL_CHUNK_MIN */
    int kv_blocks;          /* 0: from memory */
    size_t kv_memory_bytes; /* 0: backend's default */
    int kv_block_tokens;    /* 16, 32, 64; 0: LIMIT_KV_BLOCK_TOKENS */
    int kv_type;            /* dtype or -1 */
    bool prefix_cache;
    int queue_max_requests;    /* waiting requests; 0: 1024 */
    uint64_t queue_max_tokens; /* waiting prompt tokens; 0: 1048576. One prompt larger than this is
                                  taken when no other waits */
    const int32_t *eog_ids;    /* [n_eog_ids] copied */
    int n_eog_ids;
    void (*on_step)(void *ctx,
                    const step_report *r); /* may be NULL; also the place to wake readers in bulk */
    void *on_step_ctx;
    int64_t (*now)(void); /* NULL: clock_now_ns */
} engine_options;

/* Live numbers, all relaxed atomics inside; a snapshot is not a consistent cut. */
typedef struct engine_stats {
    uint32_t running, waiting; /* requests */
    uint64_t waiting_tokens;   /* prompt tokens of the waiting */
    uint32_t kv_blocks_total, kv_blocks_free,
        kv_blocks_cached; /* cached are reusable and counted free */
    uint64_t steps, prompt_tokens, generated_tokens, cached_prompt_tokens, preemptions,
        stalled_steps;
    uint64_t finished, cancelled, failed; /* requests by end */
    int64_t last_step_ns;                 /* CLOCK_MONOTONIC end of the last step, 0: none yet */
    int64_t heartbeat_ns; /* written by the engine thread at least every second when idle, each step
                             when busy */
    bool busy;            /* has work that should make progress */
    bool device_fault;
    double tokens_per_s; /* smoothed output rate, for push-back */
} engine_stats;

/* Takes b (closed by engine_close, also on failure); borrows desc until load is done, then copies
 * what it needs. Loads weights, reserves memory. Progress as backend_progress. */
BASE_MUST_USE status engine_open(backend *b, const model_desc *desc, const engine_options *o,
                                 backend_progress *progress, void *ctx, engine **out, error *err);
const backend_memory *engine_memory(const engine *e);
int engine_context_length(const engine *e);

/* Starts the engine thread. */
BASE_MUST_USE status engine_start(engine *e, error *err);

/* E_FULL: queue_max_requests or queue_max_tokens; E_TOO_LARGE: prompt + max_tokens (or one block)
 * exceeds the whole KV pool or account_blocks_max; E_STATE: stopping; E_DEVICE: after a fault;
 * E_INTERNAL: out of host memory for this request; E_INVAL: a field outside the contract above
 * (token id, count, range). On any of these the request is untouched and stays the caller's. */
BASE_MUST_USE status engine_submit(engine *e, engine_request *r);
/* After setting stop, choices_done, or clearing paused. Cheap. */
void engine_wake(engine *e);
/* Ends every live request with END_DRAINING at the next step boundary. */
void engine_stop_all(engine *e);
void engine_read_stats(const engine *e, engine_stats *out);

/* Ends every live request with END_DRAINING and waits for the engine thread: no callback comes
 * after it. Submits get E_STATE; wake and stats stay legal. main; NULL and a second call are. */
void engine_stop(engine *e);
/* engine_stop, then closes the backend. NULL is legal. */
void engine_close(engine *e);
#endif
