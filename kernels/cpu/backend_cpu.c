/* The CPU behind kernels/backend.h: the reference, and the default. Everything is done when an op
 * returns; wait_step only hands the results over. */
#include "kernels/cpu/backend_cpu.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"

_Static_assert((LIMIT_STEP_TOKENS / QUERY_TOKENS + LIMIT_SEQUENCES) * KV_HEADS_MAX <=
                   POOL_TASKS_MAX,
               "attention of the largest step fits the pool");
_Static_assert((int)POOL_THREADS_MAX == LIMIT_THREADS, "the pool takes what engine.threads may be");

static status cpu_wait_step(backend *base, sampled *out) {
    cpu_backend *b = (cpu_backend *)base;
    assert(!b->in_step);
    memcpy(out, b->w.results, (size_t)b->n_results * sizeof *out);
    return OK;
}

static status cpu_read_logits(backend *base, float *out, size_t out_floats) {
    const cpu_backend *b = (const cpu_backend *)base;
    const size_t n_vocab = (size_t)b->m.n_vocab;
    if (b->in_step) return E_STATE;
    if (out_floats / n_vocab < (size_t)b->n_results) return E_INVAL;
    for (int i = 0; i < b->n_results; i++)
        memcpy(out + (size_t)i * n_vocab, b->w.logits + (size_t)i * (size_t)b->w.vocab_ld,
               n_vocab * sizeof *out);
    return OK;
}

static const char *cpu_device_name(const backend *base) {
    return ((const cpu_backend *)base)->device_name;
}

static void cpu_close(backend *base) {
    cpu_backend *b = (cpu_backend *)base;
    if (b == NULL) return;
    memory_unmap(&b->work);
    memory_unmap(&b->kv_pool);
    memory_unmap(&b->weights);
    pool_close(b->pool);
    free(b);
}

static const struct backend_ops OPS = {
    .name = "cpu",
    .pipeline_depth = 1,
    .load = cpu_load,
    .reserve = cpu_reserve,
    .begin_step = cpu_begin_step,
    .embed = cpu_embed,
    .qkv = cpu_qkv,
    .attention = cpu_attention,
    .attn_output = cpu_attn_output,
    .gate_up = cpu_gate_up,
    .down = cpu_down,
    .head = cpu_head,
    .sample = cpu_sample,
    .end_step = cpu_end_step,
    .wait_step = cpu_wait_step,
    .read_logits = cpu_read_logits,
    .device_name = cpu_device_name,
    .close = cpu_close,
};

status cpu_backend_open(const backend_options *o, backend **out, error *err) {
    assert(o != NULL && out != NULL);
    cpu_backend *b = calloc(1, sizeof *b);
    if (b == NULL) return error_set(err, E_NOMEM, "CPU backend: %zu bytes", sizeof *b);
    b->base.ops = &OPS;
    b->kernels = cpu_kernels_best();
    const int n_threads = o->threads > 0 ? o->threads : pool_default_threads();
    const status s = pool_open(n_threads, &b->pool, err);
    if (s != OK) {
        free(b);
        return s;
    }
    snprintf(b->device_name, sizeof b->device_name, "CPU, %d thread%s, %s", n_threads,
             n_threads == 1 ? "" : "s", b->kernels->name);
    *out = &b->base;
    return OK;
}
