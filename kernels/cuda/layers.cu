/* The operations of a layer on the rows of the step: which kernel, which buffers. The kernels are
 * chosen by the number of rows:
 *   1..8: the matrix-vector kernels with everything around them folded in (gemv.cuh), five a layer
 *   9..128: the wgmma kernels; activations go from kernel to kernel in their order
 *   deterministic, or no better one: gemm_mma (a row's bits do not depend on the others)
 *   more than LT_ROWS: cuBLASLt on halves, from the resident copy or expanded into scratch */
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"

namespace {

enum {
    LT_ROWS = 128,     /* more rows than this go through cuBLASLt */
    LT_ROWS_HALVES = 8 /* and of matrices that are halves as they are, more than this */
};

bool use_lt(const cuda_backend *b, const cuda_matrix *m, int n_rows) {
    const int least = m->format == WF_F16 ? LT_ROWS_HALVES : LT_ROWS;
    return b->lt != nullptr && !b->options.deterministic && n_rows > least && m->n_in % 8 == 0;
}

/* y (+)= W x through cuBLASLt; without a resident copy a slice of W at a time goes through w16. */
status lt_linear(cuda_backend *b, const cuda_matrix *m, lt_args a) {
    a.ldw = a.n_in = m->n_in;
    a.n_rows = lt_rows(a.n_rows);
    if (m->plain != nullptr) {
        a.w = m->plain;
        a.n_out = m->n_out;
        return lt_matmul(b->lt, &a, b->stream);
    }
    const int fit = (int)(b->w16_halves / ((size_t)TILE_ROWS * (size_t)m->n_in));
    void *const y = a.y;
    for (int tile = 0; tile < m->n_tiles; tile += fit) {
        cuda_matrix part = *m;
        part.n_tiles = m->n_tiles - tile < fit ? m->n_tiles - tile : fit;
        part.chunks += (size_t)tile * weight_tile_bytes(m->format, m->n_in);
        part.row_scale += (size_t)tile * TILE_ROWS;
        status s = cuda_expand(&part, b->w16, b->stream);
        if (s != OK) return s;
        const int from = tile * TILE_ROWS, left = m->n_out - from;
        lt_args p = a;
        p.w = b->w16;
        p.n_out = left < part.n_tiles * TILE_ROWS ? left : part.n_tiles * TILE_ROWS;
        p.y = a.half_out ? (void *)((uint16_t *)y + from) : (void *)((float *)y + from);
        if (a.bias != nullptr) p.bias = a.bias + from;
        s = lt_matmul(b->lt, &p, b->stream);
        if (s != OK) return s;
    }
    return OK;
}

/* y = W x (+ bias), or y += W x (+ bias). */
status linear(cuda_backend *b, const cuda_matrix *m, const uint16_t *x, int ldx, int n_rows,
              float *y, int ldy, const float *bias, bool add) {
    if (use_lt(b, m, n_rows)) {
        lt_args a = {};
        a.x = x;
        a.ldx = ldx;
        a.y = y;
        a.ldy = ldy;
        a.bias = bias;
        a.n_rows = n_rows;
        a.add = add;
        /* row scales are in the half copy, but down's undo of the activations' 2^-3 is, too */
        a.alpha = 1.0f;
        return lt_linear(b, m, a);
    }
    linear_args a = {};
    a.x = x;
    a.ldx = ldx;
    a.n_rows = n_rows;
    a.output = add ? LINEAR_ADD : LINEAR_STORE;
    a.y = y;
    a.ldy = ldy;
    a.bias = bias;
    a.pdl = b->pdl;
    return cuda_linear_mma(m, &a, b->stream);
}

/* xn = RMSNorm(x); columns > 0: in the wgmma kernels' order. Clears n_init floats a row of init. */
status norm(cuda_backend *b, const float *w, const int32_t *rows, int n_rows, uint16_t *y,
            int columns, float *init, int n_init) {
    norm_args a = {};
    a.x = b->x;
    a.rows = rows;
    a.w = w;
    a.n_rows = n_rows;
    a.dim = b->shape.n_embd;
    a.eps = b->shape.norm_eps;
    a.y = y;
    a.ldy = b->shape.n_embd;
    a.columns = columns;
    a.init = init;
    a.n_init = n_init;
    a.pdl = b->pdl;
    return cuda_rms_norm(&a, b->stream);
}

bool wgmma(const cuda_backend *b) {
    return b->wgmma && b->n_rows <= WGMMA_ROWS_MAX && b->n_rows > b->fused_rows;
}

/* y (+)= W x on the wgmma kernels; x, and half_out of LINEAR_GLU, in their order. */
wgmma_args wgmma_args_of(const cuda_backend *b, const cuda_matrix *m, linear_output output,
                         const uint16_t *x, int n_rows) {
    wgmma_args a = {};
    a.m = *m;
    a.x = x;
    a.columns = wgmma_columns(n_rows);
    a.n_rows = n_rows;
    a.output = output;
    a.pdl = b->pdl;
    return a;
}

status wgmma_linear(cuda_backend *b, const cuda_matrix *m, linear_output output, const uint16_t *x,
                    int n_rows, float *y, int ldy, const float *bias, uint16_t *half_out) {
    wgmma_args a = wgmma_args_of(b, m, output, x, n_rows);
    a.y = y;
    a.ldy = ldy;
    a.bias = bias;
    a.half_out = half_out;
    a.partial = b->wgmma_partial;
    a.flags = b->wgmma_flags;
    return cuda_linear_wgmma(&a, b->n_sms, b->stream);
}

bool fused(const cuda_backend *b) {
    return b->n_rows <= b->fused_rows;
}

uint8_t *kv_layer(cuda_backend *b, int layer) {
    return b->kv + (size_t)layer * ((size_t)b->kv_blocks + 1) * b->attn.kv.block_bytes;
}

/* gate and up of rows [row0, row0 + n_rows) into b->gate_up, then SwiGLU into b->act. */
status gate_up_slice(cuda_backend *b, const cuda_layer *y, int row0, int n_rows) {
    const cuda_shape *sh = &b->shape;
    const uint16_t *x = b->xn + (size_t)row0 * (size_t)sh->n_embd;
    swiglu_args g = {};
    g.gu = b->gate_up;
    g.interleaved = y->n_gate_up == 1;
    g.n_rows = n_rows;
    g.n_ff = sh->n_ff;
    g.h = b->act + (size_t)row0 * (size_t)sh->n_ff;
    g.ld_half = sh->n_ff;
    g.pdl = b->pdl;
    g.half_in =
        use_lt(b, &y->gate_up[0], n_rows) && use_lt(b, &y->gate_up[y->n_gate_up - 1], n_rows);
    status s = OK;
    for (int i = 0; i < y->n_gate_up && s == OK; i++) {
        const int column = i * sh->n_ff, ldy = 2 * sh->n_ff;
        if (g.half_in) {
            lt_args a = {};
            a.x = x;
            a.ldx = sh->n_embd;
            a.y = (uint16_t *)b->gate_up + column;
            a.ldy = ldy;
            a.n_rows = n_rows;
            a.alpha = ACT_HALF_SCALE;
            a.half_out = true;
            s = lt_linear(b, &y->gate_up[i], a);
        } else {
            s = linear(b, &y->gate_up[i], x, sh->n_embd, n_rows, (float *)b->gate_up + column, ldy,
                       nullptr, false);
        }
    }
    return s == OK ? cuda_swiglu(&g, b->stream) : s;
}

status fused_gemv(cuda_backend *b, const cuda_matrix *m, gemv_output output, gemv_args *a) {
    a->m = *m;
    a->eps = b->shape.norm_eps;
    a->n_rows = b->n_rows;
    a->pdl = b->pdl;
    return cuda_gemv(a, output, b->n_sms, b->stream);
}

status rope_append(cuda_backend *b, int layer) {
    const cuda_layer *y = &b->layers[layer];
    rope_append_args a = {};
    a.qkv = b->qkv;
    a.qkv_type = DTYPE_F32;
    a.q_norm = y->q_norm;
    a.k_norm = y->k_norm;
    a.norm_eps = b->shape.norm_eps;
    a.n_rot = b->shape.n_rot;
    a.neox = false; /* load.cu has reordered the rows */
    a.q = b->q;
    a.kv_layer = kv_layer(b, layer);
    a.step = &b->step_dev;
    a.n_tokens = b->n_rows;
    a.pdl = b->pdl;
    return cuda_rope_append(&b->attn, &a, b->stream);
}

gemv_args qkv_args(cuda_backend *b, int layer, int i) {
    const cuda_layer *y = &b->layers[layer];
    gemv_args a = {};
    a.m = y->qkv[i];
    a.x = b->x_half;
    a.norm = y->attn_norm_half;
    a.eps = b->shape.norm_eps;
    a.n_rows = b->n_rows;
    a.bias = y->qkv_bias != nullptr ? y->qkv_bias + y->qkv_column[i] : nullptr;
    a.y = b->qkv + y->qkv_column[i];
    a.ldy = b->shape.n_qkv_out;
    a.pdl = b->pdl;
    gemv_rope *r = &a.rope;
    r->kv = b->attn.kv;
    r->kv_layer = kv_layer(b, layer);
    r->q = (uint16_t *)b->q;
    r->block = b->dev.block;
    r->block_start = b->dev.block_start;
    r->row_seq = b->dev.row_seq;
    r->row_pos = b->dev.row_pos;
    r->rope = b->dev.rope;
    r->n_heads = b->shape.n_heads;
    r->n_rot = b->shape.n_rot;
    r->column0 = y->qkv_column[i];
    return a;
}

status fused_qkv(cuda_backend *b, int layer) {
    const cuda_layer *y = &b->layers[layer];
    const gemv_output output = b->fused_rope ? GEMV_ROPE : GEMV_STORE;
    status s = OK;
    if (y->n_qkv == 2 && gemv_pair_fits(&y->qkv[0], &y->qkv[1], output, b->n_rows, b->n_sms)) {
        const gemv_args first = qkv_args(b, layer, 0), second = qkv_args(b, layer, 1);
        s = cuda_gemv_pair(&first, &second, output, b->n_sms, b->stream);
    } else {
        for (int i = 0; i < y->n_qkv && s == OK; i++) {
            const gemv_args a = qkv_args(b, layer, i);
            s = cuda_gemv(&a, output, b->n_sms, b->stream);
        }
    }
    return s != OK || b->fused_rope ? s : rope_append(b, layer);
}

status wgmma_qkv(cuda_backend *b, int layer) {
    const cuda_shape *sh = &b->shape;
    const cuda_layer *y = &b->layers[layer];
    const bool pair = y->n_qkv == 2 && wgmma_pair_fits(&y->qkv[0], &y->qkv[1], b->n_rows);
    bool splits = pair;
    wgmma_args a[3];
    for (int i = 0; i < y->n_qkv; i++) {
        splits = splits || wgmma_splits(&y->qkv[i], LINEAR_STORE, b->n_rows, b->n_sms);
        a[i] = wgmma_args_of(b, &y->qkv[i], LINEAR_STORE, b->xn, b->n_rows);
        a[i].y = b->qkv + y->qkv_column[i];
        a[i].ldy = sh->n_qkv_out;
        a[i].bias = y->qkv_bias != nullptr ? y->qkv_bias + y->qkv_column[i] : nullptr;
    }
    status s = norm(b, y->attn_norm, nullptr, b->n_rows, b->xn, wgmma_columns(b->n_rows),
                    splits ? b->qkv : nullptr, sh->n_qkv_out);
    if (s == OK && pair) {
        s = cuda_linear_wgmma_pair(&a[0], &a[1], b->n_sms, b->stream);
    } else {
        for (int i = 0; i < y->n_qkv && s == OK; i++) {
            s = cuda_linear_wgmma(&a[i], b->n_sms, b->stream);
        }
    }
    return s == OK ? rope_append(b, layer) : s;
}

/* Decode rows of a tensor-core layout leave attention in the wgmma kernels' order. */
bool attention_orders(const cuda_backend *b) {
    return wgmma(b) && b->attn.kv.tensor_core && b->plan.tile_grid == 0;
}

status wgmma_attn_output(cuda_backend *b, const cuda_layer *y) {
    if (attention_orders(b)) {
        return wgmma_linear(b, &y->o, LINEAR_ADD, b->xn_att, b->n_rows, b->x, b->shape.n_embd,
                            y->o_bias, nullptr);
    }
    reorder_args r = {};
    r.x = b->att;
    r.y = b->xn_att;
    r.n_rows = b->n_rows;
    r.dim = b->shape.n_heads * b->shape.head_dim;
    r.columns = wgmma_columns(b->n_rows);
    r.pdl = b->pdl;
    const status s = cuda_reorder(&r, b->stream);
    if (s != OK) return s;
    return wgmma_linear(b, &y->o, LINEAR_ADD, b->xn_att, b->n_rows, b->x, b->shape.n_embd,
                        y->o_bias, nullptr);
}

/* x += W in (+ bias), and its half copy. */
status fused_residual(cuda_backend *b, const cuda_matrix *m, const uint16_t *in,
                      const float *bias) {
    gemv_args a = {};
    a.x = in;
    a.bias = bias;
    a.y = b->x;
    a.ldy = b->shape.n_embd;
    a.half_out = b->x_half;
    a.ld_half = b->shape.n_embd;
    return fused_gemv(b, m, GEMV_RESIDUAL, &a);
}

} // namespace

status cuda_op_rows(cuda_backend *b, int n_seqs, int n_tokens) {
    step_rows_args r = {};
    r.seq_start = b->dev.seq_start;
    r.kv_len = b->dev.kv_len;
    r.n_seqs = n_seqs;
    r.n_tokens = n_tokens;
    r.freq = b->rope_freq;
    r.n_rot = b->shape.n_rot;
    r.mscale = b->shape.rope_mscale;
    r.row_seq = b->dev.row_seq;
    r.row_pos = b->dev.row_pos;
    r.rope = b->dev.rope;
    return cuda_step_rows(&r, b->stream);
}

status cuda_op_embed(cuda_backend *b) {
    embed_args a = {};
    a.token = b->dev.token;
    a.previous = b->previous;
    a.table = b->embd;
    a.type = b->embd_type;
    a.n_rows = b->n_rows;
    a.n_embd = b->shape.n_embd;
    a.n_vocab = b->shape.n_vocab;
    a.x = b->x;
    a.x_half = b->x_half;
    a.ld_half = b->shape.n_embd;
    a.pdl = b->pdl;
    return cuda_embed(&a, b->stream);
}

status cuda_op_qkv(cuda_backend *b, int layer) {
    const cuda_shape *sh = &b->shape;
    const cuda_layer *y = &b->layers[layer];
    if (fused(b)) return fused_qkv(b, layer);
    if (wgmma(b)) return wgmma_qkv(b, layer);
    status s = norm(b, y->attn_norm, nullptr, b->n_rows, b->xn, 0, nullptr, 0);
    for (int i = 0; i < y->n_qkv && s == OK; i++) {
        s = linear(b, &y->qkv[i], b->xn, sh->n_embd, b->n_rows, b->qkv + y->qkv_column[i],
                   sh->n_qkv_out, y->qkv_bias != nullptr ? y->qkv_bias + y->qkv_column[i] : nullptr,
                   false);
    }
    return s == OK ? rope_append(b, layer) : s;
}

status cuda_op_attention(cuda_backend *b, int layer) {
    attention_args a = {};
    a.q = b->q;
    a.kv_layer = kv_layer(b, layer);
    a.out = b->att;
    a.out_type = DTYPE_F16;
    if (attention_orders(b)) {
        a.out = b->xn_att;
        a.out_columns = wgmma_columns(b->n_rows);
    }
    a.step = &b->step_dev;
    a.n_tokens = b->n_rows;
    a.plan = b->dev.attention_plan;
    a.workspace = b->attn_work;
    a.pdl = b->pdl;
    return cuda_attention(&b->attn, &b->plan, &a, b->stream);
}

status cuda_op_attn_output(cuda_backend *b, int layer) {
    const cuda_layer *y = &b->layers[layer];
    if (fused(b)) return fused_residual(b, &y->o, b->att, y->o_bias);
    if (wgmma(b)) return wgmma_attn_output(b, y);
    return linear(b, &y->o, b->att, b->shape.n_heads * b->shape.head_dim, b->n_rows, b->x,
                  b->shape.n_embd, y->o_bias, true);
}

status cuda_op_gate_up(cuda_backend *b, int layer) {
    const cuda_layer *y = &b->layers[layer];
    if (fused(b)) {
        gemv_args a = {};
        a.x = b->x_half;
        a.norm = y->ffn_norm_half;
        a.half_out = b->act;
        a.ld_half = b->shape.n_ff;
        return fused_gemv(b, &y->gate_up[0], GEMV_GLU, &a);
    }
    if (wgmma(b)) {
        const status t =
            norm(b, y->ffn_norm, nullptr, b->n_rows, b->xn, wgmma_columns(b->n_rows), nullptr, 0);
        if (t != OK) return t;
        return wgmma_linear(b, &y->gate_up[0], LINEAR_GLU, b->xn, b->n_rows, nullptr, 0, nullptr,
                            b->act);
    }
    status s = norm(b, y->ffn_norm, nullptr, b->n_rows, b->xn, 0, nullptr, 0);
    for (int row = 0; row < b->n_rows && s == OK; row += GLU_ROWS_MAX) {
        const int left = b->n_rows - row;
        s = gate_up_slice(b, y, row, left < GLU_ROWS_MAX ? left : GLU_ROWS_MAX);
    }
    return s;
}

status cuda_op_down(cuda_backend *b, int layer) {
    const cuda_layer *y = &b->layers[layer];
    if (fused(b)) return fused_residual(b, &y->down, b->act, nullptr);
    if (wgmma(b)) {
        return wgmma_linear(b, &y->down, LINEAR_ADD, b->act, b->n_rows, b->x, b->shape.n_embd,
                            nullptr, nullptr);
    }
    return linear(b, &y->down, b->act, b->shape.n_ff, b->n_rows, b->x, b->shape.n_embd, nullptr,
                  true);
}

status cuda_op_head(cuda_backend *b) {
    if (b->n_head_rows == 0) return OK;
    if (b->head_is_rows && fused(b)) {
        gemv_args a = {};
        a.x = b->x_half;
        a.norm = b->output_norm_half;
        a.bias = b->head_bias;
        a.y = b->logits;
        a.ldy = b->logits_stride;
        return fused_gemv(b, &b->head, GEMV_STORE, &a);
    }
    const int32_t *rows = b->head_is_rows ? nullptr : b->dev.sample_rows;
    if (b->head_wgmma && b->n_head_rows > FUSED_ROWS_MAX && b->n_head_rows <= WGMMA_ROWS_MAX &&
        !wgmma_splits(&b->head, LINEAR_STORE, b->n_head_rows, b->n_sms)) {
        const status t = norm(b, b->output_norm, rows, b->n_head_rows, b->head_x,
                              wgmma_columns(b->n_head_rows), nullptr, 0);
        if (t != OK) return t;
        return wgmma_linear(b, &b->head, LINEAR_STORE, b->head_x, b->n_head_rows, b->logits,
                            b->logits_stride, b->head_bias, nullptr);
    }
    const status s = norm(b, b->output_norm, rows, b->n_head_rows, b->head_x, 0, nullptr, 0);
    if (s != OK) return s;
    return linear(b, &b->head, b->head_x, b->shape.n_embd, b->n_head_rows, b->logits,
                  b->logits_stride, b->head_bias, false);
}

status cuda_lt_prepare(cuda_backend *b) {
    const cuda_shape *sh = &b->shape;
    if (b->lt == nullptr || b->options.deterministic) return OK;
    status s = OK;
    auto prepare = [&](const cuda_matrix &m, int ldy, int rows, bool bias, bool add, bool half) {
        if (s != OK || m.plain == nullptr || !use_lt(b, &m, rows)) return;
        lt_args a = {};
        a.n_out = m.n_out;
        a.n_in = a.ldw = a.ldx = m.n_in;
        a.ldy = ldy;
        a.n_rows = rows;
        a.bias = bias ? b->layers[0].qkv_bias : nullptr;
        a.add = add;
        a.half_out = half;
        s = lt_prepare(b->lt, &a);
    };
    const int most = lt_rows(b->limits.n_tokens_max);
    for (int rows = lt_rows(1); rows <= most; rows = lt_rows(rows + 1)) {
        for (int i = 0; i < sh->n_layers; i++) {
            const cuda_layer *y = &b->layers[i];
            if (i > 0 && y->n_qkv == b->layers[i - 1].n_qkv) continue; /* the same shapes */
            for (int j = 0; j < y->n_qkv; j++) {
                prepare(y->qkv[j], sh->n_qkv_out, rows, y->qkv_bias != nullptr, false, false);
            }
            prepare(y->o, sh->n_embd, rows, false, true, false);
            prepare(y->down, sh->n_embd, rows, false, true, false);
            for (int j = 0; j < y->n_gate_up && rows <= GLU_ROWS_MAX; j++) {
                prepare(y->gate_up[j], 2 * sh->n_ff, rows, false, false, true);
            }
        }
        if (rows <= lt_rows(b->limits.n_seqs_max)) {
            prepare(b->head, b->logits_stride, rows, false, false, false);
        }
    }
    return s;
}
