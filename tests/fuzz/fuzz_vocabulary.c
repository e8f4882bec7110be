/* A tokenizer's metadata from outside: open it, encode a text that meets every path, stream it
 * back. */
#include "engine/tokenizer.h"
#include "fuzz.h"

static void use(const tokenizer *t) {
    static const char plain[] = "The <s>the</s> 12345 don't  \n\n";
    static const char literal[] = "<s> d\xC3\xA9j\xC3\xA0 \xF0\x9F\xA6\x99 \xE4\xBD\xA0 <0x41> ";
    static const text_part parts[] = {{plain, sizeof plain - 1, false},
                                      {literal, sizeof literal - 1, true}};
    token_list ids = {.with_offsets = true};
    text_buffer out = {0};
    detokenizer d;
    const status s = tokenizer_encode(t, parts, 2, TOKENIZE_ADD_SPECIAL, &ids);
    assert(s == OK || s == E_NOMEM);
    detokenizer_init(&d, t, true, true);
    for (size_t i = 0; s == OK && i < ids.n; i++) {
        assert(ids.id[i] >= 0 && ids.id[i] < tokenizer_n_vocab(t));
        if (detokenizer_push(&d, ids.id[i], &out) != OK) abort();
    }
    if (detokenizer_finish(&d, &out) != OK) abort();
    for (int32_t i = 0; i < tokenizer_n_vocab(t) && i < 1000; i++) {
        size_t len;
        const char *piece = tokenizer_piece(t, i, true, &len);
        volatile char last = len > 0 ? piece[len - 1] : 0;
        (void)last;
    }
    text_buffer_free(&out);
    token_list_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *copy = fuzz_copy(data, size);
    gguf *g = NULL;
    tokenizer *t = NULL;
    error err = {0};
    status s = gguf_open_memory(copy, size, &g, &err);
    if (s == OK) s = tokenizer_open(g, &t, &err);
    gguf_close(g);
    free(copy); /* the tokenizer has copied what it needs */
    if (s == OK) use(t);
    tokenizer_close(t);
    return 0;
}
