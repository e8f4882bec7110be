/* Bytes through the stream splitters: what a stream sends is whole characters, and all of it adds
 * up to the repaired whole. */
#include "fuzz.h"
#include "vocabularies.h"

/* Byte tokens through the detokenizer, one by one. */
static void stream_bytes(const tokenizer *t, const uint8_t *data, size_t size, const char *whole,
                         size_t whole_len) {
    text_buffer out = {0};
    detokenizer d;
    detokenizer_init(&d, t, false, false);
    for (size_t i = 0; i < size; i++) {
        const size_t before = out.len;
        if (detokenizer_push(&d, 3 + (int32_t)data[i], &out) != OK) abort();
        assert(out.len == before || utf8_valid(out.s + before, out.len - before));
    }
    if (detokenizer_finish(&d, &out) != OK) abort();
    assert(out.len == whole_len && (whole_len == 0 || memcmp(out.s, whole, whole_len) == 0));
    text_buffer_free(&out);
}

/* The splitter on a text cut in two at every place. */
static void split_everywhere(const char *s, size_t len) {
    const bool valid = utf8_valid(s, len);
    for (size_t cut = 0; cut <= len; cut++) {
        const size_t ready = utf8_complete_prefix(s, cut);
        assert(ready <= cut && cut - ready <= 3);
        if (valid) assert(utf8_valid(s, ready) && utf8_valid(s + ready, len - ready));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static tokenizer *t; /* kept for the life of the process */
    if (t == NULL) t = vocabulary_spm();
    if (size > 4096) return 0;
    uint8_t *copy = fuzz_copy(data, size);
    char *fixed = malloc(3 * size + 1);
    if (fixed == NULL) abort();
    const size_t len = utf8_sanitise((const char *)copy, size, fixed);
    assert(len <= 3 * size && utf8_valid(fixed, len));
    if (utf8_valid((const char *)copy, size)) assert(len == size && memcmp(fixed, copy, len) == 0);
    split_everywhere((const char *)copy, size);
    split_everywhere(fixed, len);
    stream_bytes(t, copy, size, fixed, len);
    free(fixed);
    free(copy);
    return 0;
}
