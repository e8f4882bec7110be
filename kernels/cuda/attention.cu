/* Attention's start-up and dispatch: which kernels a model needs, how much memory, and the launches
 * of a layer. Plans are made in attention_plan.cu. */
#include <assert.h>
#include <string.h>

#include "kernels/cuda/attention_internal.h"
#include "kernels/cuda/device.cuh"

#define LOG2_E 1.44269504f

static decode_kernel kernel_of(const kv_layout *kv, int variant) {
    const int kind = kv_kind(kv->type);
    switch (kv->head_dim) {
    case 64:
        return decode_kernel_d64(kind, kv->block_tokens, variant);
    case 80:
        return decode_kernel_d80(kind, kv->block_tokens, variant);
    case 96:
        return decode_kernel_d96(kind, kv->block_tokens, variant);
    case 128:
        return decode_kernel_d128(kind, kv->block_tokens, variant);
    case 256:
        return decode_kernel_d256(kind, kv->block_tokens, variant);
    default:
        return decode_kernel{};
    }
}

static size_t smem_of(const attention *a, const decode_kernel *k) {
    const size_t ring = (size_t)k->warps * k->stages * k->stage_bytes;
    const size_t state =
        (size_t)k->warps * attention_slot_heads(a) * (size_t)(a->kv.head_dim + 4) * sizeof(float);
    const size_t sums = (size_t)k->warps * 8 * sizeof(float2);
    return ring + state + sums + 16 + (size_t)k->warps * k->stages * 8;
}

/* Finds the decode kernel of a variant that fits the device and raises its shared-memory limit. */
static status prepare_decode(attention *a, int variant, attention_kernel *out, error *err) {
    decode_kernel k = kernel_of(&a->kv, variant);
    size_t smem = smem_of(a, &k);
    if (smem > a->smem_block_bytes) {
        k = kernel_of(&a->kv, DECODE_SMALL);
        smem = smem_of(a, &k);
    }
    if (!k.fn || smem > a->smem_block_bytes) {
        return error_set(err, E_UNSUPPORTED,
                         "cuda: decode attention for head_dim %d needs %zu bytes of shared memory, "
                         "the device has %zu",
                         a->kv.head_dim, smem, a->smem_block_bytes);
    }
    int per_sm = 0;
    cudaError_t e =
        cudaFuncSetAttribute(k.fn, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
    if (e == cudaSuccess) {
        e = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, k.fn, k.warps * 32, smem);
    }
    if (e != cudaSuccess) {
        return error_set(err, E_DEVICE, "cuda: decode attention: %s", cudaGetErrorString(e));
    }
    *out = attention_kernel{k.fn, k.warps, k.tile_keys, per_sm * a->n_sms, smem};
    return OK;
}

static prefill_kernel tile_kernel_of(const kv_layout *kv) {
    const int kind = kv_kind(kv->type);
    switch (kv->head_dim) {
    case 64:
        return tile_kernel_d64(kind);
    case 80:
        return tile_kernel_d80(kind);
    case 96:
        return tile_kernel_d96(kind);
    case 128:
        return tile_kernel_d128(kind);
    case 256:
        return tile_kernel_d256(kind);
    default:
        return prefill_kernel{};
    }
}

static status prepare_tile(attention *a, const prefill_kernel *k, attention_tile_kernel *out,
                           error *err) {
    if (!k->fn || k->smem_bytes > a->smem_block_bytes) {
        return error_set(err, E_UNSUPPORTED,
                         "cuda: prefill attention for head_dim %d needs %zu bytes of shared "
                         "memory, the device has %zu",
                         a->kv.head_dim, k->smem_bytes, a->smem_block_bytes);
    }
    const cudaError_t e = cudaFuncSetAttribute(k->fn, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               (int)k->smem_bytes);
    if (e != cudaSuccess) {
        return error_set(err, E_DEVICE, "cuda: prefill attention: %s", cudaGetErrorString(e));
    }
    *out = attention_tile_kernel{k->fn,        k->threads,    k->tile_rows,
                                 k->tile_keys, k->smem_bytes, k->chunk};
    return OK;
}

/* wgmma where it is built, else mma.sync. */
static status prepare_tiles(attention *a, error *err) {
    prefill_kernel k[2] = {};
    if (a->sm == 90 && !a->deterministic) {
        k[0] = prefill_kernel_wgmma(&a->kv, false);
        k[1] = prefill_kernel_wgmma(&a->kv, true);
        a->tile_chains = k[0].fn != NULL;
    }
    if (!k[0].fn) k[0] = tile_kernel_of(&a->kv);
    status s = prepare_tile(a, &k[0], &a->tile[0], err);
    if (s == OK && k[1].fn) s = prepare_tile(a, &k[1], &a->tile[1], err);
    return s;
}

extern "C" status attention_init(attention *a, const model_desc *m, dtype kv_type, int block_tokens,
                                 int n_tokens_max, int n_seqs_max, int device, bool deterministic,
                                 error *err) {
    assert(n_tokens_max >= 1 && n_seqs_max >= 1 && n_seqs_max <= ATTENTION_SEQS_MAX);
    attention r;
    memset(&r, 0, sizeof r);
    status s = cuda_kv_layout_init(&r.kv, kv_type, m->head_dim, m->n_kv_heads, block_tokens, err);
    if (s != OK) return s;
    if (m->n_heads < 1 || m->n_heads % m->n_kv_heads != 0) {
        return error_set(err, E_UNSUPPORTED, "cuda: %d query heads over %d KV heads", m->n_heads,
                         m->n_kv_heads);
    }
    r.n_heads = m->n_heads;
    r.group = m->n_heads / m->n_kv_heads;
    r.q_type = kv_type == DTYPE_F32 || kv_type == DTYPE_BF16 ? kv_type : DTYPE_F16;
    r.window = m->sliding_window;
    r.scale = m->attn_scale;
    r.deterministic = deterministic;
    r.n_tokens_max = n_tokens_max;
    r.n_seqs_max = n_seqs_max;
    int major = 0, minor = 0, smem = 0;
    cudaError_t e = cudaDeviceGetAttribute(&r.n_sms, cudaDevAttrMultiProcessorCount, device);
    if (e == cudaSuccess) {
        e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    }
    if (e == cudaSuccess) {
        e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    }
    if (e == cudaSuccess) {
        e = cudaDeviceGetAttribute(&smem, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    if (e != cudaSuccess) {
        return error_set(err, E_DEVICE, "cuda: device %d: %s", device, cudaGetErrorString(e));
    }
    r.sm = major * 10 + minor;
    r.smem_block_bytes = (size_t)smem;
    if (r.kv.tensor_core) {
        s = prepare_decode(&r, DECODE_FEW, &r.decode[0], err);
        if (s == OK) s = prepare_decode(&r, DECODE_MANY, &r.decode[1], err);
        if (s == OK) s = prepare_tiles(&r, err);
        if (s != OK) return s;
    }
    *a = r;
    return OK;
}

static int block_shift(const attention *a) {
    return a->kv.block_tokens == 16 ? 4 : a->kv.block_tokens == 32 ? 5 : 6;
}

static decode_args decode_args_of(const attention *a, const attention_plan *p,
                                  const attention_args *args) {
    const workspace_parts w = attention_workspace_parts(a);
    char *base = (char *)args->workspace;
    decode_args d = {};
    d.q = (const uint16_t *)args->q;
    d.kv = (const char *)args->kv_layer;
    d.block = args->step->block;
    d.items = (const attention_item *)((const char *)args->plan + p->items_offset);
    d.out = args->out;
    d.partial = (float4 *)(base + w.partial);
    d.partial_ml = (float2 *)(base + w.partial_ml);
    d.counter = (unsigned *)(base + w.counter);
    d.head_bytes = a->kv.head_bytes;
    d.block_bytes = a->kv.block_bytes;
    d.n_heads = a->n_heads;
    d.slot_heads = attention_slot_heads(a);
    d.block_shift = block_shift(a);
    d.window = a->window;
    d.out_type = args->out_type;
    d.out_columns = args->out_columns;
    d.out_width = a->n_heads * a->kv.head_dim;
    d.scale_log2 = a->scale * LOG2_E;
    return d;
}

static prefill_args prefill_args_of(const attention *a, const attention_plan *p,
                                    const attention_args *args) {
    const workspace_parts w = attention_workspace_parts(a);
    char *base = (char *)args->workspace;
    prefill_args d = {};
    d.q = (const uint16_t *)args->q;
    d.out = args->out;
    d.kv = (const char *)args->kv_layer;
    d.block = args->step->block;
    d.tiles = (const attention_tile *)((const char *)args->plan + p->tiles_offset);
    d.partial = (float4 *)(base + w.tile_partial);
    d.partial_ml = (float4 *)(base + w.tile_partial_ml);
    d.counter = (unsigned *)(base + w.tile_counter);
    d.head_bytes = a->kv.head_bytes;
    d.block_bytes = a->kv.block_bytes;
    d.n_heads = a->n_heads;
    d.group = a->group;
    d.block_shift = block_shift(a);
    d.window = a->window;
    d.out_type = args->out_type;
    d.scale_log2 = a->scale * LOG2_E;
    return d;
}

static status launch(const void *fn, int grid, int threads, size_t smem, void *params, bool pdl,
                     cudaStream_t stream) {
    void *list[] = {params};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)grid);
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = smem;
    config.stream = stream;
    cudaLaunchAttribute serial = {};
    serial.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    serial.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &serial;
    config.numAttrs = pdl ? 1 : 0;
    return cuda_status(cudaLaunchKernelExC(&config, fn, list));
}

extern "C" status cuda_attention(const attention *a, const attention_plan *p,
                                 const attention_args *args, cudaStream_t stream) {
    if (args->n_tokens < 1 || args->n_tokens > a->n_tokens_max) return E_INVAL;
    if (args->out_type != DTYPE_F32 && args->out_type != DTYPE_F16 &&
        args->out_type != DTYPE_BF16) {
        return E_INVAL;
    }
    if (args->out_columns > 0 &&
        (!a->kv.tensor_core || p->tile_grid > 0 || args->out_type != DTYPE_F16 ||
         a->n_heads * a->kv.head_dim % 64 != 0)) {
        return E_INVAL;
    }
    if (!a->kv.tensor_core) return attention_plain_launch(a, args, 0, stream);
    const bool pdl = args->pdl && a->sm >= 90;
    status s = OK;
    if (p->decode_grid > 0) {
        const attention_kernel *k = &a->decode[p->decode_variant];
        decode_args d = decode_args_of(a, p, args);
        s = launch(k->fn, p->decode_grid, k->warps * 32, k->smem_bytes, &d, pdl, stream);
    }
    if (s == OK && p->tile_grid > 0) {
        const bool full = a->tile[1].fn && (p->tiles_split || a->window > 0);
        const attention_tile_kernel *k = &a->tile[full];
        prefill_args d = prefill_args_of(a, p, args);
        s = launch(k->fn, p->tile_grid, k->threads, k->smem_bytes, &d, pdl, stream);
    }
    return s;
}
