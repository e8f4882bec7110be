/* Start and end of an engine: every array a step may need is sized and taken here. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/engine_private.h"

enum { SEQUENCES_DEFAULT = 64, STEP_TOKENS_DEFAULT = 2048, QUEUE_DEFAULT = 1024, SCORE_ROWS = 16 };
#define QUEUE_TOKENS_DEFAULT UINT64_C(1048576)

static status check_options(engine_options *o, error *err) {
    if (o->max_sequences == 0) o->max_sequences = SEQUENCES_DEFAULT;
    if (o->max_step_tokens == 0) o->max_step_tokens = STEP_TOKENS_DEFAULT;
    if (o->kv_block_tokens == 0) o->kv_block_tokens = LIMIT_KV_BLOCK_TOKENS;
    if (o->queue_max_requests == 0) o->queue_max_requests = QUEUE_DEFAULT;
    if (o->queue_max_tokens == 0) o->queue_max_tokens = QUEUE_TOKENS_DEFAULT;
    if (o->max_sequences < 1 || o->max_sequences > LIMIT_SEQUENCES)
        return error_set(err, E_INVAL, "engine: max_sequences %d is not in 1..%d", o->max_sequences,
                         LIMIT_SEQUENCES);
    if (o->max_step_tokens < 1 || o->max_step_tokens > LIMIT_STEP_TOKENS)
        return error_set(err, E_INVAL, "engine: max_step_tokens %d is not in 1..%d",
                         o->max_step_tokens, LIMIT_STEP_TOKENS);
    if (o->kv_block_tokens != 16 && o->kv_block_tokens != 32 && o->kv_block_tokens != 64)
        return error_set(err, E_INVAL, "engine: kv_block_tokens %d is not 16, 32 or 64",
                         o->kv_block_tokens);
    if (o->kv_blocks < 0 || o->queue_max_requests < 0 || o->n_eog_ids < 0)
        return error_set(err, E_INVAL, "engine: a count is negative");
    if (o->max_step_tokens < o->max_sequences + LIMIT_PREFILL_CHUNK_MIN)
        o->max_step_tokens = o->max_sequences + LIMIT_PREFILL_CHUNK_MIN;
    return OK;
}

static int min_i64(int64_t a, int64_t b) {
    return (int)(a < b ? a : b);
}
static int max_int(int a, int b) {
    return a > b ? a : b;
}

/* n sequences' worth, but not more than limit, and never less than one sequence's. */
static int sized(int n_seqs, int each, int limit) {
    return max_int(each, min_i64((int64_t)n_seqs * each, limit));
}

static backend_limits step_capacity(const engine_options *o, const model_desc *d) {
    const int n = o->max_sequences;
    const int seen = d->context_length < d->n_vocab ? d->context_length : d->n_vocab;
    return (backend_limits){
        .n_tokens_max = o->max_step_tokens,
        .n_seqs_max = n,
        .n_samples_max = max_int(n + SCORE_ROWS, SEQUENCES_DEFAULT),
        .n_blocks_max =
            sized(n, blocks_for(d->context_length, o->kv_block_tokens), LIMIT_STEP_BLOCKS),
        .n_bias_max =
            sized(n, LIMIT_LOGIT_BIAS + LIMIT_STOP_TOKEN_IDS + o->n_eog_ids, LIMIT_STEP_BIAS),
        .n_seen_max = sized(n, seen, LIMIT_STEP_SEEN),
        .n_copies_max = n,
        .kv_block_tokens = o->kv_block_tokens,
        .kv_blocks = o->kv_blocks,
        .kv_memory_bytes = o->kv_memory_bytes,
        .kv_type = o->kv_type};
}

static status copy_eog(engine *e, error *err) {
    const size_t n = (size_t)e->options.n_eog_ids;
    e->eog = calloc(n + 1, sizeof *e->eog);
    if (e->eog == NULL) return error_set(err, E_NOMEM, "engine: %zu stop tokens", n);
    if (n > 0) memcpy(e->eog, e->options.eog_ids, n * sizeof *e->eog);
    e->options.eog_ids = e->eog;
    return OK;
}

static status open_plans(engine *e, const backend_limits *cap, error *err) {
    status s = OK;
    for (int i = 0; i < e->depth && s == OK; i++) s = plan_init(&e->plan[i], cap);
    e->result = calloc((size_t)cap->n_samples_max, sizeof *e->result);
    if (s != OK || e->result == NULL)
        return error_set(err, E_NOMEM, "engine: no memory for steps of %d tokens, %d sequences",
                         cap->n_tokens_max, cap->n_seqs_max);
    return OK;
}

static status open_pool(engine *e, const model_desc *d, error *err) {
    uint64_t key[2];
    random_bytes(key, sizeof key);
    e->limits = (seq_limits){.context = d->context_length,
                             .n_vocab = d->n_vocab,
                             .kv_blocks = e->memory.kv_blocks,
                             .block_tokens = e->options.kv_block_tokens,
                             .eog = e->eog,
                             .n_eog = e->options.n_eog_ids};
    status s = kv_pool_init(&e->kv, e->memory.kv_blocks, e->options.kv_block_tokens, key,
                            e->options.prefix_cache);
    if (s == OK)
        s = sched_init(&e->sched, &e->kv, e->options.max_sequences, e->options.max_step_tokens);
    if (s == OK)
        s = submit_init(&e->submit, e->options.queue_max_requests, e->options.queue_max_tokens);
    if (s != OK)
        return error_set(err, s, "engine: no memory to keep account of %d KV blocks",
                         e->memory.kv_blocks);
    e->submit_open = true;
    return OK;
}

void engine_free(engine *e) {
    if (e->submit_open) submit_deinit(&e->submit);
    sched_deinit(&e->sched);
    kv_pool_deinit(&e->kv);
    for (int i = 0; i < ENGINE_DEPTH_MAX; i++) plan_deinit(&e->plan[i]);
    free(e->result);
    free(e->eog);
    e->backend->ops->close(e->backend);
    free(e);
}

status engine_open(backend *b, const model_desc *desc, const engine_options *o,
                   backend_progress *progress, void *ctx, engine **out, error *err) {
    engine *e = calloc(1, sizeof *e);
    if (e == NULL) {
        b->ops->close(b);
        return error_set(err, E_NOMEM, "engine: no memory");
    }
    e->backend = b;
    e->n_layers = desc->n_layers;
    e->context = desc->context_length;
    e->depth =
        b->ops->pipeline_depth < ENGINE_DEPTH_MAX ? b->ops->pipeline_depth : ENGINE_DEPTH_MAX;
    e->options = *o;
    e->now = o->now != NULL ? o->now : clock_now_ns;

    status s = check_options(&e->options, err);
    if (s != OK) goto fail;
    s = copy_eog(e, err);
    if (s != OK) goto fail;
    s = b->ops->load(b, desc, progress, ctx, err);
    if (s != OK) goto fail;
    const backend_limits cap = step_capacity(&e->options, desc);
    s = b->ops->reserve(b, &cap, &e->memory, err);
    if (s != OK) goto fail;
    s = open_plans(e, &cap, err);
    if (s != OK) goto fail;
    s = open_pool(e, desc, err);
    if (s != OK) goto fail;
    stats_alive(e, e->now(), false);
    stats_publish(e);
    *out = e;
    return OK;

fail: /* engine_free undoes whatever was done: all of it was zero before */
    engine_free(e);
    return s;
}

const backend_memory *engine_memory(const engine *e) {
    return &e->memory;
}
int engine_context_length(const engine *e) {
    return e->context;
}
