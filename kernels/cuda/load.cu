/* Weights: from the model's views to the device. Every matrix goes through a staging buffer (rows
 * as in the file) and is repacked there; q, k, v and gate, up of one type become one matrix;
 * vectors become float32. Rows of q and k are reordered for NEOX pairing, so that every kernel
 * rotates (2i, 2i+1): scores do not change, as q and k move alike. The embedding stays as it is in
 * the file: single rows are read. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"

namespace {

enum { STAGING_BYTES = 64 << 20 };

struct loader {
    cuda_backend *b;
    const model_desc *m;
    error *err;
    uint8_t *staging;
    int32_t *exponent, *q_rows, *k_rows; /* device; row maps are NULL without NEOX */
    int32_t *host_q_rows, *host_k_rows;
    backend_progress *progress;
    void *progress_ctx;
    double total, done;
};

void report(loader *l, size_t bytes) {
    l->done += (double)bytes;
    if (l->progress != nullptr && l->total > 0) {
        l->progress(l->progress_ctx, l->done < l->total ? l->done / l->total : 1.0);
    }
}

status device_error(loader *l, const char *what) {
    return error_set(l->err, cuda_keep(l->b, E_DEVICE), "cuda: %s: %s", what,
                     cudaGetErrorString(cudaGetLastError()));
}

status take(loader *l, size_t bytes, void **out, const char *what) {
    if (cuda_take(l->b, bytes, out) == OK) return OK;
    size_t free_bytes = 0, total = 0;
    (void)cudaMemGetInfo(&free_bytes, &total);
    (void)cudaGetLastError();
    return error_set(l->err, E_NOMEM,
                     "cuda: no memory for %s: need %zu MiB, have %zu MiB free of %zu MiB "
                     "(weights so far %zu MiB)",
                     what, bytes >> 20, free_bytes >> 20, total >> 20,
                     (size_t)l->b->weights_bytes >> 20);
}

/* Ordered before what follows on the backend's stream, and done with `from` on return. */
bool upload(loader *l, void *to, const void *from, size_t bytes) {
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, l->b->stream) == cudaSuccess &&
           cudaStreamSynchronize(l->b->stream) == cudaSuccess;
}

/* A float32 vector, or NULL when the model has none; rows: where element i comes from. */
status load_vector(loader *l, const tensor_view *v, const int32_t *rows, int n, float **out) {
    *out = nullptr;
    if (v->data == nullptr) return OK;
    if (v->type != DTYPE_F32 || v->n_in * v->n_out != n) {
        return error_set(l->err, E_UNSUPPORTED, "cuda: %s: a float32 vector of %d is expected",
                         v->name, n);
    }
    status s = take(l, (size_t)n * sizeof(float), (void **)out, v->name);
    if (s != OK) return s;
    float *host = (float *)malloc((size_t)n * sizeof(float));
    if (host == nullptr) return error_set(l->err, E_NOMEM, "cuda: %s: host memory", v->name);
    const float *from = (const float *)v->data;
    for (int i = 0; i < n; i++) host[i] = from[rows != nullptr ? rows[i] : i];
    const bool ok = upload(l, *out, host, (size_t)n * sizeof(float));
    free(host);
    return ok ? OK : device_error(l, v->name);
}

/* Norm weights as halves, for the kernels that multiply them into half fragments. */
status load_half(loader *l, const tensor_view *v, int n, uint16_t **out) {
    status s = take(l, (size_t)n * sizeof(uint16_t), (void **)out, v->name);
    if (s != OK) return s;
    uint16_t *host = (uint16_t *)malloc((size_t)n * sizeof(uint16_t));
    if (host == nullptr) return error_set(l->err, E_NOMEM, "cuda: %s: host memory", v->name);
    const float *from = (const float *)v->data;
    for (int i = 0; i < n; i++) host[i] = __half_as_ushort(__float2half_rn(from[i]));
    const bool ok = upload(l, *out, host, (size_t)n * sizeof(uint16_t));
    free(host);
    return ok ? OK : device_error(l, v->name);
}

status matrix_take(loader *l, cuda_matrix *m, weight_format f, int n_tiles, int n_out, int n_in,
                   const char *name) {
    memset(m, 0, sizeof *m);
    m->format = f;
    m->n_out = n_out;
    m->n_in = n_in;
    m->n_tiles = n_tiles;
    m->n_units = weight_units(f, n_in);
    status s = take(l, (size_t)n_tiles * weight_tile_bytes(f, n_in), (void **)&m->chunks, name);
    if (s != OK) return s;
    return take(l, (size_t)n_tiles * TILE_ROWS * sizeof(float), (void **)&m->row_scale, name);
}

/* Copies rows through the staging buffer and repacks them into tiles tile0, tile0 + stride, ... */
status load_rows(loader *l, const tensor_view *v, const cuda_matrix *m, int tile0, int stride,
                 const int32_t *row_from, float scale) {
    const size_t row_bytes = dtype_row_bytes(v->type, v->n_in);
    const int fit = (int)(STAGING_BYTES / row_bytes) / TILE_ROWS * TILE_ROWS;
    const int step = row_from != nullptr || fit > v->n_out ? v->n_out : fit;
    if (step <= 0) return error_set(l->err, E_UNSUPPORTED, "cuda: %s: a row is too long", v->name);
    for (int r = 0; r < v->n_out; r += step) {
        const int n = v->n_out - r < step ? v->n_out - r : step;
        const size_t bytes = (size_t)n * row_bytes;
        if (cudaMemcpyAsync(l->staging, (const uint8_t *)v->data + (size_t)r * row_bytes, bytes,
                            cudaMemcpyHostToDevice, l->b->stream) != cudaSuccess) {
            return device_error(l, v->name);
        }
        repack_args a = {};
        a.type = v->type;
        a.blocks = l->staging;
        a.n_rows = n;
        a.n_in = v->n_in;
        a.row_from = row_from;
        a.tile0 = tile0 + r / TILE_ROWS * stride;
        a.tile_stride = stride;
        a.exponent = l->exponent;
        a.scale = scale;
        if (cuda_repack(m, &a, l->b->stream) != OK) return device_error(l, v->name);
        report(l, bytes);
    }
    return OK;
}

status check_matrix(loader *l, const tensor_view *v, int n_out, int n_in) {
    if (v->data == nullptr || v->n_out != n_out || v->n_in != n_in) {
        return error_set(l->err, E_UNSUPPORTED, "cuda: %s: shape [%d, %d] is expected", v->name,
                         n_out, n_in);
    }
    if (weight_format_of(v->type) == WF_COUNT || dtype_row_bytes(v->type, n_in) == 0) {
        const dtype_info *info = dtype_get((int)v->type);
        return error_set(l->err, E_UNSUPPORTED, "cuda: %s: weight type %s is not built", v->name,
                         info != nullptr ? info->name : "?");
    }
    return OK;
}

int tiles_of(int n_out) {
    return (n_out + TILE_ROWS - 1) / TILE_ROWS;
}

status load_matrix(loader *l, const tensor_view *v, int n_out, int n_in, float scale,
                   cuda_matrix *out) {
    status s = check_matrix(l, v, n_out, n_in);
    if (s == OK) {
        s = matrix_take(l, out, weight_format_of(v->type), tiles_of(n_out), n_out, n_in, v->name);
    }
    return s == OK ? load_rows(l, v, out, 0, 1, nullptr, scale) : s;
}

status load_qkv(loader *l, const layer_desc *d, cuda_layer *y) {
    const model_desc *m = l->m;
    const tensor_view *v[3] = {&d->q, &d->k, &d->v};
    const int32_t *rows[3] = {l->q_rows, l->k_rows, nullptr};
    const int n_q = m->n_heads * m->head_dim, n_kv = m->n_kv_heads * m->head_dim;
    const int n_out[3] = {n_q, n_kv, n_kv}, column[3] = {0, n_q, n_q + n_kv};
    for (int i = 0; i < 3; i++) {
        const status s = check_matrix(l, v[i], n_out[i], m->n_embd);
        if (s != OK) return s;
    }
    /* neighbours of one format, in whole tiles, share a matrix */
    y->n_qkv = 0;
    for (int i = 0; i < 3;) {
        const weight_format f = weight_format_of(v[i]->type);
        int end = i + 1, total = n_out[i];
        while (end < 3 && weight_format_of(v[end]->type) == f && total % TILE_ROWS == 0) {
            total += n_out[end++];
        }
        cuda_matrix *x = &y->qkv[y->n_qkv];
        y->qkv_column[y->n_qkv++] = column[i];
        status s = matrix_take(l, x, f, tiles_of(total), total, m->n_embd, v[i]->name);
        for (int tile = 0; s == OK && i < end; i++) {
            s = load_rows(l, v[i], x, tile, 1, rows[i], 1.0f);
            tile += n_out[i] / TILE_ROWS;
        }
        if (s != OK) return s;
    }
    return OK;
}

status load_qkv_bias(loader *l, const layer_desc *d, cuda_layer *y) {
    const model_desc *m = l->m;
    const tensor_view *v[3] = {&d->q_bias, &d->k_bias, &d->v_bias};
    const int32_t *rows[3] = {l->host_q_rows, l->host_k_rows, nullptr};
    const int n_q = m->n_heads * m->head_dim, n_kv = m->n_kv_heads * m->head_dim;
    const int n[3] = {n_q, n_kv, n_kv};
    y->qkv_bias = nullptr;
    if (v[0]->data == nullptr && v[1]->data == nullptr && v[2]->data == nullptr) return OK;
    float *host = (float *)calloc((size_t)l->b->shape.n_qkv_out, sizeof(float));
    if (host == nullptr) return error_set(l->err, E_NOMEM, "cuda: bias: host memory");
    status s = OK;
    for (int i = 0, at = 0; i < 3 && s == OK; at += n[i++]) {
        if (v[i]->data == nullptr) continue;
        if (v[i]->type != DTYPE_F32 || v[i]->n_in * v[i]->n_out != n[i]) {
            s = error_set(l->err, E_UNSUPPORTED, "cuda: %s: %d float32 values are expected",
                          v[i]->name, n[i]);
            break;
        }
        const float *from = (const float *)v[i]->data;
        for (int j = 0; j < n[i]; j++) host[at + j] = from[rows[i] != nullptr ? rows[i][j] : j];
    }
    const size_t bytes = (size_t)l->b->shape.n_qkv_out * sizeof(float);
    if (s == OK) s = take(l, bytes, (void **)&y->qkv_bias, "bias");
    if (s == OK && !upload(l, y->qkv_bias, host, bytes)) {
        s = device_error(l, "bias");
    }
    free(host);
    return s;
}

status load_gate_up(loader *l, const layer_desc *d, cuda_layer *y) {
    const model_desc *m = l->m;
    status s = check_matrix(l, &d->gate, m->n_ff, m->n_embd);
    if (s == OK) s = check_matrix(l, &d->up, m->n_ff, m->n_embd);
    if (s != OK) return s;
    const weight_format f = weight_format_of(d->gate.type);
    y->n_gate_up = f == weight_format_of(d->up.type) && m->n_ff % TILE_ROWS == 0 ? 1 : 2;
    if (y->n_gate_up == 2) {
        s = load_matrix(l, &d->gate, m->n_ff, m->n_embd, 1.0f, &y->gate_up[0]);
        return s == OK ? load_matrix(l, &d->up, m->n_ff, m->n_embd, 1.0f, &y->gate_up[1]) : s;
    }
    cuda_matrix *x = &y->gate_up[0];
    s = matrix_take(l, x, f, 2 * tiles_of(m->n_ff), 2 * m->n_ff, m->n_embd, d->gate.name);
    if (s == OK) s = load_rows(l, &d->gate, x, 0, 2, nullptr, 1.0f);
    return s == OK ? load_rows(l, &d->up, x, 1, 2, nullptr, 1.0f) : s;
}

status load_layer(loader *l, const layer_desc *d, cuda_layer *y) {
    const model_desc *m = l->m;
    status s = load_qkv(l, d, y);
    if (s == OK) s = load_qkv_bias(l, d, y);
    if (s == OK) s = load_matrix(l, &d->o, m->n_embd, m->n_heads * m->head_dim, 1.0f, &y->o);
    if (s == OK) s = load_vector(l, &d->o_bias, nullptr, m->n_embd, &y->o_bias);
    if (s == OK) s = load_gate_up(l, d, y);
    /* SwiGLU outputs are stored times 2^-3 */
    if (s == OK) {
        s = load_matrix(l, &d->down, m->n_embd, m->n_ff, 1.0f / ACT_HALF_SCALE, &y->down);
    }
    if (s == OK) s = load_vector(l, &d->attn_norm, nullptr, m->n_embd, &y->attn_norm);
    if (s == OK) s = load_vector(l, &d->ffn_norm, nullptr, m->n_embd, &y->ffn_norm);
    if (s == OK) s = load_vector(l, &d->q_norm, l->host_q_rows, m->head_dim, &y->q_norm);
    if (s == OK) s = load_vector(l, &d->k_norm, l->host_k_rows, m->head_dim, &y->k_norm);
    if (s == OK && (y->attn_norm == nullptr || y->ffn_norm == nullptr)) {
        s = error_set(l->err, E_UNSUPPORTED, "cuda: a layer without norm weights");
    }
    if (s == OK) s = load_half(l, &d->attn_norm, m->n_embd, &y->attn_norm_half);
    return s == OK ? load_half(l, &d->ffn_norm, m->n_embd, &y->ffn_norm_half) : s;
}

/* Row i of a projected head is row rows[i] of the file: pairs (i, i + n_rot/2) become (2i, 2i+1).
 */
void neox_rows(const model_desc *m, int n_heads, int32_t *rows) {
    for (int h = 0; h < n_heads; h++) {
        for (int i = 0; i < m->head_dim; i++) {
            const int from = i >= m->n_rot ? i : i % 2 == 0 ? i / 2 : m->n_rot / 2 + i / 2;
            rows[h * m->head_dim + i] = h * m->head_dim + from;
        }
    }
}

status load_row_maps(loader *l) {
    const model_desc *m = l->m;
    if (!m->rope_neox || m->n_rot == 0) return OK;
    const int n_q = m->n_heads * m->head_dim, n_kv = m->n_kv_heads * m->head_dim;
    const size_t q_bytes = (size_t)n_q * sizeof(int32_t), kv_bytes = (size_t)n_kv * sizeof(int32_t);
    l->host_q_rows = (int32_t *)malloc(q_bytes);
    l->host_k_rows = (int32_t *)malloc(kv_bytes);
    if (l->host_q_rows == nullptr || l->host_k_rows == nullptr) {
        return error_set(l->err, E_NOMEM, "cuda: row maps: host memory");
    }
    neox_rows(m, m->n_heads, l->host_q_rows);
    neox_rows(m, m->n_kv_heads, l->host_k_rows);
    status s = take(l, q_bytes, (void **)&l->q_rows, "row maps");
    if (s == OK) s = take(l, kv_bytes, (void **)&l->k_rows, "row maps");
    if (s != OK) return s;
    if (!upload(l, l->q_rows, l->host_q_rows, q_bytes) ||
        !upload(l, l->k_rows, l->host_k_rows, kv_bytes)) {
        return device_error(l, "row maps");
    }
    return OK;
}

status check_shape(loader *l) {
    const model_desc *m = l->m;
    if (m->n_embd % 16 != 0 || m->n_ff % 16 != 0 || (m->n_heads * m->head_dim) % 16 != 0) {
        return error_set(l->err, E_UNSUPPORTED,
                         "cuda: embedding %d, feed-forward %d and heads * head size %d must be "
                         "multiples of 16",
                         m->n_embd, m->n_ff, m->n_heads * m->head_dim);
    }
    return OK;
}

/* Staging holds a whole q or k when rows are reordered, else a part of any tensor. */
size_t staging_bytes(const model_desc *m) {
    size_t most = STAGING_BYTES;
    for (int i = 0; m->rope_neox && i < m->n_layers; i++) {
        const layer_desc *d = &m->layers[i];
        const size_t q = (size_t)d->q.n_out * dtype_row_bytes(d->q.type, d->q.n_in);
        const size_t k = (size_t)d->k.n_out * dtype_row_bytes(d->k.type, d->k.n_in);
        most = q > most ? q : most;
        most = k > most ? k : most;
    }
    return most;
}

int longest_rows(const model_desc *m) {
    int n = m->n_vocab > m->n_ff ? m->n_vocab : m->n_ff;
    n = n > m->n_embd ? n : m->n_embd;
    return n > m->n_heads * m->head_dim ? n : m->n_heads * m->head_dim;
}

double weight_total(const model_desc *m) {
    double n = 0;
    for (int i = 0; i < m->n_layers; i++) {
        const layer_desc *d = &m->layers[i];
        const tensor_view *v[7] = {&d->q, &d->k, &d->v, &d->o, &d->gate, &d->up, &d->down};
        for (int j = 0; j < 7; j++) {
            n += (double)v[j]->n_out * (double)dtype_row_bytes(v[j]->type, v[j]->n_in);
        }
    }
    return n + (double)m->n_vocab * (double)dtype_row_bytes(m->output.type, m->n_embd);
}

status load_ends(loader *l) {
    const model_desc *m = l->m;
    cuda_backend *b = l->b;
    const size_t row = dtype_row_bytes(m->token_embd.type, m->n_embd);
    if (m->token_embd.data == nullptr || row == 0) {
        return error_set(l->err, E_UNSUPPORTED, "cuda: %s: no usable embedding",
                         m->token_embd.name);
    }
    b->embd_type = m->token_embd.type;
    status s = take(l, row * (size_t)m->n_vocab, &b->embd, "embedding");
    if (s != OK) return s;
    if (!upload(l, b->embd, m->token_embd.data, row * (size_t)m->n_vocab)) {
        return device_error(l, "embedding");
    }
    s = load_matrix(l, &m->output, m->n_vocab, m->n_embd, 1.0f, &b->head);
    if (s == OK) s = load_vector(l, &m->output_bias, nullptr, m->n_vocab, &b->head_bias);
    if (s == OK) s = load_vector(l, &m->output_norm, nullptr, m->n_embd, &b->output_norm);
    if (s == OK && b->output_norm == nullptr) {
        s = error_set(l->err, E_UNSUPPORTED, "cuda: no output norm");
    }
    if (s == OK) s = load_half(l, &m->output_norm, m->n_embd, &b->output_norm_half);
    tensor_view freq = {"rope frequencies", m->rope_freq, DTYPE_F32, m->n_rot / 2, 1};
    if (s == OK && m->n_rot > 0) s = load_vector(l, &freq, nullptr, m->n_rot / 2, &b->rope_freq);
    if (s != OK || m->never_sampled == nullptr) return s;
    s = take(l, (size_t)m->n_vocab, (void **)&b->never_sampled, "sampling mask");
    if (s == OK && !upload(l, b->never_sampled, m->never_sampled, (size_t)m->n_vocab)) {
        s = device_error(l, "sampling mask");
    }
    return s;
}

void keep_shape(cuda_backend *b, const model_desc *m) {
    cuda_shape *s = &b->shape;
    s->n_layers = m->n_layers;
    s->n_embd = m->n_embd;
    s->n_ff = m->n_ff;
    s->n_heads = m->n_heads;
    s->n_kv_heads = m->n_kv_heads;
    s->head_dim = m->head_dim;
    s->n_vocab = m->n_vocab;
    s->n_qkv_out = (m->n_heads + 2 * m->n_kv_heads) * m->head_dim;
    s->context_length = m->context_length;
    s->n_rot = m->n_rot;
    s->norm_eps = m->norm_eps;
    s->rope_mscale = m->rope_mscale;
    b->desc = *m;
    b->desc.layers = nullptr;
    b->desc.rope_freq = nullptr;
    b->desc.never_sampled = nullptr;
}

} // namespace

status cuda_load(backend *base, const model_desc *m, backend_progress *progress, void *ctx,
                 error *err) {
    cuda_backend *b = cuda_of(base);
    loader l = {};
    l.b = b;
    l.m = m;
    l.err = err;
    l.progress = progress;
    l.progress_ctx = ctx;
    l.total = weight_total(m);
    if (b->layers != nullptr) return error_set(err, E_STATE, "cuda: a model is loaded already");
    cuda_enter(b);
    status s = check_shape(&l);
    if (s != OK) return s;
    keep_shape(b, m);
    b->layers = (cuda_layer *)calloc((size_t)m->n_layers, sizeof *b->layers);
    if (b->layers == nullptr) return error_set(err, E_NOMEM, "cuda: layers: host memory");
    if (cudaMalloc((void **)&l.staging, staging_bytes(m)) != cudaSuccess ||
        cudaMalloc((void **)&l.exponent, ((size_t)longest_rows(m) + TILE_ROWS) * sizeof(int32_t)) !=
            cudaSuccess) {
        (void)cudaGetLastError();
        s = error_set(err, E_NOMEM, "cuda: no memory for the staging buffer: need %zu MiB",
                      staging_bytes(m) >> 20);
    }
    if (s == OK) s = load_row_maps(&l);
    for (int i = 0; s == OK && i < m->n_layers; i++)
        s = load_layer(&l, &m->layers[i], &b->layers[i]);
    if (s == OK) s = load_ends(&l);
    if (s == OK && cudaStreamSynchronize(b->stream) != cudaSuccess) s = device_error(&l, "load");
    (void)cudaFree(l.staging);
    (void)cudaFree(l.exponent);
    free(l.host_q_rows);
    free(l.host_k_rows);
    return s;
}
