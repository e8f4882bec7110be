/* All memory that steps will need, taken once: pinned host slots, device step buffers, activations,
 * logits, scratch, and from what is left the KV pool. The arithmetic is in every refusal. */
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"

namespace {

enum {
    PAD = 32,              /* a graph's bucket is less than this above the step it runs */
    KV_TOKENS_LEAST = 2048 /* a pool for fewer (or the context) is refused */
};
const size_t W16_BYTES_MAX = (size_t)256 << 20, DEVICE_MARGIN = (size_t)512 << 20;

struct capacities {
    size_t rows, seqs, samples, blocks, bias, seen, copies, plan, sampler_plan;
};

/* Walks a region: counts bytes when base is NULL, else hands out 256-byte aligned pieces. */
struct region {
    uint8_t *base;
    size_t used;
    template <class T> void give(T **p, size_t n) {
        if (base != nullptr) *p = (T *)(base + used);
        used += (n * sizeof(T) + 255) / 256 * 256;
    }
    void give_bytes(void **p, size_t n) { give((uint8_t **)p, n); }
};

void walk_step(region *r, step_buffers *s, const capacities &c) {
    r->give(&s->token, c.rows);
    r->give(&s->seq_start, c.seqs + 1);
    r->give(&s->kv_len, c.seqs);
    r->give(&s->block_start, c.seqs + 1);
    r->give(&s->block, c.blocks);
    r->give(&s->sample_rows, c.samples);
    r->give(&s->sample, c.samples);
    r->give(&s->bias, c.bias);
    r->give(&s->seen, c.seen);
    r->give(&s->copies, c.copies);
    r->give_bytes(&s->attention_plan, c.plan);
    r->give_bytes(&s->sampler_plan, c.sampler_plan);
}

void walk_device(region *r, cuda_backend *b, const capacities &c) {
    const cuda_shape *s = &b->shape;
    const size_t glu_rows = c.rows < GLU_ROWS_MAX ? c.rows : GLU_ROWS_MAX;
    walk_step(r, &b->dev, c);
    r->give(&b->dev.row_seq, c.rows);
    r->give(&b->dev.row_pos, c.rows);
    r->give(&b->dev.rope, c.rows * (size_t)(s->n_rot / 2));
    r->give(&b->x, c.rows * (size_t)s->n_embd);
    r->give(&b->x_half, c.rows * (size_t)s->n_embd);
    r->give(&b->xn, c.rows * (size_t)s->n_embd);
    r->give(&b->head_x, c.samples * (size_t)s->n_embd);
    r->give(&b->qkv, c.rows * (size_t)s->n_qkv_out);
    r->give((float **)&b->q, c.rows * (size_t)(s->n_heads * s->head_dim));
    r->give(&b->att, c.rows * (size_t)(s->n_heads * s->head_dim));
    r->give((float **)&b->gate_up, glu_rows * 2 * (size_t)s->n_ff);
    r->give(&b->xn_att, WGMMA_ROWS_MAX * (size_t)(s->n_heads * s->head_dim));
    r->give(&b->act, c.rows * (size_t)s->n_ff);
    r->give(&b->logits, c.samples * (size_t)b->logits_stride);
    r->give(&b->previous, c.samples);
    r->give(&b->sampled_dev, c.samples);
    r->give(&b->w16, b->lt != nullptr ? b->w16_halves : 0);
    r->give_bytes((void **)&b->wgmma_partial, wgmma_partial_bytes(b->n_sms));
    r->give(&b->wgmma_flags, (size_t)b->n_sms + 1);
    r->give_bytes(&b->attn_work, attention_workspace_bytes(&b->attn));
    r->give_bytes(&b->sampler_work, sampler_workspace_bytes(&b->sampler_state));
}

void walk_slots(region *r, cuda_backend *b, const capacities &c) {
    for (int i = 0; i < SLOTS; i++) {
        walk_step(r, &b->slot[i].host, c);
        r->give(&b->slot[i].ids, c.samples);
        r->give(&b->slot[i].details, c.samples);
    }
}

size_t plain_halves(const cuda_matrix *m) {
    return (size_t)m->n_tiles * TILE_ROWS * (size_t)m->n_in;
}

/* The layer's matrices that a resident half copy is worth for. */
int layer_matrices(cuda_layer *y, cuda_matrix **out) {
    int n = 0;
    for (int i = 0; i < y->n_qkv; i++) out[n++] = &y->qkv[i];
    for (int i = 0; i < y->n_gate_up; i++) out[n++] = &y->gate_up[i];
    out[n++] = &y->o;
    out[n++] = &y->down;
    return n;
}

/* Halves that the largest matrix needs, and all layers together. */
void plain_sizes(cuda_backend *b, size_t *largest, size_t *total) {
    *largest = *total = plain_halves(&b->head);
    for (int i = 0; i < b->shape.n_layers; i++) {
        cuda_matrix *m[7];
        const int n = layer_matrices(&b->layers[i], m);
        for (int j = 0; j < n; j++) {
            const size_t h = plain_halves(m[j]);
            *total += h;
            *largest = h > *largest ? h : *largest;
        }
    }
}

status make_plain_copy(cuda_backend *b, cuda_matrix *m) {
    const status s = cuda_take(b, plain_halves(m) * 2, (void **)&m->plain);
    return s == OK ? cuda_expand(m, m->plain, b->stream) : s;
}

/* A half copy of every matrix for cuBLASLt, when it takes less than a third of what is free.
 */
status make_plain(cuda_backend *b, size_t total, size_t free_bytes, size_t *bytes) {
    *bytes = 0;
    if (b->lt == nullptr || b->options.deterministic || total * 2 > free_bytes / 3) return OK;
    status s = make_plain_copy(b, &b->head);
    for (int i = 0; i < b->shape.n_layers; i++) {
        cuda_matrix *m[7];
        const int n = layer_matrices(&b->layers[i], m);
        for (int j = 0; j < n && s == OK; j++) s = make_plain_copy(b, m[j]);
    }
    if (s != OK) return s;
    *bytes = total * 2;
    return OK;
}

bool layer_fits(const cuda_backend *b, const cuda_layer *y, int rows) {
    const gemv_output qkv = b->fused_rope ? GEMV_ROPE : GEMV_STORE;
    bool fits = y->n_gate_up == 1 && gemv_fits(&y->gate_up[0], GEMV_GLU, rows, b->n_sms) &&
                gemv_fits(&y->o, GEMV_RESIDUAL, rows, b->n_sms) &&
                gemv_fits(&y->down, GEMV_RESIDUAL, rows, b->n_sms);
    for (int i = 0; i < y->n_qkv; i++) fits = fits && gemv_fits(&y->qkv[i], qkv, rows, b->n_sms);
    return fits;
}

/* How many rows the matrix-vector kernels take: every layer and the head must fit. */
void choose_fused(cuda_backend *b) {
    const dtype t = b->attn.kv.type;
    b->fused_rope = (t == DTYPE_F16 || t == DTYPE_BF16) && b->layers[0].q_norm == nullptr &&
                    b->layers[0].k_norm == nullptr;
    b->fused_rows = 0;
    if (b->sm != 90 || b->options.deterministic) return;
    for (int rows = FUSED_ROWS_MAX; rows > 0 && b->fused_rows == 0; rows--) {
        bool fits = gemv_fits(&b->head, GEMV_STORE, rows, b->n_sms);
        for (int i = 0; i < b->shape.n_layers && fits; i++) {
            fits = layer_fits(b, &b->layers[i], rows);
        }
        if (fits) b->fused_rows = rows;
    }
}

/* Whether steps of 9..128 rows can take the wgmma kernels: every layer matrix must be built for
 * them, as activations come in their own order. */
void choose_wgmma(cuda_backend *b) {
    b->wgmma = b->head_wgmma = false;
    if (b->sm != 90 || b->options.deterministic) return;
    bool fits = true;
    for (int i = 0; i < b->shape.n_layers && fits; i++) {
        const cuda_layer *y = &b->layers[i];
        fits = y->n_gate_up == 1 && wgmma_fits(&y->gate_up[0]) && wgmma_fits(&y->o) &&
               wgmma_fits(&y->down);
        for (int j = 0; j < y->n_qkv; j++) fits = fits && wgmma_fits(&y->qkv[j]);
    }
    b->wgmma = fits;
    b->head_wgmma = wgmma_fits(&b->head);
}

status check_limits(const cuda_backend *b, const backend_limits *w, capacities *c, error *err) {
    if (w->n_tokens_max < 1 || w->n_tokens_max > LIMIT_STEP_TOKENS || w->n_seqs_max < 1 ||
        w->n_seqs_max > LIMIT_SEQUENCES || w->n_samples_max < w->n_seqs_max || w->n_bias_max < 0 ||
        w->n_seen_max < 0 || w->n_copies_max < 0 || w->kv_blocks < 0 || w->n_blocks_max < 0) {
        return error_set(err, E_INVAL,
                         "cuda: limits out of range: tokens %d, sequences %d, samples %d",
                         w->n_tokens_max, w->n_seqs_max, w->n_samples_max);
    }
    memset(c, 0, sizeof *c);
    const size_t a_seq = ((size_t)b->shape.context_length + (size_t)w->kv_block_tokens - 1) /
                         (size_t)w->kv_block_tokens;
    const size_t columns = WGMMA_ROWS_MAX; /* activation buffers hold whole column groups */
    c->rows = (size_t)lt_rows(w->n_tokens_max + PAD);
    if (c->rows < columns) c->rows = columns;
    c->seqs = (size_t)w->n_seqs_max + PAD;
    c->samples = (size_t)lt_rows(w->n_samples_max + PAD);
    if (c->samples < columns) c->samples = columns;
    c->blocks =
        (w->n_blocks_max > 0 ? (size_t)w->n_blocks_max : (size_t)w->n_seqs_max * a_seq) + PAD;
    if (c->blocks > LIMIT_STEP_BLOCKS + PAD) c->blocks = LIMIT_STEP_BLOCKS + PAD;
    c->bias = (size_t)w->n_bias_max;
    c->seen = (size_t)w->n_seen_max;
    c->copies = (size_t)(w->n_copies_max > 0 ? w->n_copies_max : w->n_seqs_max);
    c->plan = attention_plan_bytes(&b->attn);
    c->sampler_plan = sampler_plan_bytes(&b->sampler_state);
    return OK;
}

/* Blocks of the pool from what is free; 0 when even the least does not fit. */
int pool_blocks(const cuda_backend *b, const backend_limits *w, size_t a_block, size_t have,
                int *least) {
    const size_t bt = (size_t)w->kv_block_tokens;
    const size_t a_seq = ((size_t)b->shape.context_length + bt - 1) / bt;
    const size_t few = ((size_t)KV_TOKENS_LEAST + bt - 1) / bt;
    *least = w->kv_blocks > 0 ? w->kv_blocks : (int)(a_seq < few ? a_seq : few);
    size_t n = have / a_block;
    if (w->kv_memory_bytes > 0 && w->kv_memory_bytes / a_block < n)
        n = w->kv_memory_bytes / a_block;
    if (n < (size_t)*least + 1) return 0;
    n -= 1; /* the block of padding rows */
    if (w->kv_blocks > 0) n = (size_t)w->kv_blocks;
    const size_t all = a_seq * (size_t)w->n_seqs_max;
    if (w->kv_blocks == 0 && n > all) n = all;
    return n > (size_t)INT32_MAX ? INT32_MAX : (int)n;
}

status take_pool(cuda_backend *b, const backend_limits *w, size_t work, size_t plain,
                 backend_memory *got, error *err) {
    const size_t a_block = b->attn.kv.block_bytes * (size_t)b->shape.n_layers;
    size_t free_bytes = 0, total = 0;
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) return cuda_keep(b, E_DEVICE);
    const size_t have = free_bytes > DEVICE_MARGIN ? free_bytes - DEVICE_MARGIN : 0;
    int least = 0;
    const int n = pool_blocks(b, w, a_block, have, &least);
    if (n == 0) {
        return error_set(err, E_NOMEM,
                         "cuda: device memory: weights %zu MiB + workspace %zu MiB + KV at least "
                         "%zu MiB (%d blocks) = need %zu MiB; have %zu MiB%s",
                         (size_t)b->weights_bytes >> 20, (work + plain) >> 20,
                         ((size_t)least + 1) * a_block >> 20, least,
                         (((size_t)least + 1) * a_block + work + plain + b->weights_bytes) >> 20,
                         (have + work + plain + b->weights_bytes) >> 20,
                         w->kv_memory_bytes > 0 ? " (or engine.kv_memory_bytes is too small)" : "");
    }
    const size_t bytes = ((size_t)n + 1) * a_block;
    if (cuda_take(b, bytes, (void **)&b->kv) != OK) {
        return error_set(err, E_NOMEM, "cuda: KV pool: need %zu MiB, have %zu MiB", bytes >> 20,
                         have >> 20);
    }
    /* attention multiplies masked values by zero: they must be finite */
    if (cudaMemsetAsync(b->kv, 0, bytes, b->stream) != cudaSuccess) return cuda_keep(b, E_DEVICE);
    b->kv_blocks = n;
    got->kv_blocks = n;
    got->kv_bytes = bytes;
    got->kv_type = b->attn.kv.type;
    return OK;
}

status take_workspace(cuda_backend *b, const capacities &c, size_t *bytes, error *err) {
    region count = {nullptr, 0}, host = {nullptr, 0};
    walk_device(&count, b, c);
    walk_slots(&host, b, c);
    *bytes = count.used + (b->lt != nullptr ? lt_workspace_bytes() : 0);
    void *lt_work = nullptr;
    region r = {nullptr, 0};
    if (cuda_take(b, count.used, (void **)&r.base) != OK ||
        (b->lt != nullptr && cuda_take(b, lt_workspace_bytes(), &lt_work) != OK)) {
        size_t free_bytes = 0, total = 0;
        (void)cudaMemGetInfo(&free_bytes, &total);
        return error_set(err, E_NOMEM,
                         "cuda: device memory: weights %zu MiB + workspace %zu MiB = need %zu MiB; "
                         "have %zu MiB free beside the weights",
                         (size_t)b->weights_bytes >> 20, *bytes >> 20,
                         ((size_t)b->weights_bytes + *bytes) >> 20, free_bytes >> 20);
    }
    walk_device(&r, b, c);
    if (b->lt != nullptr) lt_set_workspace(b->lt, lt_work);
    if (cudaMemsetAsync(r.base, 0, r.used, b->stream) != cudaSuccess) return cuda_keep(b, E_DEVICE);
    if (cudaHostAlloc(&b->host_memory, host.used, cudaHostAllocDefault) != cudaSuccess) {
        (void)cudaGetLastError();
        return error_set(err, E_NOMEM, "cuda: %zu MiB of pinned host memory", host.used >> 20);
    }
    region h = {(uint8_t *)b->host_memory, 0};
    walk_slots(&h, b, c);
    return OK;
}

} // namespace

status cuda_reserve(backend *base, const backend_limits *want, backend_memory *got, error *err) {
    cuda_backend *b = cuda_of(base);
    if (b->layers == nullptr || b->reserved) return error_set(err, E_STATE, "cuda: reserve");
    cuda_enter(b);
    const dtype kv_type = want->kv_type < 0 ? DTYPE_F16 : (dtype)want->kv_type;
    status s =
        attention_init(&b->attn, &b->desc, kv_type, want->kv_block_tokens, want->n_tokens_max + PAD,
                       want->n_seqs_max + PAD, b->device, b->options.deterministic, err);
    if (s != OK) return s;
    b->logits_stride = (b->shape.n_vocab + 15) / 16 * 16;
    s = sampler_init(&b->sampler_state, b->shape.n_vocab, b->logits_stride,
                     want->n_samples_max + PAD, want->n_bias_max + want->n_seen_max,
                     b->never_sampled, b->device, err);
    if (s != OK) return s;
    capacities c;
    s = check_limits(b, want, &c, err);
    if (s != OK) return s;

    memset(got, 0, sizeof *got);
    size_t free_bytes = 0, total = 0, largest = 0, halves = 0, work = 0, plain = 0;
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) return cuda_keep(b, E_DEVICE);
    got->total_bytes = total;
    got->free_bytes = free_bytes;
    plain_sizes(b, &largest, &halves);
    b->w16_halves = largest * 2 < W16_BYTES_MAX ? largest : W16_BYTES_MAX / 2;
    const uint64_t weights = b->weights_bytes;
    s = take_workspace(b, c, &work, err);
    if (s != OK) return s;
    s = make_plain(b, halves, free_bytes > work ? free_bytes - work : 0, &plain);
    if (s != OK) return error_set(err, cuda_keep(b, s), "cuda: half copy of the weights");
    b->weights_bytes = weights;
    s = take_pool(b, want, work, plain, got, err);
    if (s != OK) return s;
    b->weights_bytes = weights;
    got->weights_bytes = weights;
    got->workspace_bytes = work + plain;
    b->limits = *want;
    b->n_blocks_max = (int)c.blocks - PAD;
    b->step_dev = {b->dev.seq_start, b->dev.kv_len,  b->dev.block_start, b->dev.block,
                   b->dev.row_seq,   b->dev.row_pos, b->dev.rope};
    for (int i = 0; i < SLOTS; i++) {
        if (cudaEventCreateWithFlags(&b->slot[i].done, cudaEventDisableTiming) != cudaSuccess) {
            return cuda_keep(b, E_DEVICE);
        }
    }
    if (cudaStreamSynchronize(b->stream) != cudaSuccess) {
        return error_set(err, cuda_keep(b, E_DEVICE), "cuda: reserve: %s",
                         cudaGetErrorString(cudaGetLastError()));
    }
    b->reserved = true;
    if (cuda_lt_prepare(b) != OK) {
        return error_set(err, E_UNSUPPORTED,
                         "cuda: cuBLASLt has no product for the model's shapes");
    }
    choose_fused(b);
    choose_wgmma(b);
    if (b->sm == 90 && (gemv_init() != OK || wgmma_init() != OK)) {
        return error_set(err, cuda_keep(b, E_DEVICE), "cuda: the linear kernels do not start");
    }
    return cuda_graphs_capture(b, err);
}
