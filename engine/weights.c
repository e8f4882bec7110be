#include "engine/weights.h"

#include <stdlib.h>
#include <string.h>

#include "engine/weights_priv.h"

/* general.file_type of llama.cpp's quantiser. */
static const char *file_type_name(uint64_t type) {
    static const char *const names[] = {
        [0] = "F32",     [1] = "F16",     [2] = "Q4_0",    [3] = "Q4_1",    [7] = "Q8_0",
        [8] = "Q5_0",    [9] = "Q5_1",    [10] = "Q2_K",   [11] = "Q3_K_S", [12] = "Q3_K_M",
        [13] = "Q3_K_L", [14] = "Q4_K_S", [15] = "Q4_K_M", [16] = "Q5_K_S", [17] = "Q5_K_M",
        [18] = "Q6_K",   [21] = "Q2_K_S", [25] = "IQ4_NL", [30] = "IQ4_XS", [32] = "BF16",
        [38] = "MXFP4"};
    return type < sizeof names / sizeof names[0] ? names[type] : NULL;
}

/* The type that holds most bytes. */
static const char *dominant_type(const gguf *g) {
    uint64_t bytes[64] = {0};
    int best = DTYPE_F32;
    for (int i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        bytes[(int)t->type & 63] += t->bytes;
    }
    for (int i = 0; i < 64; i++)
        if (bytes[i] > bytes[best]) best = i;
    return dtype_get(best)->name;
}

static void read_info(weights *w, const gguf *g) {
    uint64_t type = UINT64_MAX;
    bool found = false;
    error unused; /* a file_type of another type is only a hint that cannot be read */
    if (gguf_get_u64(g, "general.file_type", &found, &type, &unused) != OK) found = false;
    w->info.quantization = found ? file_type_name(type) : NULL;
    if (w->info.quantization == NULL) w->info.quantization = dominant_type(g);
    for (int i = 0; i < gguf_n_tensors(g); i++) {
        const gguf_tensor *t = gguf_tensor_at(g, i);
        w->info.n_parameters += (uint64_t)t->ne[0] * (uint64_t)t->ne[1] * (uint64_t)t->ne[2] *
                                (uint64_t)t->ne[3]; /* the file is as large: no overflow */
    }
}

/* Tensor names as C strings, for the views. */
static status copy_names(loader *l) {
    const size_t n = (size_t)gguf_n_tensors(l->g);
    l->w->tensor_names = calloc(n + 1, sizeof *l->w->tensor_names);
    l->used = calloc(n + 1, sizeof *l->used);
    if (l->w->tensor_names == NULL || l->used == NULL)
        return error_set(l->err, E_NOMEM, "weights: %zu tensor names", n);
    for (size_t i = 0; i < n; i++) {
        const gguf_str name = gguf_tensor_at(l->g, (int)i)->name; /* shorter than the field */
        memcpy(l->w->tensor_names[i], name.s, name.len);
    }
    return OK;
}

static status allocate_layers(loader *l) {
    l->w->layers = calloc((size_t)l->w->desc.n_layers, sizeof *l->w->layers);
    if (l->w->layers == NULL)
        return error_set(l->err, E_NOMEM, "weights: %d layers", l->w->desc.n_layers);
    return OK;
}

status weights_open(const gguf *g, int context_length, weights **out, error *err) {
    loader l = {.g = g, .err = err, .w = calloc(1, sizeof *l.w)};
    if (l.w == NULL) return error_set(err, E_NOMEM, "weights: %zu bytes", sizeof *l.w);
    status s = weights_read_keys(&l, context_length);
    if (s == OK) s = copy_names(&l);
    if (s == OK) s = weights_read_rope(&l);
    if (s == OK) s = allocate_layers(&l);
    if (s == OK) s = weights_find_tensors(&l);
    free(l.used);
    if (s != OK) {
        weights_close(l.w);
        return s;
    }
    read_info(l.w, g);
    *out = l.w;
    return OK;
}

void weights_close(weights *w) {
    if (w == NULL) return;
    free(w->layers);
    free(w->rope_freq);
    free(w->tensor_names);
    free(w->name);
    free(w);
}

const model_desc *weights_desc(const weights *w) {
    return &w->desc;
}

const model_info *weights_info(const weights *w) {
    return &w->info;
}
