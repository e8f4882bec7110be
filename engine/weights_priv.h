/* Inside of engine/weights*.c. Nothing else may include it. */
#ifndef INFERD_ENGINE_WEIGHTS_PRIV_H
#define INFERD_ENGINE_WEIGHTS_PRIV_H

#include "engine/weights.h"

enum { TENSOR_NAME_BYTES = 64, KEY_BYTES = 128 };

typedef enum architecture { ARCH_LLAMA, ARCH_QWEN2, ARCH_QWEN3, ARCH_PHI3 } architecture;

/* What is worked with while a file becomes a model_desc. */
typedef struct loader {
    const gguf *g;
    weights *w;
    architecture arch;
    bool *used; /* [n_tensors] the graph has a place for it */
    error *err;
} loader;

struct weights {
    model_desc desc;
    model_info info;
    layer_desc *layers;                      /* owned [n_layers] */
    float *rope_freq;                        /* owned [n_rot / 2] */
    char (*tensor_names)[TENSOR_NAME_BYTES]; /* owned [n_tensors], NUL-terminated */
    char *name;                              /* owned: general.name */
    const char *architecture;                /* static */
    int rope_original_context;               /* rope.scaling.original_context_length */
};

/* weights_keys.c. Keys "<architecture>.<suffix>". */
void key_name(const loader *l, const char *suffix, char out[KEY_BYTES]);
/* An integer in [lo, hi]; a per-layer array is accepted when all its elements are equal. Absent:
 * E_FORMAT if fallback < 0, else fallback. */
status key_int(const loader *l, const char *suffix, int64_t lo, int64_t hi, int64_t fallback,
               int *out);
/* A finite number in [lo, hi]. Absent: E_FORMAT if fallback is NaN, else fallback. */
status key_real(const loader *l, const char *suffix, double lo, double hi, double fallback,
                double *out);
/* Architecture, shapes, bounds: fills the numbers of desc and info. */
status weights_read_keys(loader *l, int context_length);

/* weights_tensors.c: views and layers. */
status weights_find_tensors(loader *l);
/* A vector [n] of float32; view->data stays NULL when it is absent and optional. */
status tensor_vector(loader *l, const char *name, bool required, int n, tensor_view *out);

/* weights_rope.c: desc.rope_freq and rope_mscale. */
status weights_read_rope(loader *l);
#endif
