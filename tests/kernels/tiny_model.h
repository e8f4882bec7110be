/* A small random model made by hand, and a way to run sequences on it through the backend's door,
 * in any mix of batches, chunks and block sizes. */
#ifndef INFERD_TESTS_KERNELS_TINY_MODEL_H
#define INFERD_TESTS_KERNELS_TINY_MODEL_H

#include "engine/model.h"
#include "kernel_test.h"
#include "kernels/backend.h"

enum { TINY_LAYERS = 2, TINY_CONTEXT = 192, TINY_SEQS = 8, TINY_TENSORS = 64 };

typedef struct tiny_model {
    model_desc m;
    layer_desc layer[TINY_LAYERS];
    float freq[128];
    uint8_t never[512];
    void *owned[TINY_TENSORS];
    int n_owned;
    rng r;
} tiny_model;

static inline tensor_view tiny_matrix(tiny_model *t, dtype type, int n_in, int n_out) {
    uint8_t *data = random_weights(&t->r, type, n_in, n_out, 0.15f);
    t->owned[t->n_owned++] = data;
    return (tensor_view){
        .name = "matrix", .data = data, .type = type, .n_in = n_in, .n_out = n_out};
}

static inline tensor_view tiny_vector(tiny_model *t, int n, float around, float spread) {
    float *data = malloc((size_t)n * sizeof *data);
    for (int i = 0; i < n; i++) data[i] = around + spread * rng_normal(&t->r);
    t->owned[t->n_owned++] = data;
    return (tensor_view){.name = "vector", .data = data, .type = DTYPE_F32, .n_in = n, .n_out = 1};
}

/* Variant 0: like SmolLM2; 1: qwen2 (biases, neox); 2: qwen3 (head norms, odd head size); 3: a
 * window, untied output, padding rows. type: of the large matrices. */
static inline void tiny_model_make(tiny_model *t, int variant, dtype type) {
    memset(t, 0, sizeof *t);
    t->r.s = (uint64_t)variant * 1000 + (uint64_t)type;
    const int heads = variant == 1 ? 7 : 6, kv = variant == 1 ? 1 : 2, d = variant == 2 ? 36 : 32;
    const int embd = 256, ff = 512, vocab = 307;
    model_desc *m = &t->m;
    *m = (model_desc){.architecture = "tiny",
                      .n_layers = TINY_LAYERS,
                      .n_embd = embd,
                      .n_ff = ff,
                      .n_heads = heads,
                      .n_kv_heads = kv,
                      .head_dim = d,
                      .n_vocab = vocab,
                      .context_length = TINY_CONTEXT,
                      .norm_eps = 1e-5f,
                      .attn_scale = 0.2f,
                      .sliding_window = variant == 3 ? 40 : 0,
                      .n_rot = variant == 2 ? 20 : d,
                      .rope_neox = variant > 0,
                      .rope_freq = t->freq,
                      .rope_mscale = 1.0f,
                      .layers = t->layer};
    for (int i = 0; i < 128; i++) t->freq[i] = powf(1000.0f, -(float)i / 16.0f);
    const dtype o_type = heads * d % 256 != 0 ? DTYPE_F16 : type; /* blocks of 256 do not fit */
    for (int i = 0; i < TINY_LAYERS; i++) {
        layer_desc *l = &t->layer[i];
        l->attn_norm = tiny_vector(t, embd, 1.0f, 0.2f);
        l->q = tiny_matrix(t, type, embd, heads * d);
        l->k = tiny_matrix(t, type, embd, kv * d);
        l->v = tiny_matrix(t, DTYPE_Q6_K, embd, kv * d);
        l->o = tiny_matrix(t, o_type, heads * d, embd);
        l->ffn_norm = tiny_vector(t, embd, 1.0f, 0.2f);
        l->gate = tiny_matrix(t, type, embd, ff);
        l->up = tiny_matrix(t, type, embd, ff);
        l->down = tiny_matrix(t, type, ff, embd);
        if (variant == 1) {
            l->q_bias = tiny_vector(t, heads * d, 0.0f, 2.0f);
            l->k_bias = tiny_vector(t, kv * d, 0.0f, 2.0f);
            l->v_bias = tiny_vector(t, kv * d, 0.0f, 1.0f);
            l->o_bias = tiny_vector(t, embd, 0.0f, 0.1f);
        }
        if (variant == 2) {
            l->q_norm = tiny_vector(t, d, 1.0f, 0.1f);
            l->k_norm = tiny_vector(t, d, 1.0f, 0.1f);
        }
    }
    m->token_embd = tiny_matrix(t, DTYPE_Q8_0, embd, vocab);
    m->output_norm = tiny_vector(t, embd, 1.0f, 0.2f);
    m->output = variant == 3 ? tiny_matrix(t, type, embd, vocab) : m->token_embd;
    if (variant == 3) {
        m->output_bias = tiny_vector(t, vocab, 0.0f, 0.5f);
        for (int i = 300; i < vocab; i++) t->never[i] = 1;
        m->never_sampled = t->never;
    }
}

static inline void tiny_model_free(tiny_model *t) {
    for (int i = 0; i < t->n_owned; i++) free(t->owned[i]);
}

static inline backend *tiny_backend(const tiny_model *t, int threads, int block_tokens, int kv_type,
                                    int n_tokens_max) {
    backend *b = NULL;
    error e = {.text = ""};
    backend_memory got;
    const backend_limits l = {.n_tokens_max = n_tokens_max,
                              .n_seqs_max = TINY_SEQS,
                              .n_samples_max = n_tokens_max,
                              .kv_block_tokens = block_tokens,
                              .kv_blocks = TINY_SEQS * TINY_CONTEXT / block_tokens,
                              .kv_type = kv_type};
    if (cpu_backend_open(&(backend_options){.threads = threads}, &b, &e) != OK ||
        b->ops->load(b, &t->m, NULL, NULL, &e) != OK || b->ops->reserve(b, &l, &got, &e) != OK) {
        fprintf(stderr, "tiny_backend: %s\n", e.text);
        abort();
    }
    return b;
}

/* What a step computes of each sequence: rows [from[i], to[i]) of its tokens. */
typedef struct part {
    int seq, from, to;
} part;

/* Runs one step over the parts; logits of each part's rows to out[seq][row][n_vocab]. Sequence s
 * owns blocks s, s + TINY_SEQS, ...: scattered. */
static inline void tiny_step(backend *b, const tiny_model *t, int block_tokens, const part *parts,
                             int n_parts, int32_t tokens[][TINY_CONTEXT], float *out) {
    enum { ROWS = TINY_SEQS * TINY_CONTEXT };
    static int32_t token[ROWS], block[ROWS];
    static sample_row sample[ROWS];
    static sampled result[ROWS];
    int32_t seq_start[TINY_SEQS + 1] = {0}, kv_len[TINY_SEQS], block_start[TINY_SEQS + 1] = {0};
    int n = 0, n_blocks = 0;
    for (int i = 0; i < n_parts; i++) {
        const part *p = &parts[i];
        for (int r = p->from; r < p->to; r++) {
            sample[n] = (sample_row){.row = n, .target = -1};
            token[n++] = tokens[p->seq][r];
        }
        for (int k = 0; k * block_tokens < p->to; k++) block[n_blocks++] = p->seq + k * TINY_SEQS;
        seq_start[i + 1] = n;
        kv_len[i] = p->to;
        block_start[i + 1] = n_blocks;
    }
    const step s = {.n_tokens = n,
                    .n_seqs = n_parts,
                    .n_samples = n,
                    .n_blocks = n_blocks,
                    .token = token,
                    .seq_start = seq_start,
                    .kv_len = kv_len,
                    .block_start = block_start,
                    .block = block,
                    .sample = sample};
    const size_t n_vocab = (size_t)t->m.n_vocab;
    float *logits = malloc((size_t)n * n_vocab * sizeof *logits);
    if (model_forward(b, t->m.n_layers, &s) != OK || b->ops->wait_step(b, result) != OK ||
        b->ops->read_logits(b, logits, (size_t)n * n_vocab) != OK)
        abort();
    n = 0;
    for (int i = 0; i < n_parts; i++) {
        for (int r = parts[i].from; r < parts[i].to; r++, n++)
            memcpy(out + ((size_t)parts[i].seq * TINY_CONTEXT + (size_t)r) * n_vocab,
                   logits + (size_t)n * n_vocab, n_vocab * sizeof *out);
    }
    free(logits);
}
#endif
