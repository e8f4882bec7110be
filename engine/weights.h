/* From a GGUF file to a model_desc: architecture, hyper-parameters, tensors found by name and
 * checked by shape, RoPE frequencies with scaling folded in, fused tensors split into views. Shapes
 * come from metadata only, never from a name. Architectures: llama, qwen2, qwen3, phi3. Sources:
 * llama.cpp src/models, transformers modeling_rope_utils.py. Thread: one at a time; immutable after
 * open. */
#ifndef INFERD_ENGINE_WEIGHTS_H
#define INFERD_ENGINE_WEIGHTS_H

#include "engine/gguf.h"
#include "kernels/model_desc.h"

typedef struct weights weights;

/* Borrows g until close. context_length: as served, 0 = the file's own; above the trained one:
 * E_TOO_LARGE. (It decides longrope's long or short factors.) E_UNSUPPORTED names the architecture;
 * E_FORMAT names the missing tensor or the tensor and the two shapes, or the key out of range. */
BASE_MUST_USE status weights_open(const gguf *g, int context_length, weights **out, error *err);
void weights_close(weights *w);

/* Lives as long as w. Its views' data lives as long as g. */
const model_desc *weights_desc(const weights *w);

/* Facts for ModelInfo. Strings live as long as w. */
typedef struct model_info {
    const char *name; /* general.name, or "" */
    const char *architecture;
    const char *quantization; /* e.g. "Q4_K_M": from general.file_type when known, else the type of
                                 most weight bytes */
    uint64_t n_parameters;
    int trained_context_length;
    double rope_freq_base;
} model_info;
const model_info *weights_info(const weights *w);
#endif
