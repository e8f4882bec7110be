/* Two vocabularies that hold every byte, for the targets that need a tokenizer. */
#ifndef INFERD_TESTS_FUZZ_VOCABULARIES_H
#define INFERD_TESTS_FUZZ_VOCABULARIES_H

#include "../engine/gguf_builder.h"
#include "base/utf8.h"
#include "engine/tokenizer.h"

static inline tokenizer *vocabulary_open(bytes *file) {
    gguf *g = NULL;
    tokenizer *t = NULL;
    error err = {0};
    if (gguf_open_memory(file->p, file->n, &g, &err) != OK || tokenizer_open(g, &t, &err) != OK) {
        (void)fprintf(stderr, "vocabulary: %s\n", err.text);
        abort();
    }
    gguf_close(g);
    free(file->p);
    return t;
}

/* SentencePiece: <unk> <s> </s>, 256 byte tokens from id 3, letters. */
static inline tokenizer *vocabulary_spm(void) {
    const tiny_model m = {.n_vocab = 290};
    gguf_builder b = builder_new();
    builder_str(&b, "general.architecture", "llama");
    tiny_tokenizer(&b, &m);
    bytes file = builder_finish(&b);
    return vocabulary_open(&file);
}

/* The code point that byte-level BPE writes for a byte. */
static inline uint32_t vocabulary_byte(unsigned byte) {
    uint32_t n = 0x100;
    for (unsigned i = 0; i <= byte; i++) {
        const bool kept = (i >= 0x21 && i <= 0x7E) || (i >= 0xA1 && i <= 0xAC) || i >= 0xAE;
        if (i == byte) return kept ? byte : n;
        n += !kept;
    }
    return n;
}

static inline void vocabulary_spell(uint32_t cp, char out[16]) {
    if (cp < 0x80)
        (void)snprintf(out, 16, "%c", (int)cp);
    else
        (void)snprintf(out, 16, "%c%c", (int)(0xC0 | cp >> 6), (int)(0x80 | (cp & 0x3F)));
}

/* Byte-level BPE: <unk> <s> </s>, 256 bytes from id 3, a few merges. */
static inline tokenizer *vocabulary_bpe(const char *pre) {
    enum { N_MERGES = 5, N = 3 + 256 + N_MERGES };
    static const char *const merged[N_MERGES] = {"th", "the", "ll", "\xC4\xA0t", "00"};
    static const char *const merges[N_MERGES] = {"t h", "th e", "l l", "\xC4\xA0 t", "0 0"};
    char text[N][16] = {"<unk>", "<s>", "</s>"};
    const char *tokens[N];
    int32_t types[N] = {2, 3, 3};
    gguf_builder b = builder_new();
    for (int i = 0; i < N; i++) {
        if (i >= 3) types[i] = 1;
        if (i >= 3 && i < 259) vocabulary_spell(vocabulary_byte((unsigned)i - 3), text[i]);
        tokens[i] = i < 259 ? text[i] : merged[i - 259];
    }
    builder_str(&b, "general.architecture", "llama");
    builder_str(&b, "tokenizer.ggml.model", "gpt2");
    builder_str(&b, "tokenizer.ggml.pre", pre);
    builder_strings(&b, "tokenizer.ggml.tokens", tokens, N);
    builder_array(&b, "tokenizer.ggml.token_type", GGUF_I32, N, types, sizeof types);
    builder_strings(&b, "tokenizer.ggml.merges", merges, N_MERGES);
    builder_u32(&b, "tokenizer.ggml.bos_token_id", 1);
    builder_u32(&b, "tokenizer.ggml.eos_token_id", 2);
    bytes file = builder_finish(&b);
    return vocabulary_open(&file);
}
#endif
