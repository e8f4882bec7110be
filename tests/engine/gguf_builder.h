/* Writes GGUF files in memory, right ones and wrong ones. A test program aborts when it has no
 * memory. Header only: each test is one source file. */
#ifndef INFERD_TESTS_ENGINE_GGUF_BUILDER_H
#define INFERD_TESTS_ENGINE_GGUF_BUILDER_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/gguf.h"

typedef struct bytes {
    uint8_t *p; /* owned */
    size_t n, capacity;
} bytes;

static inline void bytes_put(bytes *b, const void *p, size_t n) {
    if (b->n + n > b->capacity) {
        b->capacity = 2 * (b->n + n) + 256;
        b->p = realloc(b->p, b->capacity);
        if (b->p == NULL) abort();
    }
    if (n > 0) memcpy(b->p + b->n, p, n);
    b->n += n;
}

static inline void bytes_u32(bytes *b, uint32_t v) {
    bytes_put(b, &v, sizeof v);
}
static inline void bytes_u64(bytes *b, uint64_t v) {
    bytes_put(b, &v, sizeof v);
}
static inline void bytes_str(bytes *b, const char *s) {
    bytes_u64(b, strlen(s));
    bytes_put(b, s, strlen(s));
}
static inline void bytes_align(bytes *b, size_t align) {
    while (b->n % align != 0) bytes_put(b, "", 1);
}

/* The fields after n_tensors say what the finished file claims where that is not the truth. */
typedef struct gguf_builder {
    bytes kv, infos, data;
    uint64_t n_kv, n_tensors;
    uint32_t version, alignment;
    const char *magic;
    uint64_t claim_n_kv, claim_n_tensors; /* UINT64_MAX - 1: the truth */
    uint64_t offset_error;                /* added to the next tensor's offset */
} gguf_builder;

#define BUILDER_TRUTH (UINT64_MAX - 1)

static inline gguf_builder builder_new(void) {
    return (gguf_builder){.version = 3,
                          .alignment = 32,
                          .magic = "GGUF",
                          .claim_n_kv = BUILDER_TRUTH,
                          .claim_n_tensors = BUILDER_TRUTH};
}

static inline void builder_key(gguf_builder *b, const char *key, uint32_t type) {
    bytes_str(&b->kv, key);
    bytes_u32(&b->kv, type);
    b->n_kv++;
}
static inline void builder_raw(gguf_builder *b, const char *key, uint32_t type, const void *p,
                               size_t n) {
    builder_key(b, key, type);
    bytes_put(&b->kv, p, n);
}
static inline void builder_u32(gguf_builder *b, const char *key, uint32_t v) {
    builder_raw(b, key, GGUF_U32, &v, sizeof v);
}
static inline void builder_i32(gguf_builder *b, const char *key, int32_t v) {
    builder_raw(b, key, GGUF_I32, &v, sizeof v);
}
static inline void builder_u64(gguf_builder *b, const char *key, uint64_t v) {
    builder_raw(b, key, GGUF_U64, &v, sizeof v);
}
static inline void builder_f32(gguf_builder *b, const char *key, float v) {
    builder_raw(b, key, GGUF_F32, &v, sizeof v);
}
static inline void builder_bool(gguf_builder *b, const char *key, uint8_t v) {
    builder_raw(b, key, GGUF_BOOL, &v, sizeof v);
}
static inline void builder_str(gguf_builder *b, const char *key, const char *v) {
    builder_key(b, key, GGUF_STRING);
    bytes_str(&b->kv, v);
}
/* An array; claimed count, then whatever bytes. */
static inline void builder_array(gguf_builder *b, const char *key, uint32_t elem, uint64_t count,
                                 const void *p, size_t n) {
    builder_key(b, key, GGUF_ARRAY);
    bytes_u32(&b->kv, elem);
    bytes_u64(&b->kv, count);
    bytes_put(&b->kv, p, n);
}
static inline void builder_strings(gguf_builder *b, const char *key, const char *const *s,
                                   size_t n) {
    builder_array(b, key, GGUF_STRING, n, "", 0);
    for (size_t i = 0; i < n; i++) bytes_str(&b->kv, s[i]);
}

/* A tensor of n_dims dimensions and `n` bytes of data. */
static inline void builder_tensor(gguf_builder *b, const char *name, uint32_t n_dims,
                                  const uint64_t *ne, uint32_t type, const void *p, size_t n) {
    bytes_str(&b->infos, name);
    bytes_u32(&b->infos, n_dims);
    for (uint32_t d = 0; d < n_dims; d++) bytes_u64(&b->infos, ne[d]);
    bytes_u32(&b->infos, type);
    bytes_u64(&b->infos, b->data.n + b->offset_error);
    b->n_tensors++;
    bytes_put(&b->data, p, n);
    bytes_align(&b->data, b->alignment);
}

/* float32 [n_in, n_out] (n_out 0: a vector), small reproducible values; vectors are near 1. */
static inline void builder_floats(gguf_builder *b, const char *name, uint64_t n_in,
                                  uint64_t n_out) {
    const uint64_t n = n_in * (n_out == 0 ? 1 : n_out), ne[2] = {n_in, n_out};
    float *p = malloc((size_t)n * sizeof *p);
    uint32_t x = 2463534242u;
    if (p == NULL) abort();
    for (const char *c = name; *c != '\0'; c++) x = x * 31u + (unsigned char)*c;
    for (uint64_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        const float v = (float)(int32_t)x / 2147483648.0f;
        p[i] = n_out == 0 ? 1.0f + 0.25f * v : 0.5f * v;
    }
    builder_tensor(b, name, n_out == 0 ? 1 : 2, ne, DTYPE_F32, p, (size_t)n * sizeof *p);
    free(p);
}

/* The file's bytes, owned by the caller; the builder is emptied. */
static inline bytes builder_finish(gguf_builder *b) {
    bytes out = {0};
    bytes_put(&out, b->magic, 4);
    bytes_u32(&out, b->version);
    bytes_u64(&out, b->claim_n_tensors == BUILDER_TRUTH ? b->n_tensors : b->claim_n_tensors);
    bytes_u64(&out, b->claim_n_kv == BUILDER_TRUTH ? b->n_kv : b->claim_n_kv);
    bytes_put(&out, b->kv.p, b->kv.n);
    bytes_put(&out, b->infos.p, b->infos.n);
    bytes_align(&out, b->alignment);
    bytes_put(&out, b->data.p, b->data.n);
    free(b->kv.p);
    free(b->infos.p);
    free(b->data.p);
    *b = (gguf_builder){0};
    return out;
}

/* ---- a whole tiny model ---- */

typedef struct tiny_model {
    const char *arch;
    int n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim, n_vocab, context_length;
    bool fused;        /* attn_qkv and ffn_up as phi3 */
    bool bias;         /* q, k, v biases as qwen2 */
    bool head_norm;    /* as qwen3 */
    bool tied;         /* no output.weight */
    bool no_tokenizer; /* weights only */
} tiny_model;

static inline tiny_model tiny_default(const char *arch) {
    return (tiny_model){.arch = arch,
                        .n_layers = 2,
                        .n_embd = 32,
                        .n_ff = 32,
                        .n_heads = 2,
                        .n_kv_heads = 1,
                        .head_dim = 16,
                        .n_vocab = 264,
                        .context_length = 64,
                        .fused = strcmp(arch, "phi3") == 0,
                        .bias = strcmp(arch, "qwen2") == 0,
                        .head_norm = strcmp(arch, "qwen3") == 0,
                        .tied = true};
}

static inline void tiny_u32(gguf_builder *b, const tiny_model *m, const char *suffix, int v) {
    char key[128];
    (void)snprintf(key, sizeof key, "%s.%s", m->arch, suffix);
    builder_u32(b, key, (uint32_t)v);
}

static inline void tiny_keys(gguf_builder *b, const tiny_model *m) {
    char key[128];
    builder_str(b, "general.architecture", m->arch);
    builder_str(b, "general.name", "tiny");
    tiny_u32(b, m, "block_count", m->n_layers);
    tiny_u32(b, m, "context_length", m->context_length);
    tiny_u32(b, m, "embedding_length", m->n_embd);
    tiny_u32(b, m, "feed_forward_length", m->n_ff);
    tiny_u32(b, m, "attention.head_count", m->n_heads);
    tiny_u32(b, m, "attention.head_count_kv", m->n_kv_heads);
    tiny_u32(b, m, "attention.key_length", m->head_dim);
    tiny_u32(b, m, "attention.value_length", m->head_dim);
    (void)snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", m->arch);
    builder_f32(b, key, 1e-5f);
}

/* SentencePiece vocabulary: <unk>, <s>, </s>, 256 bytes, and letters. */
static inline void tiny_tokenizer(gguf_builder *b, const tiny_model *m) {
    const size_t n = (size_t)m->n_vocab;
    char(*text)[16] = calloc(n, sizeof *text);
    const char **tokens = calloc(n, sizeof *tokens);
    float *scores = calloc(n, sizeof *scores);
    int32_t *types = calloc(n, sizeof *types);
    if (text == NULL || tokens == NULL || scores == NULL || types == NULL) abort();
    for (size_t i = 0; i < n; i++) {
        static const char *const special[] = {"<unk>", "<s>", "</s>"};
        types[i] = i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1;
        scores[i] = i < 259 ? 0.0f : -(float)i;
        if (i < 3)
            (void)snprintf(text[i], sizeof *text, "%s", special[i]);
        else if (i < 259)
            (void)snprintf(text[i], sizeof *text, "<0x%02X>", (unsigned)(i - 3));
        else if (i == 259)
            (void)snprintf(text[i], sizeof *text, "\xE2\x96\x81");
        else
            (void)snprintf(text[i], sizeof *text, "%.*s", (int)(1 + (i - 260) / 26),
                           &"abcdefghijklmnopqrstuvwxyzabcdefghij"[(i - 260) % 26]);
        tokens[i] = text[i];
    }
    builder_str(b, "tokenizer.ggml.model", "llama");
    builder_strings(b, "tokenizer.ggml.tokens", tokens, n);
    builder_array(b, "tokenizer.ggml.scores", GGUF_F32, n, scores, n * sizeof *scores);
    builder_array(b, "tokenizer.ggml.token_type", GGUF_I32, n, types, n * sizeof *types);
    builder_u32(b, "tokenizer.ggml.bos_token_id", 1);
    builder_u32(b, "tokenizer.ggml.eos_token_id", 2);
    free(text);
    free(tokens);
    free(scores);
    free(types);
}

static inline void tiny_floats(gguf_builder *b, int layer, const char *suffix, int n_in,
                               int n_out) {
    char name[64];
    (void)snprintf(name, sizeof name, "blk.%d.%s", layer, suffix);
    builder_floats(b, name, (uint64_t)n_in, (uint64_t)n_out);
}

static inline void tiny_layer(gguf_builder *b, const tiny_model *m, int i) {
    const int q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim, e = m->n_embd;
    tiny_floats(b, i, "attn_norm.weight", e, 0);
    if (m->fused) {
        tiny_floats(b, i, "attn_qkv.weight", e, q + 2 * kv);
        if (m->bias) tiny_floats(b, i, "attn_qkv.bias", q + 2 * kv, 0);
    } else {
        tiny_floats(b, i, "attn_q.weight", e, q);
        tiny_floats(b, i, "attn_k.weight", e, kv);
        tiny_floats(b, i, "attn_v.weight", e, kv);
        if (m->bias) tiny_floats(b, i, "attn_q.bias", q, 0);
        if (m->bias) tiny_floats(b, i, "attn_k.bias", kv, 0);
        if (m->bias) tiny_floats(b, i, "attn_v.bias", kv, 0);
    }
    if (m->head_norm) tiny_floats(b, i, "attn_q_norm.weight", m->head_dim, 0);
    if (m->head_norm) tiny_floats(b, i, "attn_k_norm.weight", m->head_dim, 0);
    tiny_floats(b, i, "attn_output.weight", q, e);
    tiny_floats(b, i, "ffn_norm.weight", e, 0);
    if (!m->fused) tiny_floats(b, i, "ffn_gate.weight", e, m->n_ff);
    tiny_floats(b, i, "ffn_up.weight", e, m->fused ? 2 * m->n_ff : m->n_ff);
    tiny_floats(b, i, "ffn_down.weight", m->n_ff, e);
}

static inline void tiny_tensors(gguf_builder *b, const tiny_model *m) {
    builder_floats(b, "token_embd.weight", (uint64_t)m->n_embd, (uint64_t)m->n_vocab);
    builder_floats(b, "output_norm.weight", (uint64_t)m->n_embd, 0);
    if (!m->tied) builder_floats(b, "output.weight", (uint64_t)m->n_embd, (uint64_t)m->n_vocab);
    for (int i = 0; i < m->n_layers; i++) tiny_layer(b, m, i);
}

/* Keys and tensors of a valid model; the caller may add more before builder_finish. */
static inline gguf_builder tiny_builder(const tiny_model *m) {
    gguf_builder b = builder_new();
    tiny_keys(&b, m);
    if (!m->no_tokenizer) tiny_tokenizer(&b, m);
    tiny_tensors(&b, m);
    return b;
}
#endif
