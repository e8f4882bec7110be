/* Hyper-parameters: every number is read by name, bounded, and held against the others. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/planted.h"
#include "base/utf8.h"
#include "engine/weights_priv.h"

void key_name(const loader *l, const char *suffix, char out[KEY_BYTES]) {
    (void)snprintf(out, KEY_BYTES, "%s.%s", l->w->architecture, suffix);
}

/* A scalar, or an array of one equal number a layer. */
static status scalar_or_uniform(const loader *l, const char *key, bool *found, int64_t *out) {
    gguf_array a;
    int64_t first, v;
    error scratch;
    const bool per_layer = l->w->desc.n_layers > 0; /* not block_count itself */
    if (!per_layer || !gguf_has(l->g, key) || gguf_get_array(l->g, key, found, &a, &scratch) != OK)
        return gguf_get_i64(l->g, key, found, out, l->err);
    if (!gguf_array_i64(&a, 0, &first))
        return error_set(l->err, E_FORMAT, "key %s: an array that is empty or of no integers", key);
    if (a.count != (uint64_t)l->w->desc.n_layers)
        return error_set(l->err, E_FORMAT, "key %s: %llu elements for %d layers", key,
                         (unsigned long long)a.count, l->w->desc.n_layers);
    for (uint64_t i = 1; i < a.count; i++)
        if (!gguf_array_i64(&a, i, &v) || v != first)
            return error_set(l->err, E_UNSUPPORTED, "key %s: layers of different sizes", key);
    *found = true;
    *out = first;
    return OK;
}

status key_int(const loader *l, const char *suffix, int64_t lo, int64_t hi, int64_t fallback,
               int *out) {
    char key[KEY_BYTES];
    bool found = false;
    int64_t v = 0;
    key_name(l, suffix, key);
    const status s = scalar_or_uniform(l, key, &found, &v);
    if (s != OK) return s;
    if (!found && fallback < 0) return error_set(l->err, E_FORMAT, "key %s is missing", key);
    if (!found) v = fallback;
    if (v < lo || v > hi)
        return error_set(l->err, E_FORMAT, "key %s: %lld is not in %lld..%lld", key, (long long)v,
                         (long long)lo, (long long)hi);
    *out = (int)v;
    return OK;
}

status key_real(const loader *l, const char *suffix, double lo, double hi, double fallback,
                double *out) {
    char key[KEY_BYTES];
    bool found = false;
    double v = fallback;
    key_name(l, suffix, key);
    const status s = gguf_get_f64(l->g, key, &found, &v, l->err);
    if (s != OK) return s;
    if (!found && isnan(fallback)) return error_set(l->err, E_FORMAT, "key %s is missing", key);
    if (!found) v = fallback;
    if (!(v >= lo && v <= hi))
        return error_set(l->err, E_FORMAT, "key %s: %g is not in %g..%g", key, v, lo, hi);
    *out = v;
    return OK;
}

static status read_architecture(loader *l) {
    static const struct {
        const char *name;
        architecture arch;
        bool neox; /* RoPE pairs (i, i + n_rot/2): llama's rows are permuted for (2i, 2i+1) */
    } known[] = {{"llama", ARCH_LLAMA, false},
                 {"qwen2", ARCH_QWEN2, true},
                 {"qwen3", ARCH_QWEN3, true},
                 {"phi3", ARCH_PHI3, true}};
    gguf_str name;
    bool found = false;
    const status s = gguf_get_str(l->g, "general.architecture", &found, &name, l->err);
    if (s != OK) return s;
    if (!found) return error_set(l->err, E_FORMAT, "key general.architecture is missing");
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strlen(known[i].name) != name.len || memcmp(known[i].name, name.s, name.len) != 0)
            continue;
        l->arch = known[i].arch;
        l->w->architecture = l->w->desc.architecture = known[i].name;
        l->w->desc.rope_neox = known[i].neox != PLANTED(FAULT_ROPE_PAIRING);
        return OK;
    }
    const bool printable = name.len <= 64 && utf8_valid(name.s, name.len);
    return error_set(l->err, E_UNSUPPORTED,
                     "architecture %.*s is not built (llama, qwen2, qwen3, phi3 are)",
                     printable ? (int)name.len : 1, printable ? name.s : "?");
}

/* Keys that would change the graph, in files that the four architectures do not normally write:
 * a model that is computed without them would be wrong and look plausible. */
static status refuse_what_is_not_built(const loader *l) {
    static const struct {
        const char *suffix;
        double neutral; /* the value that changes nothing */
    } reals[] = {{"logit_scale", 1},
                 {"final_logit_softcapping", 0},
                 {"residual_scale", 1},
                 {"embedding_scale", 1},
                 {"attention.scale", 0},
                 {"attn_logit_softcapping", 0},
                 {"attention.max_alibi_bias", 0},
                 {"attention.clamp_kqv", 0}};
    char key[KEY_BYTES];
    bool found = false, causal = true;
    double v;
    int experts;
    status s = key_int(l, "expert_count", 0, INT_MAX, 0, &experts);
    if (s != OK) return s;
    if (experts > 0)
        return error_set(l->err, E_UNSUPPORTED,
                         "%s.expert_count: mixtures of experts are not built", l->w->architecture);
    for (size_t i = 0; i < sizeof reals / sizeof reals[0]; i++) {
        s = key_real(l, reals[i].suffix, -1e300, 1e300, reals[i].neutral, &v);
        if (s != OK) return s;
        if (v < reals[i].neutral || v > reals[i].neutral)
            return error_set(l->err, E_UNSUPPORTED, "key %s.%s: %g is not built",
                             l->w->architecture, reals[i].suffix, v);
    }
    key_name(l, "attention.causal", key);
    s = gguf_get_bool(l->g, key, &found, &causal, l->err);
    if (s != OK) return s;
    if (!causal) return error_set(l->err, E_UNSUPPORTED, "key %s: false is not built", key);
    key_name(l, "attention.sliding_window_pattern", key);
    if (gguf_has(l->g, key)) return error_set(l->err, E_UNSUPPORTED, "key %s is not built", key);
    return OK;
}

static status read_heads(loader *l) {
    model_desc *d = &l->w->desc;
    int value_length;
    status s = key_int(l, "attention.head_count", 1, LIMIT_HEADS, -1, &d->n_heads);
    if (s == OK)
        s = key_int(l, "attention.head_count_kv", 1, LIMIT_HEADS, d->n_heads, &d->n_kv_heads);
    if (s != OK) return s;
    if (d->n_heads % d->n_kv_heads != 0)
        return error_set(l->err, E_FORMAT, "%s.attention.head_count %d is no multiple of _kv %d",
                         l->w->architecture, d->n_heads, d->n_kv_heads);
    /* key_length decides; only without it is the head the embedding's share. */
    const int share = d->n_embd % d->n_heads == 0 ? d->n_embd / d->n_heads : -1;
    s = key_int(l, "attention.key_length", 2, LIMIT_HEAD_DIM, share, &d->head_dim);
    if (s == OK) s = key_int(l, "attention.value_length", 1, INT_MAX, d->head_dim, &value_length);
    if (s == OK) s = key_int(l, "rope.dimension_count", 2, LIMIT_HEAD_DIM, d->head_dim, &d->n_rot);
    if (s != OK) return s;
    if (value_length != d->head_dim)
        return error_set(l->err, E_UNSUPPORTED, "%s.attention.value_length %d is not key_length %d",
                         l->w->architecture, value_length, d->head_dim);
    if (d->head_dim % 2 != 0 || d->n_rot % 2 != 0 || d->n_rot > d->head_dim)
        return error_set(l->err, E_FORMAT,
                         "%s: key_length %d and rope.dimension_count %d must be even, the second "
                         "not above the first",
                         l->w->architecture, d->head_dim, d->n_rot);
    d->attn_scale = (float)(1.0 / sqrt((double)d->head_dim));
    if (PLANTED(FAULT_ATTN_SCALE)) d->attn_scale *= d->attn_scale;
    return OK;
}

static status read_context(loader *l, int context_length) {
    model_desc *d = &l->w->desc;
    int window;
    status s =
        key_int(l, "context_length", 1, LIMIT_CONTEXT, -1, &l->w->info.trained_context_length);
    if (s == OK) s = key_int(l, "attention.sliding_window", 0, INT_MAX, 0, &window);
    if (s != OK) return s;
    const int trained = l->w->info.trained_context_length;
    if (context_length > trained)
        return error_set(l->err, E_TOO_LARGE, "context length %d is above the model's %d",
                         context_length, trained);
    d->context_length = context_length > 0 ? context_length : trained;
    /* A window that no served position can reach beyond is none. */
    d->sliding_window = window < d->context_length ? window : 0;
    if (PLANTED(FAULT_WINDOW) && d->sliding_window > 0) d->sliding_window++;
    return key_int(l, "rope.scaling.original_context_length", 1, LIMIT_CONTEXT, trained,
                   &l->w->rope_original_context);
}

/* The vocabulary is as long as the embedding; a tokenizer of another length belongs to another
 * model. */
static status read_vocabulary(loader *l) {
    gguf_array tokens;
    bool found = false;
    const gguf_tensor *t = gguf_find_tensor(l->g, "token_embd.weight");
    if (t == NULL) return error_set(l->err, E_FORMAT, "tensor token_embd.weight is missing");
    if (t->n_dims != 2 || t->ne[1] > LIMIT_VOCAB)
        return error_set(l->err, E_FORMAT, "tensor token_embd.weight: %d dimensions, %lld rows",
                         t->n_dims, (long long)t->ne[1]);
    l->w->desc.n_vocab = (int)t->ne[1];
    const status s = gguf_get_array(l->g, "tokenizer.ggml.tokens", &found, &tokens, l->err);
    if (s != OK) return s;
    if (found && tokens.count != (uint64_t)t->ne[1])
        return error_set(l->err, E_FORMAT, "tensor token_embd.weight has %lld rows for %llu tokens",
                         (long long)t->ne[1], (unsigned long long)tokens.count);
    return OK;
}

static status read_name(loader *l) {
    gguf_str name = {"", 0};
    bool found = false;
    const status s = gguf_get_str(l->g, "general.name", &found, &name, l->err);
    if (s != OK) return s;
    if (name.len > 1024 || !utf8_valid(name.s, name.len) || memchr(name.s, 0, name.len) != NULL)
        return error_set(l->err, E_FORMAT, "key general.name: not text of at most 1024 bytes");
    l->w->name = malloc(name.len + 1);
    if (l->w->name == NULL) return error_set(l->err, E_NOMEM, "weights: name");
    if (name.len > 0) memcpy(l->w->name, name.s, name.len);
    l->w->name[name.len] = '\0';
    l->w->info.name = l->w->name;
    l->w->info.architecture = l->w->architecture;
    return OK;
}

status weights_read_keys(loader *l, int context_length) {
    model_desc *d = &l->w->desc;
    double eps = 0;
    if (context_length < 0)
        return error_set(l->err, E_INVAL, "context length %d is negative", context_length);
    status s = read_architecture(l);
    if (s == OK) s = read_name(l);
    if (s == OK) s = key_int(l, "block_count", 1, LIMIT_LAYERS, -1, &d->n_layers);
    if (s == OK) s = refuse_what_is_not_built(l);
    if (s == OK) s = key_int(l, "embedding_length", 1, LIMIT_EMBED, -1, &d->n_embd);
    if (s == OK) s = key_int(l, "feed_forward_length", 1, LIMIT_EMBED, -1, &d->n_ff);
    if (s == OK) s = key_real(l, "attention.layer_norm_rms_epsilon", 1e-30, 1e3, (double)NAN, &eps);
    if (s == OK) s = read_heads(l);
    if (s == OK) s = read_context(l, context_length);
    if (s == OK) s = read_vocabulary(l);
    d->norm_eps = PLANTED(FAULT_EPS) ? 1e-5f : (float)eps;
    return s;
}
