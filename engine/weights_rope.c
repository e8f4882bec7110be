/* RoPE frequencies with everything that scales them folded in.
 *
 *   freq[i] = base^(-2i/n_rot) / factor_tensor[i] * scale(i)
 *
 * scale: none 1; linear 1/s; yarn between 1/s (slow dims) and 1 (fast dims) by a ramp over the dims
 * that turn between beta_slow and beta_fast times in the original context. longrope is a pair of
 * factor tensors: the long one as soon as the served context exceeds the original one, decided
 * once, because cached keys of another choice would not match. Sources: llama.cpp ggml_rope_yarn
 * and rope_factors; transformers modeling_rope_utils.py; Peng et al. 2023 (YaRN). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/planted.h"
#include "engine/weights_priv.h"

#define PI 3.14159265358979323846

typedef enum scaling { SCALING_NONE, SCALING_LINEAR, SCALING_YARN, SCALING_LONGROPE } scaling;

typedef struct rope_keys {
    scaling type;
    double base, factor, attn_factor, beta_fast, beta_slow;
} rope_keys;

static status read_type(const loader *l, scaling *out) {
    static const char *const names[] = {"none", "linear", "yarn", "longrope"};
    char key[KEY_BYTES];
    gguf_str type = {"linear", 6};
    bool found = false;
    key_name(l, "rope.scaling.type", key);
    const status s = gguf_get_str(l->g, key, &found, &type, l->err);
    if (s != OK) return s;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strlen(names[i]) == type.len && memcmp(names[i], type.s, type.len) == 0) {
            *out = (scaling)i;
            return OK;
        }
    return error_set(l->err, E_UNSUPPORTED, "key %s: not none, linear, yarn or longrope", key);
}

static status read_keys(const loader *l, rope_keys *k) {
    double old_scale = 0, ext = -1, yarn_attn = 1;
    status s = read_type(l, &k->type);
    if (s == OK) s = key_real(l, "rope.freq_base", 1e-3, 1e12, 10000, &k->base);
    if (s == OK) s = key_real(l, "rope.scale_linear", 0, 1e6, 0, &old_scale);
    if (s == OK) s = key_real(l, "rope.scaling.factor", 0, 1e6, old_scale, &k->factor);
    if (s == OK) s = key_real(l, "rope.scaling.attn_factor", 1e-3, 1e3, 1, &k->attn_factor);
    if (s == OK) s = key_real(l, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, 32, &k->beta_fast);
    if (s == OK) s = key_real(l, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, 1, &k->beta_slow);
    if (s == OK) s = key_real(l, "rope.scaling.yarn_ext_factor", -1e6, 1e6, ext, &ext);
    if (s == OK) s = key_real(l, "rope.scaling.yarn_attn_factor", -1e6, 1e6, yarn_attn, &yarn_attn);
    if (s != OK) return s;
    if (fabs(fabs(ext) - 1) > 1e-6 || fabs(yarn_attn - 1) > 1e-6)
        return error_set(l->err, E_UNSUPPORTED, "%s.rope.scaling.yarn_*_factor %g, %g is not built",
                         l->w->architecture, ext, yarn_attn);
    if (k->factor <= 0) k->factor = 1; /* 0 is how files say "none" */
    if (k->type == SCALING_NONE) k->factor = 1;
    if (k->type == SCALING_LONGROPE && fabs(k->factor - 1) > 1e-6)
        return error_set(l->err, E_UNSUPPORTED, "%s.rope.scaling.factor with longrope is not built",
                         l->w->architecture);
    l->w->info.rope_freq_base = k->base;
    return OK;
}

/* The tensor of divisors, or *out = NULL. */
static status read_factors(loader *l, scaling type, const float **out) {
    const int n = l->w->desc.n_rot / 2;
    tensor_view freqs = {0}, by_length[2] = {{0}, {0}};
    status s = tensor_vector(l, "rope_freqs.weight", false, n, &freqs);
    const bool longrope = type == SCALING_LONGROPE ||
                          gguf_find_tensor(l->g, "rope_factors_long.weight") != NULL ||
                          gguf_find_tensor(l->g, "rope_factors_short.weight") != NULL;
    if (s == OK && longrope)
        s = tensor_vector(l, "rope_factors_short.weight", true, n, &by_length[0]);
    if (s == OK && longrope)
        s = tensor_vector(l, "rope_factors_long.weight", true, n, &by_length[1]);
    if (s != OK) return s;
    if (longrope && freqs.data != NULL)
        return error_set(l->err, E_UNSUPPORTED,
                         "rope_freqs.weight beside rope_factors_long.weight");
    const bool is_long = l->w->desc.context_length > l->w->rope_original_context;
    const tensor_view *v = longrope ? &by_length[is_long] : &freqs;
    for (int i = 0; v->data != NULL && i < n; i++) {
        const float f = ((const float *)v->data)[i];
        if (!(f >= 1e-6f && f <= 1e9f)) /* also refuses NaN */
            return error_set(l->err, E_FORMAT, "tensor %s: element %d is %g", v->name, i,
                             (double)f);
    }
    *out = v->data;
    return OK;
}

/* The dim whose wave turns `rotations` times in the original context. */
static double yarn_dim(const rope_keys *k, int n_rot, int original_context, double rotations) {
    return n_rot * log(original_context / (rotations * 2 * PI)) / (2 * log(k->base));
}

/* Multiplier of pair i's frequency. */
static double yarn_scale(const rope_keys *k, int n_rot, int original_context, int i) {
    const double low = fmax(0, floor(yarn_dim(k, n_rot, original_context, k->beta_fast)));
    const double high = fmin(n_rot - 1, ceil(yarn_dim(k, n_rot, original_context, k->beta_slow)));
    const double t = (i - low) / fmax(0.001, high - low);
    const double extrapolate = 1 - fmin(1, fmax(0, t));
    return (1 - extrapolate) / k->factor + extrapolate;
}

status weights_read_rope(loader *l) {
    model_desc *d = &l->w->desc;
    rope_keys k = {0};
    const float *factors = NULL;
    status s = read_keys(l, &k);
    if (s == OK) s = read_factors(l, k.type, &factors);
    if (s != OK) return s;
    if (k.type == SCALING_YARN && k.base <= 1)
        return error_set(l->err, E_FORMAT, "%s.rope.freq_base %g with yarn", d->architecture,
                         k.base);
    const int n = d->n_rot / 2;
    l->w->rope_freq = malloc((size_t)n * sizeof *l->w->rope_freq);
    if (l->w->rope_freq == NULL) return error_set(l->err, E_NOMEM, "weights: rope frequencies");
    for (int i = 0; i < n; i++) {
        double f = pow(k.base, -2.0 * i / d->n_rot);
        if (factors != NULL && !PLANTED(FAULT_NO_ROPE_FACTORS)) f /= (double)factors[i];
        if (k.type == SCALING_LINEAR) f /= k.factor;
        if (k.type == SCALING_YARN) f *= yarn_scale(&k, d->n_rot, l->w->rope_original_context, i);
        l->w->rope_freq[i] = (float)f;
    }
    d->rope_freq = l->w->rope_freq;
    d->rope_mscale = (float)k.attn_factor;
    if (k.type == SCALING_YARN && k.factor > 1)
        d->rope_mscale = (float)(k.attn_factor * (1 + 0.1 * log(k.factor)));
    return OK;
}
