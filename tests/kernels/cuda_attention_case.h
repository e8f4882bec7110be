/* Shared by the attention checks: KV pools on the host, written and read through the layout's
 * address functions, and steps over shuffled blocks. */
#ifndef INFERD_TESTS_CUDA_ATTENTION_CASE_H
#define INFERD_TESTS_CUDA_ATTENTION_CASE_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <string.h>

#include <string>

#include "kernels/cuda/attention_internal.h"
#include "kernels/cuda_check.h"

struct sequence_case {
    int rows, keys; /* rows of this step, keys after it */
};

struct attention_case {
    std::string name;
    dtype type;
    int dim, n_heads, n_kv_heads, block_tokens, window;
    bool deterministic;
    std::vector<sequence_case> seqs; /* decode rows (1 row) first */
};

static inline uint16_t to16(dtype t, float x) {
    uint16_t u;
    if (t == DTYPE_BF16) {
        const __nv_bfloat16 b = __float2bfloat16(x);
        memcpy(&u, &b, 2);
    } else {
        const __half h = __float2half(x);
        memcpy(&u, &h, 2);
    }
    return u;
}
static inline float from16(dtype t, uint16_t u) {
    if (t == DTYPE_BF16) {
        __nv_bfloat16 b;
        memcpy(&b, &u, 2);
        return __bfloat162float(b);
    }
    __half h;
    memcpy(&h, &u, 2);
    return __half2float(h);
}

/* A pool on the host, written and read through the layout's address functions. */
struct host_pool {
    kv_layout l;
    std::vector<char> bytes;
    host_pool(const kv_layout &layout, int n_blocks)
        : l(layout), bytes((size_t)n_blocks * layout.block_bytes, 0) {}
    char *head(int block, int kv_head) { return bytes.data() + kv_head_offset(&l, block, kv_head); }
    void set(int block, int kv_head, int value, int token, const std::vector<float> &x) {
        char *h = head(block, kv_head);
        float top = 0.0f;
        for (float v : x) top = fmaxf(top, fabsf(v));
        const float scale = top > 0 ? top / 127.0f : 1.0f;
        if (l.type == DTYPE_I8) memcpy(h + kv_scale_offset(&l, value, token), &scale, 4);
        for (int d = 0; d < l.head_dim; d++) {
            char *p = h + kv_elem_offset(&l, value, token, d);
            if (l.type == DTYPE_F32)
                memcpy(p, &x[d], 4);
            else if (l.type == DTYPE_I8)
                *(int8_t *)p = (int8_t)lrintf(x[d] / scale);
            else {
                const uint16_t u = to16(l.type, x[d]);
                memcpy(p, &u, 2);
            }
        }
    }
    float get(int block, int kv_head, int value, int token, int d) {
        char *h = head(block, kv_head), *p = h + kv_elem_offset(&l, value, token, d);
        if (l.type == DTYPE_F32) {
            float f;
            memcpy(&f, p, 4);
            return f;
        }
        if (l.type == DTYPE_I8) {
            float scale;
            memcpy(&scale, h + kv_scale_offset(&l, value, token), 4);
            return (float)*(int8_t *)p * scale;
        }
        uint16_t u;
        memcpy(&u, p, 2);
        return from16(l.type, u);
    }
};

/* The step of a case: block tables over shuffled blocks. */
struct case_step {
    step s;
    std::vector<int32_t> seq_start, kv_len, block_start, block, row_seq, row_pos;
    int n_blocks;
};

static inline void make_step(const attention_case &c, rng &r, case_step &out) {
    memset(&out.s, 0, sizeof out.s);
    int rows = 0, blocks = 0;
    for (size_t i = 0; i < c.seqs.size(); i++) {
        const sequence_case &q = c.seqs[i];
        out.seq_start.push_back(rows);
        out.kv_len.push_back(q.keys);
        out.block_start.push_back(blocks);
        for (int j = 0; j < q.rows; j++) {
            out.row_seq.push_back((int)i);
            out.row_pos.push_back(q.keys - q.rows + j);
        }
        rows += q.rows;
        blocks += (q.keys + c.block_tokens - 1) / c.block_tokens;
        if (q.rows == 1 && out.s.n_decode == (int)i) out.s.n_decode++;
    }
    out.seq_start.push_back(rows);
    out.block_start.push_back(blocks);
    out.n_blocks = blocks + 2; /* two that nobody owns */
    std::vector<int32_t> ids(out.n_blocks);
    for (int i = 0; i < out.n_blocks; i++) ids[i] = i;
    for (int i = out.n_blocks - 1; i > 0; i--) std::swap(ids[i], ids[r.below(i + 1)]);
    out.block.assign(ids.begin(), ids.begin() + blocks);
    out.s.n_tokens = rows;
    out.s.n_seqs = (int)c.seqs.size();
    out.s.n_blocks = blocks;
    out.s.seq_start = out.seq_start.data();
    out.s.kv_len = out.kv_len.data();
    out.s.block_start = out.block_start.data();
    out.s.block = out.block.data();
}

static inline model_desc model_of(const attention_case &c) {
    model_desc m;
    memset(&m, 0, sizeof m);
    m.n_heads = c.n_heads;
    m.n_kv_heads = c.n_kv_heads;
    m.head_dim = c.dim;
    m.attn_scale = 1.0f / sqrtf((float)c.dim);
    m.sliding_window = c.window;
    return m;
}

/* The step's arrays on the device. */
struct device_step {
    device_array<int32_t> seq_start, kv_len, block_start, block, row_seq, row_pos;
    explicit device_step(const case_step &s)
        : seq_start(s.seq_start), kv_len(s.kv_len), block_start(s.block_start), block(s.block),
          row_seq(s.row_seq), row_pos(s.row_pos) {}
    step_device view() const {
        return step_device{seq_start.p, kv_len.p,  block_start.p, block.p,
                           row_seq.p,   row_pos.p, nullptr};
    }
};
#endif
