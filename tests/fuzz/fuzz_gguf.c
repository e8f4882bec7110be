/* GGUF bytes -> index; everything in it is read. */
#include "engine/gguf.h"
#include "fuzz.h"

static void read_array(const gguf *g, const char *key) {
    gguf_array a;
    bool found = false;
    if (gguf_get_array(g, key, &found, &a, NULL) != OK || !found) return;
    for (uint64_t i = 0; i <= a.count && i < 100000; i++) {
        gguf_str s;
        int64_t n;
        double d;
        const bool is_str = gguf_array_str(&a, i, &s);
        const bool is_int = gguf_array_i64(&a, i, &n), is_real = gguf_array_f64(&a, i, &d);
        assert(is_str + is_int + is_real <= 1);
        assert(i < a.count || !(is_str || is_int || is_real));
        volatile char last = is_str && s.len > 0 ? s.s[s.len - 1] : 0;
        (void)last;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const arrays[] = {"tokenizer.ggml.tokens", "tokenizer.ggml.scores",
                                         "tokenizer.ggml.token_type", "tokenizer.ggml.merges", "k"};
    uint8_t *copy = fuzz_copy(data, size);
    gguf *g = NULL;
    error err = {0};
    const status s = gguf_open_memory(copy, size, &g, &err);
    assert(s == OK || (g == NULL && err.text[0] != '\0'));
    for (int i = 0; s == OK && i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        const uint8_t *p = t->data;
        assert(p >= copy && t->bytes <= size && (size_t)(p - copy) <= size - t->bytes);
        volatile uint8_t last = p[t->bytes - 1];
        (void)last;
    }
    for (size_t i = 0; s == OK && i < sizeof arrays / sizeof arrays[0]; i++)
        read_array(g, arrays[i]);
    gguf_close(g);
    free(copy);
    return 0;
}
