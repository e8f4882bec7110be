/* Tensors by name, each checked by type and shape. A tensor that the graph has no place for is
 * refused by name: leaving out what a file carries gives tokens that are wrong and look right. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/planted.h"
#include "engine/weights_priv.h"

static int tensor_index(const loader *l, const gguf_tensor *t) {
    return (int)(t - gguf_tensor_at(l->g, 0));
}

static status wrong_shape(const loader *l, const char *name, const gguf_tensor *t, int n_in,
                          int n_out) {
    return error_set(l->err, E_FORMAT,
                     "tensor %s: shape [%lld, %lld, %lld, %lld], expected [%d, %d]", name,
                     (long long)t->ne[0], (long long)t->ne[1], (long long)t->ne[2],
                     (long long)t->ne[3], n_in, n_out);
}

/* Finds name with shape [n_in, n_out]; view->data stays NULL when it is absent and optional. */
static status find(loader *l, const char *name, bool required, int n_in, int n_out,
                   tensor_view *out) {
    const gguf_tensor *t = gguf_find_tensor(l->g, name);
    if (t == NULL && required) return error_set(l->err, E_FORMAT, "tensor %s is missing", name);
    if (t == NULL) return OK;
    if (t->ne[0] != n_in || t->ne[1] != n_out || t->ne[2] != 1 || t->ne[3] != 1)
        return wrong_shape(l, name, t, n_in, n_out);
    if (!dtype_get((int)t->type)->weight)
        return error_set(l->err, E_UNSUPPORTED, "tensor %s: type %s is no weight type", name,
                         dtype_get((int)t->type)->name);
    const int i = tensor_index(l, t);
    l->used[i] = true;
    *out = (tensor_view){l->w->tensor_names[i], t->data, t->type, n_in, n_out};
    return OK;
}

status tensor_vector(loader *l, const char *name, bool required, int n, tensor_view *out) {
    const status s = find(l, name, required, n, 1, out);
    if (s != OK || out->data == NULL || out->type == DTYPE_F32) return s;
    return error_set(l->err, E_UNSUPPORTED, "tensor %s: type %s where F32 is expected", name,
                     dtype_get((int)out->type)->name);
}

static status layer_matrix(loader *l, int layer, const char *suffix, int n_in, int n_out,
                           tensor_view *out) {
    char name[TENSOR_NAME_BYTES];
    (void)snprintf(name, sizeof name, "blk.%d.%s.weight", layer, suffix);
    return find(l, name, true, n_in, n_out, out);
}

static status layer_vector(loader *l, int layer, const char *suffix, bool required, int n,
                           tensor_view *out) {
    char name[TENSOR_NAME_BYTES];
    (void)snprintf(name, sizeof name, "blk.%d.%s", layer, suffix);
    return tensor_vector(l, name, required, n, out);
}

static bool layer_has(const loader *l, int layer, const char *suffix) {
    char name[TENSOR_NAME_BYTES];
    (void)snprintf(name, sizeof name, "blk.%d.%s", layer, suffix);
    return gguf_find_tensor(l->g, name) != NULL;
}

/* Rows [first, first + n) of a fused matrix, or elements of a fused bias. */
static tensor_view rows_of(const tensor_view *fused, int first, int n) {
    tensor_view v = *fused;
    if (fused->n_out == 1) {
        v.data = (const float *)fused->data + first;
        v.n_in = n;
    } else {
        v.data =
            (const char *)fused->data + (size_t)first * dtype_row_bytes(fused->type, fused->n_in);
        v.n_out = n;
    }
    return v;
}

/* attn_qkv: rows of Q, then K, then V. */
static status split_qkv(loader *l, int layer, layer_desc *d) {
    const model_desc *m = &l->w->desc;
    const int q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim;
    tensor_view fused = {0}, bias = {0};
    status s = layer_matrix(l, layer, "attn_qkv", m->n_embd, q + 2 * kv, &fused);
    if (s == OK)
        s = layer_vector(l, layer, "attn_qkv.bias", l->arch == ARCH_QWEN2, q + 2 * kv, &bias);
    if (s != OK) return s;
    d->q = rows_of(&fused, 0, q);
    d->k = rows_of(&fused, q, kv);
    d->v = rows_of(&fused, q + kv, kv);
    if (bias.data == NULL) return OK;
    d->q_bias = rows_of(&bias, 0, q);
    d->k_bias = rows_of(&bias, q, kv);
    d->v_bias = rows_of(&bias, q + kv, kv);
    return OK;
}

static status find_qkv(loader *l, int layer, layer_desc *d) {
    const model_desc *m = &l->w->desc;
    const int q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim;
    const bool bias = l->arch == ARCH_QWEN2;
    status s;
    if (layer_has(l, layer, "attn_qkv.weight")) return split_qkv(l, layer, d);
    s = layer_matrix(l, layer, "attn_q", m->n_embd, q, &d->q);
    if (s == OK) s = layer_matrix(l, layer, "attn_k", m->n_embd, kv, &d->k);
    if (s == OK) s = layer_matrix(l, layer, "attn_v", m->n_embd, kv, &d->v);
    if (s == OK) s = layer_vector(l, layer, "attn_q.bias", bias, q, &d->q_bias);
    if (s == OK) s = layer_vector(l, layer, "attn_k.bias", bias, kv, &d->k_bias);
    if (s == OK) s = layer_vector(l, layer, "attn_v.bias", bias, kv, &d->v_bias);
    return s;
}

static status find_attention(loader *l, int layer, layer_desc *d) {
    const model_desc *m = &l->w->desc;
    const bool head_norm = l->arch == ARCH_QWEN3;
    status s = layer_vector(l, layer, "attn_norm.weight", true, m->n_embd, &d->attn_norm);
    if (s == OK) s = find_qkv(l, layer, d);
    if (s == OK && head_norm)
        s = layer_vector(l, layer, "attn_q_norm.weight", true, m->head_dim, &d->q_norm);
    if (s == OK && head_norm)
        s = layer_vector(l, layer, "attn_k_norm.weight", true, m->head_dim, &d->k_norm);
    if (s == OK)
        s = layer_matrix(l, layer, "attn_output", m->n_heads * m->head_dim, m->n_embd, &d->o);
    if (s == OK) s = layer_vector(l, layer, "attn_output.bias", false, m->n_embd, &d->o_bias);
    return s;
}

static status find_feed_forward(loader *l, int layer, layer_desc *d) {
    const model_desc *m = &l->w->desc;
    status s = layer_vector(l, layer, "ffn_norm.weight", true, m->n_embd, &d->ffn_norm);
    if (s == OK) s = layer_matrix(l, layer, "ffn_down", m->n_ff, m->n_embd, &d->down);
    if (s != OK) return s;
    if (l->arch == ARCH_PHI3 && !layer_has(l, layer, "ffn_gate.weight")) {
        tensor_view fused = {0}; /* rows of gate, then of up */
        s = layer_matrix(l, layer, "ffn_up", m->n_embd, 2 * m->n_ff, &fused);
        if (s != OK) return s;
        d->gate = rows_of(&fused, 0, m->n_ff);
        d->up = rows_of(&fused, m->n_ff, m->n_ff);
        return OK;
    }
    s = layer_matrix(l, layer, "ffn_gate", m->n_embd, m->n_ff, &d->gate);
    if (s == OK) s = layer_matrix(l, layer, "ffn_up", m->n_embd, m->n_ff, &d->up);
    return s;
}

/* Some old files carry tables of rotations that were never read by anyone. */
static bool is_harmless(const char *name) {
    const char *rot = strstr(name, ".attn_rot_embd");
    return rot != NULL && strncmp(name, "blk.", 4) == 0;
}

static status refuse_unused(const loader *l) {
    for (int i = 0; i < gguf_n_tensors(l->g); i++)
        if (!l->used[i] && !is_harmless(l->w->tensor_names[i]))
            return error_set(l->err, E_UNSUPPORTED, "tensor %s has no place in a %s of %d layers",
                             l->w->tensor_names[i], l->w->architecture, l->w->desc.n_layers);
    return OK;
}

static void plant_faults(layer_desc *d) {
    const tensor_view none = {0}, gate = d->gate;
    if (PLANTED(FAULT_NO_BIAS)) d->q_bias = d->k_bias = d->v_bias = none;
    if (PLANTED(FAULT_NO_HEAD_NORM)) d->q_norm = d->k_norm = none;
    if (PLANTED(FAULT_GATE_UP)) {
        d->gate = d->up;
        d->up = gate;
    }
}

status weights_find_tensors(loader *l) {
    model_desc *d = &l->w->desc;
    status s = find(l, "token_embd.weight", true, d->n_embd, d->n_vocab, &d->token_embd);
    if (s == OK) s = tensor_vector(l, "output_norm.weight", true, d->n_embd, &d->output_norm);
    if (s == OK) s = find(l, "output.weight", false, d->n_embd, d->n_vocab, &d->output);
    if (s == OK) s = tensor_vector(l, "output.bias", false, d->n_vocab, &d->output_bias);
    if (s == OK && d->output.data == NULL) d->output = d->token_embd; /* tied */
    for (int layer = 0; layer < d->n_layers && s == OK; layer++) {
        s = find_attention(l, layer, &l->w->layers[layer]);
        if (s == OK) s = find_feed_forward(l, layer, &l->w->layers[layer]);
        plant_faults(&l->w->layers[layer]);
    }
    d->layers = l->w->layers;
    return s == OK ? refuse_unused(l) : s;
}
