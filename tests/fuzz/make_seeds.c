/* Writes the seeds that are GGUF files: make_seeds CORPUS_DIR (then see make_seeds.py). */
#include <stdio.h>

#include "../engine/gguf_builder.h"

static void write_seed(const char *dir, const char *target, const char *name, bytes f) {
    char path[1024];
    (void)snprintf(path, sizeof path, "%s/%s/%s", dir, target, name);
    FILE *out = fopen(path, "wb");
    if (out == NULL || fwrite(f.p, 1, f.n, out) != f.n || fclose(out) != 0) abort();
}

static tiny_model small(const char *arch) {
    tiny_model m = tiny_default(arch);
    m.n_layers = 1;
    m.n_embd = m.n_ff = m.head_dim = 8;
    m.n_heads = 1;
    m.n_vocab = 4;
    m.no_tokenizer = true;
    return m;
}

int main(int argc, char **argv) {
    static const char *const archs[] = {"llama", "qwen2", "qwen3", "phi3"};
    if (argc != 2) return 2;
    for (int i = 0; i < 4; i++) {
        const tiny_model m = small(archs[i]);
        gguf_builder b = tiny_builder(&m);
        if (i == 0) builder_str(&b, "llama.rope.scaling.type", "yarn");
        if (i == 0) builder_f32(&b, "llama.rope.scaling.factor", 4);
        if (i == 3) builder_u32(&b, "phi3.attention.sliding_window", 2);
        bytes f = builder_finish(&b);
        write_seed(argv[1], "fuzz_load", archs[i], f);
        write_seed(argv[1], "fuzz_gguf", archs[i], f);
        free(f.p);
    }
    const int32_t numbers[] = {1, -2, 3};
    gguf_builder b = builder_new();
    builder_array(&b, "k", GGUF_I32, 3, numbers, sizeof numbers);
    builder_bool(&b, "b", 1);
    builder_u32(&b, "general.alignment", 64);
    bytes f = builder_finish(&b);
    write_seed(argv[1], "fuzz_gguf", "values", f);
    free(f.p);
    return 0;
}
