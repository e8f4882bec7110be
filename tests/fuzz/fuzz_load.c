/* GGUF bytes -> weights -> CPU backend -> two tokens. */
#include "../engine/two_tokens.h"
#include "engine/weights.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *copy = fuzz_copy(data, size);
    gguf *g = NULL;
    weights *w = NULL;
    error err = {0};
    status s = gguf_open_memory(copy, size, &g, &err);
    if (s == OK) s = weights_open(g, 0, &w, &err);
    if (s == OK) {
        s = two_tokens(weights_desc(w), &err);
        assert(s == OK || s == E_UNSUPPORTED || s == E_NOMEM);
    }
    weights_close(w);
    gguf_close(g);
    free(copy);
    return 0;
}
