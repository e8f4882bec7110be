/* The CUDA backend: opening a device, and the life of a step. The operations are in layers.cu.
 *
 *   begin_step  slot <- step's arrays and plans; one launch pulls them to the device; block copies
 *   replay      a decode step that fits a captured graph: one launch for all layers
 *   end_step    read-back of ids (or details) and the slot's event
 *   wait_step   waits for the oldest event */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"

status cuda_take(cuda_backend *b, size_t bytes, void **out) {
    bytes = (bytes + 255) / 256 * 256;
    if (bytes == 0) bytes = 256;
    if (b->slab == nullptr || b->slab_size - b->slab_used < bytes) {
        if (b->n_allocations == b->n_allocations_max) {
            const int n = b->n_allocations_max == 0 ? 64 : 2 * b->n_allocations_max;
            void **p = (void **)realloc(b->allocations, (size_t)n * sizeof *p);
            if (p == nullptr) return E_NOMEM;
            b->allocations = p;
            b->n_allocations_max = n;
        }
        const bool own = bytes >= SLAB_BYTES; /* keeps the slab being filled */
        void *p = nullptr;
        if (cudaMalloc(&p, own ? bytes : (size_t)SLAB_BYTES) != cudaSuccess) {
            (void)cudaGetLastError();
            return E_NOMEM;
        }
        b->allocations[b->n_allocations++] = p;
        b->weights_bytes += own ? bytes : (size_t)SLAB_BYTES;
        if (own) {
            *out = p;
            return OK;
        }
        b->slab = (uint8_t *)p;
        b->slab_size = SLAB_BYTES;
        b->slab_used = 0;
    }
    *out = b->slab + b->slab_used;
    b->slab_used += bytes;
    return OK;
}

void cuda_release_all(cuda_backend *b) {
    for (int i = 0; i < b->n_allocations; i++) (void)cudaFree(b->allocations[i]);
    free(b->allocations);
    b->allocations = nullptr;
    b->n_allocations = b->n_allocations_max = 0;
}

namespace {

size_t count_bytes(int n, size_t size) {
    return (size_t)n * size;
}

/* Copies the step's arrays into the slot and lists the pieces for the device. */
void fill_slot(cuda_backend *b, const step *s, fetch_args *f) {
    step_buffers *h = &b->now->host;
    const int pad = b->n_rows - s->n_tokens;
    memcpy(h->token, s->token, count_bytes(s->n_tokens, sizeof(int32_t)));
    memcpy(h->seq_start, s->seq_start, count_bytes(s->n_seqs + 1, sizeof(int32_t)));
    memcpy(h->kv_len, s->kv_len, count_bytes(s->n_seqs, sizeof(int32_t)));
    memcpy(h->block_start, s->block_start, count_bytes(s->n_seqs + 1, sizeof(int32_t)));
    memcpy(h->block, s->block, count_bytes(s->n_blocks, sizeof(int32_t)));
    for (int i = 0; i < pad; i++) { /* one-token sequences in the pool's spare block */
        h->token[s->n_tokens + i] = 0;
        h->seq_start[s->n_seqs + 1 + i] = s->n_tokens + i + 1;
        h->kv_len[s->n_seqs + i] = 1;
        h->block_start[s->n_seqs + 1 + i] = s->n_blocks + i + 1;
        h->block[s->n_blocks + i] = b->kv_blocks;
    }
    for (int i = 0; i < s->n_samples; i++) h->sample_rows[i] = s->sample[i].row;
    memcpy(h->sample, s->sample, count_bytes(s->n_samples, sizeof(sample_row)));
    if (s->n_bias > 0) memcpy(h->bias, s->bias, count_bytes(s->n_bias, sizeof(token_bias)));
    if (s->n_seen > 0) memcpy(h->seen, s->seen, count_bytes(s->n_seen, sizeof(token_seen)));
    if (s->n_copies > 0) memcpy(h->copies, s->copies, count_bytes(s->n_copies, sizeof(block_copy)));

    f->n_pieces = 0;
    auto piece = [f](const void *from, void *to, size_t bytes) {
        if (bytes == 0) return;
        f->piece[f->n_pieces++] = {from, to, (uint32_t)bytes};
    };
    const int n_seqs = s->n_seqs + pad;
    piece(h->token, b->dev.token, count_bytes(b->n_rows, 4));
    piece(h->seq_start, b->dev.seq_start, count_bytes(n_seqs + 1, 4));
    piece(h->kv_len, b->dev.kv_len, count_bytes(n_seqs, 4));
    piece(h->block_start, b->dev.block_start, count_bytes(n_seqs + 1, 4));
    piece(h->block, b->dev.block, count_bytes(s->n_blocks + pad, 4));
    piece(h->sample_rows, b->dev.sample_rows, count_bytes(s->n_samples, 4));
    piece(h->sample, b->dev.sample, count_bytes(s->n_samples, sizeof(sample_row)));
    piece(h->bias, b->dev.bias, count_bytes(s->n_bias, sizeof(token_bias)));
    piece(h->seen, b->dev.seen, count_bytes(s->n_seen, sizeof(token_seen)));
    piece(h->copies, b->dev.copies, count_bytes(s->n_copies, sizeof(block_copy)));
    piece(h->attention_plan, b->dev.attention_plan, b->plan.bytes);
    piece(h->sampler_plan, b->dev.sampler_plan, b->sample_plan.bytes);
}

status check_step(const cuda_backend *b, const step *s) {
    const backend_limits *l = &b->limits;
    const bool ok = s->n_tokens >= 1 && s->n_tokens <= l->n_tokens_max && s->n_seqs >= 1 &&
                    s->n_seqs <= l->n_seqs_max && s->n_decode >= 0 && s->n_decode <= s->n_seqs &&
                    s->n_samples >= 0 && s->n_samples <= l->n_samples_max && s->n_bias >= 0 &&
                    s->n_bias <= l->n_bias_max && s->n_seen >= 0 && s->n_seen <= l->n_seen_max &&
                    s->n_copies >= 0 &&
                    s->n_copies <= (l->n_copies_max > 0 ? l->n_copies_max : l->n_seqs_max) &&
                    s->n_blocks >= 0 && s->n_blocks <= b->n_blocks_max;
    return ok ? OK : E_INVAL;
}

status begin_step(backend *base, const step *s) {
    cuda_backend *b = cuda_of(base);
    if (b->fault) return E_DEVICE;
    if (!b->reserved || b->step != nullptr || b->n_in_flight >= SLOTS - 1) return E_STATE;
    status st = check_step(b, s);
    if (st != OK) return st;
    cuda_enter(b);
    b->now = &b->slot[(b->first + b->n_in_flight) % SLOTS];
    const int bucket = cuda_graph_bucket(b, s);
    b->n_rows = bucket > 0 ? bucket : s->n_tokens;
    b->n_head_rows = bucket > 0 ? bucket : s->n_samples;
    b->head_is_rows = bucket > 0;
    st = attention_plan_make(&b->attn, s, bucket > 0 ? bucket : s->n_decode,
                             b->now->host.attention_plan, &b->plan);
    memset(&b->sample_plan, 0, sizeof b->sample_plan);
    if (st == OK && s->n_samples > 0) {
        st = sampler_plan_make(&b->sampler_state, s, b->now->host.sampler_plan, &b->sample_plan);
    }
    if (st != OK) return st;
    fill_slot(b, s, &b->fetch);
    b->published = false;
    b->fetch_pending = bucket > 0 && s->n_copies == 0;
    if (!b->fetch_pending) st = cuda_step_fetch(&b->fetch, b->stream);
    if (st == OK && s->n_copies > 0) {
        st = cuda_copy_blocks(b->kv, b->shape.n_layers, b->kv_blocks + 1, b->attn.kv.block_bytes,
                              b->dev.copies, s->n_copies, b->stream);
    }
    if (st == OK && bucket == 0) st = cuda_op_rows(b, s->n_seqs, s->n_tokens);
    if (st == OK) b->step = s;
    return cuda_keep(b, st);
}

status sample_step(backend *base) {
    cuda_backend *b = cuda_of(base);
    if (b->fault) return E_DEVICE;
    if (b->step->n_samples == 0) return OK;
    sampler_args a = {};
    a.logits = b->logits;
    a.rows = b->dev.sample;
    a.bias = b->dev.bias;
    a.seen = b->dev.seen;
    a.plan = b->dev.sampler_plan;
    a.workspace = b->sampler_work;
    a.token = b->previous;
    a.out = b->sampled_dev;
    a.pdl = false;
    return cuda_keep(b, cuda_sample(&b->sampler_state, &b->sample_plan, &a, b->stream));
}

bool replay(backend *base) {
    cuda_backend *b = cuda_of(base);
    if (!b->head_is_rows || b->fault) return false;
    status s = cuda_graph_launch(b);
    if (s == OK && !b->published) s = sample_step(base);
    if (s != OK) b->fault = true; /* surfaces in end_step */
    return true;
}

status end_step(backend *base) {
    cuda_backend *b = cuda_of(base);
    if (b->step == nullptr) return E_STATE;
    step_slot *t = b->now;
    t->n_samples = b->step->n_samples;
    t->detail = b->sample_plan.detail;
    b->step = nullptr;
    if (b->fault) return E_DEVICE;
    cudaError_t e = cudaSuccess;
    const size_t n = (size_t)t->n_samples;
    if (n > 0 && t->detail) {
        e = cudaMemcpyAsync(t->details, b->sampled_dev, n * sizeof(sampled), cudaMemcpyDeviceToHost,
                            b->stream);
    } else if (n > 0 && !b->published) {
        e = cudaMemcpyAsync(t->ids, b->previous, n * sizeof(int32_t), cudaMemcpyDeviceToHost,
                            b->stream);
    }
    if (e == cudaSuccess) e = cudaEventRecord(t->done, b->stream);
    if (e != cudaSuccess) return cuda_keep(b, E_DEVICE);
    b->n_in_flight++;
    return OK;
}

status wait_step(backend *base, sampled *out) {
    cuda_backend *b = cuda_of(base);
    if (b->fault) return E_DEVICE;
    if (b->n_in_flight == 0) return E_STATE;
    step_slot *t = &b->slot[b->first];
    cuda_enter(b);
    if (cudaEventSynchronize(t->done) != cudaSuccess) return cuda_keep(b, E_DEVICE);
    b->first = (b->first + 1) % SLOTS;
    b->n_in_flight--;
    b->last_samples = t->n_samples;
    if (t->detail) {
        memcpy(out, t->details, (size_t)t->n_samples * sizeof(sampled));
        return OK;
    }
    for (int i = 0; i < t->n_samples; i++) {
        memset(&out[i], 0, sizeof out[i]);
        out[i].token = t->ids[i];
        out[i].finite = t->ids[i] >= 0;
    }
    return OK;
}

status read_logits(backend *base, float *out, size_t out_floats) {
    cuda_backend *b = cuda_of(base);
    if (b->fault) return E_DEVICE;
    const size_t v = (size_t)b->shape.n_vocab, n = (size_t)b->last_samples;
    if (out_floats < n * v) return E_INVAL;
    cuda_enter(b);
    if (cudaStreamSynchronize(b->stream) != cudaSuccess ||
        cudaMemcpy2D(out, v * 4, b->logits, (size_t)b->logits_stride * 4, v * 4, n,
                     cudaMemcpyDeviceToHost) != cudaSuccess) {
        return cuda_keep(b, E_DEVICE);
    }
    return OK;
}

status embed(backend *base) {
    cuda_backend *b = cuda_of(base);
    if (b->fault) return E_DEVICE;
    status s = OK;
    if (b->head_is_rows) { /* a graph would fit, but the caller goes op by op */
        if (b->fetch_pending) s = cuda_step_fetch(&b->fetch, b->stream);
        b->fetch_pending = false;
        if (s == OK) s = cuda_op_rows(b, b->n_rows, b->n_rows);
    }
    return cuda_keep(b, s == OK ? cuda_op_embed(b) : s);
}
status qkv(backend *base, int i) {
    return cuda_keep(cuda_of(base), cuda_op_qkv(cuda_of(base), i));
}
status attention_op(backend *base, int i) {
    return cuda_keep(cuda_of(base), cuda_op_attention(cuda_of(base), i));
}
status attn_output(backend *base, int i) {
    return cuda_keep(cuda_of(base), cuda_op_attn_output(cuda_of(base), i));
}
status gate_up(backend *base, int i) {
    return cuda_keep(cuda_of(base), cuda_op_gate_up(cuda_of(base), i));
}
status down(backend *base, int i) {
    return cuda_keep(cuda_of(base), cuda_op_down(cuda_of(base), i));
}
status head(backend *base) {
    return cuda_keep(cuda_of(base), cuda_op_head(cuda_of(base)));
}

const char *device_name(const backend *base) {
    return ((const cuda_backend *)base)->name;
}

void close_backend(backend *base) {
    if (base == nullptr) return;
    cuda_backend *b = cuda_of(base);
    cuda_enter(b);
    (void)cudaStreamSynchronize(b->stream);
    cuda_graphs_destroy(b);
    lt_close(b->lt);
    for (int i = 0; i < SLOTS; i++) {
        if (b->slot[i].done != nullptr) (void)cudaEventDestroy(b->slot[i].done);
    }
    if (b->host_memory != nullptr) (void)cudaFreeHost(b->host_memory);
    cuda_release_all(b);
    (void)cudaStreamDestroy(b->stream);
    free(b->layers);
    free(b);
}

const backend_ops OPS = {"cuda",    PIPELINE_DEPTH, cuda_load,   cuda_reserve, begin_step,
                         replay,    embed,          qkv,         attention_op, attn_output,
                         gate_up,   down,           head,        sample_step,  end_step,
                         wait_step, read_logits,    device_name, close_backend};

/* Checks the driver and the device; fills b's view of it. */
status open_device(cuda_backend *b, error *err) {
    int driver = 0, n = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
        (void)cudaGetLastError();
        return error_set(err, E_NOTFOUND, "cuda: no NVIDIA driver");
    }
    const cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaErrorInsufficientDriver) {
        (void)cudaGetLastError();
        return error_set(err, E_NOTFOUND, "cuda: the driver supports CUDA %d.%d, %d.%d is needed",
                         driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                         CUDART_VERSION % 1000 / 10);
    }
    if (e != cudaSuccess || n == 0) {
        (void)cudaGetLastError();
        return error_set(err, E_NOTFOUND, "cuda: no device: %s", cudaGetErrorString(e));
    }
    if (b->device < 0 || b->device >= n) {
        return error_set(err, E_NOTFOUND, "cuda: no device %d: there are %d", b->device, n);
    }
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, b->device) != cudaSuccess ||
        cudaSetDevice(b->device) != cudaSuccess) {
        return error_set(err, E_NOTFOUND, "cuda: device %d does not answer: %s", b->device,
                         cudaGetErrorString(cudaGetLastError()));
    }
    b->sm = p.major * 10 + p.minor;
    b->n_sms = p.multiProcessorCount;
    b->total_bytes = p.totalGlobalMem;
    if (b->sm < 80) {
        return error_set(err, E_NOTFOUND, "cuda: %s is sm_%d; sm_80 or later is needed", p.name,
                         b->sm);
    }
    char why[80] = "";
    b->lt = lt_open(why, sizeof why);
    snprintf(b->name, sizeof b->name, "%.100s, sm_%d, CUDA %d.%d, driver for CUDA %d.%d%s%s%s",
             p.name, b->sm, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10, driver / 1000,
             driver % 1000 / 10, b->lt != nullptr ? "" : ", no cuBLASLt (", why,
             b->lt != nullptr ? "" : "): slow prefill");
    return OK;
}

} // namespace

status cuda_backend_open(const backend_options *o, backend **out, error *err) {
    cuda_backend *b = (cuda_backend *)calloc(1, sizeof *b);
    if (b == nullptr) return error_set(err, E_NOMEM, "cuda: host memory");
    b->base.ops = &OPS;
    b->options = *o;
    b->device = o->device;
    const status s = open_device(b, err);
    if (s != OK) {
        lt_close(b->lt);
        free(b);
        return s;
    }
    if (cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking) != cudaSuccess) {
        lt_close(b->lt);
        free(b);
        return error_set(err, E_NOTFOUND, "cuda: device %d: no stream: %s", o->device,
                         cudaGetErrorString(cudaGetLastError()));
    }
    *out = &b->base;
    return OK;
}
