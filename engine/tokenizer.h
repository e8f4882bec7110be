/* Text <-> token ids, exactly as the model's own tokenizer does it: byte-level BPE (pre-tokenizers
 * smollm, gpt-2, qwen2, llama-bpe, default, tekken, gpt-4o) and SentencePiece-BPE. Hand-written
 * splitters, O(n log n) merges, stack <= 64 KiB, memory proportional to the text. Sources:
 * llama.cpp src/llama-vocab.cpp, Hugging Face tokenizers. Thread: any; immutable after open. */
#ifndef INFERD_ENGINE_TOKENIZER_H
#define INFERD_ENGINE_TOKENIZER_H

#include "engine/gguf.h"

typedef struct tokenizer tokenizer;

typedef enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6
} token_type;

/* A growing list of ids, with the byte range of the text that each one covers. Owned by the caller:
 * zero it, then token_list_free. */
typedef struct token_list {
    int32_t *id;
    uint32_t *start,
        *end; /* byte offsets into the text given to encode; NULL unless with_offsets */
    size_t n, capacity;
    bool with_offsets; /* set before the first encode */
} token_list;
void token_list_free(token_list *l);

/* One stretch of a text. In a `literal` part spellings of special tokens are ordinary text: it can
 * never become a control token. */
typedef struct text_part {
    const char *s;
    size_t len;
    bool literal;
} text_part;

enum { TOKENIZE_ADD_SPECIAL = 1 }; /* add BOS (EOS) as the file's metadata says */

/* Copies what it needs: g may be closed afterwards. E_FORMAT, E_UNSUPPORTED (tokenizer model or pre
 * named). */
BASE_MUST_USE status tokenizer_open(const gguf *g, tokenizer **out, error *err);
void tokenizer_close(tokenizer *t);

/* Appends the ids of the parts' concatenation to *out. The parts are one text: merging goes across
 * borders of parts, except that special tokens are found only inside non-literal parts. Offsets
 * count from the first part's first byte. The text is valid UTF-8 (the caller checks; invalid bytes
 * are treated as U+FFFD). E_NOMEM. */
BASE_MUST_USE status tokenizer_encode(const tokenizer *t, const text_part *parts, int n_parts,
                                      unsigned flags, token_list *out);

int tokenizer_n_vocab(const tokenizer *t);
/* Raw bytes a token contributes to text: control, unknown and unused tokens give none unless
 * keep_special (then their spelling). Never fails for 0 <= id < n_vocab; *len may be 0.
 * SentencePiece: the leading space is kept. */
const char *tokenizer_piece(const tokenizer *t, int32_t id, bool keep_special, size_t *len);
token_type tokenizer_type(const tokenizer *t, int32_t id);
/* The spelling in the vocabulary file, e.g. "Ġthe". */
const char *tokenizer_spelling(const tokenizer *t, int32_t id, size_t *len);

bool tokenizer_is_eog(const tokenizer *t,
                      int32_t id); /* ends generation: model-facts: eos, eot, eom and by name */
int tokenizer_eog_ids(const tokenizer *t, const int32_t **ids);
int32_t tokenizer_bos(const tokenizer *t); /* -1: none */
int32_t tokenizer_eos(const tokenizer *t); /* -1: none */
bool tokenizer_add_bos(const tokenizer *t);
bool tokenizer_strips_leading_space(
    const tokenizer *t); /* SentencePiece with add_space_prefix: whole-text decode drops one */
const char *
tokenizer_name(const tokenizer *t); /* "smollm", "qwen2", "llama-spm", ... for ModelInfo */
/* [n_vocab] 1 for padding rows (UNUSED) that must never be drawn; NULL if there are none. */
const uint8_t *tokenizer_never_sampled(const tokenizer *t);

/* Streaming decode: push ids, take text that consists of whole characters only. */
typedef struct detokenizer {
    const tokenizer *t;
    bool keep_special, strip_space; /* strip_space: drop one leading space of the very first token
                                       (whole-text decode) */
    bool started;
    unsigned char held[4]; /* an unfinished character */
    int n_held;
} detokenizer;
void detokenizer_init(detokenizer *d, const tokenizer *t, bool keep_special, bool strip_space);
/* Appends to *out (growing text) whatever became complete; invalid bytes become U+FFFD per maximal
 * part. */
typedef struct text_buffer {
    char *s; /* owned; NUL-terminated after the first append */
    size_t len, capacity;
} text_buffer;
void text_buffer_free(text_buffer *b);
BASE_MUST_USE status text_buffer_append(text_buffer *b, const char *s, size_t len); /* E_NOMEM */
BASE_MUST_USE status detokenizer_push(detokenizer *d, int32_t id, text_buffer *out);
BASE_MUST_USE status
detokenizer_finish(detokenizer *d, text_buffer *out); /* flushes an incomplete tail as one U+FFFD */
#endif
