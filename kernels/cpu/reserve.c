/* All memory that steps will ever need: the KV pool and the workspace. */
#include <assert.h>

#include "base/checked.h"
#include "base/limits.h"
#include "kernels/cpu/backend_cpu.h"

/* Without a wish: a quarter of what is free, at most this. */
#define KV_DEFAULT_BYTES ((uint64_t)2 << 30)

static status check_limits(const backend_limits *l, error *err) {
    if (l->n_tokens_max < 1 || l->n_tokens_max > LIMIT_STEP_TOKENS || l->n_seqs_max < 1 ||
        l->n_seqs_max > LIMIT_SEQUENCES || l->n_samples_max < 1 ||
        l->n_samples_max > LIMIT_STEP_TOKENS + LIMIT_SEQUENCES || l->kv_blocks < 0)
        return error_set(err, E_INVAL,
                         "step of %d tokens, %d sequences, %d samples, %d KV blocks: "
                         "out of range",
                         l->n_tokens_max, l->n_seqs_max, l->n_samples_max, l->kv_blocks);
    return OK;
}

/* How many blocks the pool gets. available: after the weights. */
static status choose_blocks(const cpu_backend *b, const backend_limits *l, uint64_t available,
                            int *out, error *err) {
    const uint64_t block = b->kv.block_bytes;
    const int tokens = l->kv_block_tokens;
    const uint64_t per_context =
        ((uint64_t)b->m.context_length + (uint64_t)tokens - 1) / (uint64_t)tokens;
    uint64_t n = (uint64_t)l->kv_blocks;
    if (n == 0 && l->kv_memory_bytes > 0) n = l->kv_memory_bytes / block;
    if (n == 0 && l->kv_memory_bytes == 0) {
        uint64_t budget = available / 4 < KV_DEFAULT_BYTES ? available / 4 : KV_DEFAULT_BYTES;
        n = budget / block;
        /* One sequence of full length, when three quarters of the memory can hold it. */
        if (n < per_context && per_context * block <= available / 4 * 3) n = per_context;
    }
    /* More than every sequence can use is of no use (prefix reuse lives in the same blocks). */
    if (l->kv_blocks == 0 && n > per_context * (uint64_t)l->n_seqs_max)
        n = per_context * (uint64_t)l->n_seqs_max;
    uint64_t need = 0;
    if (n < 1 || n > INT32_MAX || !checked_mul_u64(n, block, &need))
        return error_set(err, E_NOMEM,
                         "KV pool: one block of %d tokens takes %llu KiB, the limit "
                         "is %zu KiB, %llu MiB are available",
                         tokens, (unsigned long long)(block >> 10), l->kv_memory_bytes >> 10,
                         (unsigned long long)(available >> 20));
    if ((l->kv_blocks > 0 && l->kv_memory_bytes > 0 && need > l->kv_memory_bytes) ||
        (available > 0 && need > available))
        return error_set(err, E_NOMEM,
                         "KV pool: %llu blocks x %llu KiB = %llu MiB, the limit is "
                         "%zu MiB (0: none), %llu MiB are available",
                         (unsigned long long)n, (unsigned long long)(block >> 10),
                         (unsigned long long)(need >> 20), l->kv_memory_bytes >> 20,
                         (unsigned long long)(available >> 20));
    *out = (int)n;
    return OK;
}

static int max_int(int a, int b) {
    return a > b ? a : b;
}

/* Lays the workspace out at the cursor; only counts when it has no memory. */
static void lay_out(cpu_backend *b, const backend_limits *l, memory_cursor *c) {
    const model_desc *m = &b->m;
    workspace *w = &b->w;
    const int n_threads = pool_n_threads(b->pool);
    const size_t rows = (size_t)l->n_tokens_max, samples = (size_t)l->n_samples_max;
    const size_t rows_any = (size_t)max_int(l->n_tokens_max, l->n_samples_max);
    w->embd_ld = pad32(m->n_embd);
    w->q_ld = pad32(m->n_heads * m->head_dim);
    w->kv_ld = pad32(m->n_kv_heads * m->head_dim);
    w->ff_ld = pad32(m->n_ff);
    w->vocab_ld = pad32(m->n_vocab);
    const size_t in_blocks = (size_t)max_int(w->embd_ld, w->q_ld) / PACK_BLOCK;
    const size_t ff_blocks = (size_t)w->ff_ld / PACK_BLOCK;

    w->x = memory_take(c, rows * (size_t)w->embd_ld, sizeof *w->x);
    w->normed = memory_take(c, rows_any * (size_t)w->embd_ld, sizeof *w->normed);
    w->q = memory_take(c, rows * (size_t)w->q_ld, sizeof *w->q);
    w->k = memory_take(c, rows * (size_t)w->kv_ld, sizeof *w->k);
    w->v = memory_take(c, rows * (size_t)w->kv_ld, sizeof *w->v);
    w->attended = memory_take(c, rows * (size_t)w->q_ld, sizeof *w->attended);
    w->h = memory_take(c, rows * (size_t)w->ff_ld, sizeof *w->h);
    w->in_q = memory_take(c, act_blocks((int)rows_any, (int)in_blocks), sizeof *w->in_q);
    w->h_q = memory_take(c, act_blocks((int)rows, (int)ff_blocks), sizeof *w->h_q);
    w->up = memory_take(
        c, (size_t)max_int(n_threads * FFN_TOKENS * FFN_BLOCKS * PACK_BLOCK, FEW_ROWS * w->ff_ld),
        sizeof *w->up);
    w->own_normed =
        memory_take(c, (size_t)(n_threads * FEW_ROWS) * (size_t)w->embd_ld, sizeof(float));
    w->own_blocks = max_int((int)in_blocks, (int)ff_blocks);
    w->own_q = memory_take(c, (size_t)n_threads * (size_t)w->own_blocks, sizeof *w->own_q);
    w->cos_sin = memory_take(c, rows * (size_t)max_int(m->n_rot, 1), sizeof *w->cos_sin);
    w->position = memory_take(c, rows, sizeof *w->position);
    w->seq = memory_take(c, rows, sizeof *w->seq);
    w->tiles = memory_take(c, rows / QUERY_TOKENS + (size_t)l->n_seqs_max + 1, sizeof *w->tiles);
    w->logits = memory_take(c, samples * (size_t)w->vocab_ld, sizeof *w->logits);
    w->results = memory_take(c, samples, sizeof *w->results);
    w->scratch = memory_take(c, (size_t)n_threads, sizeof *w->scratch);
    for (int i = 0; i < n_threads; i++) {
        sample_scratch s = {.logit = memory_take(c, (size_t)w->vocab_ld, sizeof(float)),
                            .weight = memory_take(c, (size_t)w->vocab_ld, sizeof(float)),
                            .id = memory_take(c, (size_t)w->vocab_ld, sizeof(int32_t))};
        if (w->scratch == NULL) continue;
        w->scratch[i].logit = s.logit;
        w->scratch[i].weight = s.weight;
        w->scratch[i].id = s.id;
    }
}

status cpu_reserve(backend *base, const backend_limits *want, backend_memory *got, error *err) {
    cpu_backend *b = (cpu_backend *)base;
    if (!b->loaded || b->work.base != NULL)
        return error_set(err, E_STATE, "reserve: once, after load");
    status s = check_limits(want, err);
    if (s != OK) return s;
    const dtype type = want->kv_type < 0 ? DTYPE_F32 : (dtype)want->kv_type;
    s = kv_layout_init(&b->kv, type, want->kv_block_tokens, b->m.n_layers, b->m.n_kv_heads,
                       b->m.head_dim, err);
    if (s != OK) return s;

    uint64_t total = 0, available = 0;
    memory_share(&total, &available);
    memory_cursor count = {0};
    lay_out(b, want, &count);
    if (available > 0 && count.used > available)
        return error_set(err, E_NOMEM,
                         "workspace for %d tokens and %d samples a step: %zu MiB, "
                         "%llu MiB are available",
                         want->n_tokens_max, want->n_samples_max, count.used >> 20,
                         (unsigned long long)(available >> 20));
    int n_blocks = 0;
    s = choose_blocks(b, want, available > 0 ? available - count.used : 0, &n_blocks, err);
    if (s != OK) return s;
    b->work = memory_map(count.used);
    if (b->work.base == NULL)
        return error_set(err, E_NOMEM, "workspace: %zu MiB refused", count.used >> 20);
    b->kv_pool = memory_map((size_t)n_blocks * b->kv.block_bytes);
    if (b->kv_pool.base == NULL) {
        memory_unmap(&b->work);
        return error_set(err, E_NOMEM, "KV pool: %zu MiB refused",
                         (size_t)n_blocks * b->kv.block_bytes >> 20);
    }
    memory_cursor c = {.base = b->work.base};
    lay_out(b, want, &c);
    assert(c.used == count.used);
    b->kv_blocks = n_blocks;
    b->limits = *want;
    *got = (backend_memory){.weights_bytes = b->weights.bytes,
                            .kv_bytes = (uint64_t)n_blocks * b->kv.block_bytes,
                            .workspace_bytes = count.used,
                            .total_bytes = total,
                            .free_bytes = available,
                            .kv_blocks = n_blocks,
                            .kv_type = type};
    return OK;
}
