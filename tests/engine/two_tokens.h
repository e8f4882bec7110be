/* The shortest use of a model: load, prefill three tokens, decode one. For files that were accepted
 * though nobody knows what is in them. */
#ifndef INFERD_TESTS_ENGINE_TWO_TOKENS_H
#define INFERD_TESTS_ENGINE_TWO_TOKENS_H

#include <assert.h>
#include <string.h>

#include "engine/model.h"

static inline void two_tokens_step(step *s, int32_t *ints, const int32_t *ids, int n, int kv_len,
                                   sample_row *row) {
    *s = (step){.n_tokens = n, .n_seqs = 1, .n_decode = n == 1, .n_samples = 1, .n_blocks = 1};
    s->token = ints;
    memcpy(s->token, ids, (size_t)n * sizeof *ids);
    s->seq_start = ints + 8;
    s->seq_start[0] = 0;
    s->seq_start[1] = n;
    s->kv_len = ints + 16;
    s->kv_len[0] = kv_len;
    s->block_start = ints + 24;
    s->block_start[0] = 0;
    s->block_start[1] = 1;
    s->block = ints + 32;
    s->block[0] = 0;
    *row = (sample_row){.row = n - 1, .target = -1};
    s->sample = row;
}

/* OK; E_UNSUPPORTED or E_NOMEM from load or reserve; anything else is a bug. The weights may be
 * anything, so a row that is not finite is legal. */
static inline status two_tokens(const model_desc *d, error *err) {
    const backend_options o = {.threads = 1};
    const backend_limits want = {.n_tokens_max = 8,
                                 .n_seqs_max = 1,
                                 .n_samples_max = 1,
                                 .kv_block_tokens = 16,
                                 .kv_blocks = 2,
                                 .kv_type = -1};
    backend *b = NULL;
    backend_memory got;
    status s = cpu_backend_open(&o, &b, err);
    if (s != OK) return s;
    s = b->ops->load(b, d, NULL, NULL, err);
    if (s == OK) s = b->ops->reserve(b, &want, &got, err);
    int32_t ids[3] = {0, d->n_vocab - 1, d->n_vocab / 2}, ints[40] = {0};
    for (int i = 0; i < 2 && s == OK; i++) {
        step st;
        sample_row row;
        sampled out;
        two_tokens_step(&st, ints, ids, i == 0 ? 3 : 1, 3 + i, &row);
        s = model_forward(b, d->n_layers, &st);
        if (s == OK) s = b->ops->wait_step(b, &out);
        assert(s == OK);
        assert(!out.finite || (out.token >= 0 && out.token < d->n_vocab));
        ids[0] = out.finite ? out.token : 0;
    }
    b->ops->close(b);
    return s;
}
#endif
