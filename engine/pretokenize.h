/* Splits text into the pieces that byte-level BPE merges within. Each splitter is written by hand
 * after the regular expression of its tokenizer (in pretokenize.c) and takes linear time.
 * Thread: any. */
#ifndef INFERD_ENGINE_PRETOKENIZE_H
#define INFERD_ENGINE_PRETOKENIZE_H

#include <stdbool.h>
#include <stddef.h>

typedef enum pretokenizer {
    PRE_GPT2,
    PRE_SMOLLM,
    PRE_QWEN2,
    PRE_LLAMA3,
    PRE_DBRX, /* splits as llama3; whole words are no shortcut, and no BOS is implied */
    PRE_TEKKEN,
    PRE_GPT4O,
    PRE_DEFAULT
} pretokenizer;

/* By the value of tokenizer.ggml.pre, including other names of the same rules. */
bool pretokenizer_find(const char *name, size_t len, pretokenizer *out);
const char *pretokenizer_name(pretokenizer p);

typedef struct pretok_cursor {
    pretokenizer pre;
    const char *s; /* valid UTF-8 */
    size_t len;
    size_t pos;
    size_t outer_end, middle_end, inner_end; /* of the enclosing splits, for rules in sequence */
} pretok_cursor;
void pretok_init(pretok_cursor *c, pretokenizer pre, const char *s, size_t len);
/* The next piece is s[*start..*end), never empty; false at the end. */
bool pretok_next(pretok_cursor *c, size_t *start, size_t *end);
#endif
