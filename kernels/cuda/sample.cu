/* Sampling's start-up, plan and dispatch: see sample.h, sample_internal.h. */
#include <string.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sample_internal.h"

#define ALIGN_BYTES 256
#define ENTRIES_MIN (1 << 16)
#define ENTRIES_MAX (1 << 20)

static size_t align_up(size_t n) {
    return (n + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

static int n_slices(const sampler *s) {
    return (s->n_vocab + SLICE - 1) / SLICE;
}

/* Room for shared lists, within 8 MiB unless the arrays alone need more. */
static int entries_for(int n_entries) {
    const long long shared = (long long)n_entries * LIMIT_CHOICES;
    const int room = shared < ENTRIES_MIN   ? ENTRIES_MIN
                     : shared > ENTRIES_MAX ? ENTRIES_MAX
                                            : (int)shared;
    return room > n_entries ? room : n_entries;
}

extern "C" status sampler_init(sampler *s, int n_vocab, int logits_stride, int n_samples_max,
                               int n_entries, const uint8_t *never_sampled, int device,
                               error *err) {
    if (n_vocab < 1 || n_vocab > SAMPLER_VOCAB_MAX) {
        return error_set(err, E_UNSUPPORTED,
                         "cuda: sampling from %d tokens is not built (at most %d)", n_vocab,
                         SAMPLER_VOCAB_MAX);
    }
    if (logits_stride < n_vocab || logits_stride % 8 != 0 || n_samples_max < 1 ||
        n_samples_max > 65535 || n_entries < 0) {
        return error_set(err, E_INVAL, "cuda: sampler: stride %d, %d rows, %d entries",
                         logits_stride, n_samples_max, n_entries);
    }
    int major = 0, minor = 0;
    sampler r;
    memset(&r, 0, sizeof r);
    cudaError_t e = cudaDeviceGetAttribute(&r.n_sms, cudaDevAttrMultiProcessorCount, device);
    if (e == cudaSuccess) {
        e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    }
    if (e == cudaSuccess) {
        e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    }
    if (e != cudaSuccess) {
        return error_set(err, E_DEVICE, "cuda: device %d: %s", device, cudaGetErrorString(e));
    }
    r.n_vocab = n_vocab;
    r.n_samples_max = n_samples_max;
    r.logits_stride = logits_stride;
    r.n_entries_max = entries_for(n_entries);
    r.never_sampled = never_sampled;
    r.sm = major * 10 + minor;
    *s = r;
    return OK;
}

extern "C" size_t sampler_plan_bytes(const sampler *s) {
    return align_up(((size_t)s->n_samples_max + 1) * sizeof(int32_t));
}

/* Lays the workspace out; NULL base: only its size matters. */
static size_t place_workspace(const sampler *s, char *base, sample_args *a) {
    size_t used = 0;
    const size_t rows = (size_t)s->n_samples_max, slices = rows * (size_t)n_slices(s);
    const size_t entries = (size_t)s->n_entries_max + 1;
    auto take = [&](size_t bytes) {
        char *p = base + used;
        used += align_up(bytes);
        return p;
    };
    a->best = (unsigned long long *)take(rows * sizeof(unsigned long long));
    a->ticket = (unsigned *)take(rows * sizeof(unsigned));
    a->entry_raw = (float *)take(entries * sizeof(float));
    a->entry_adj = (float *)take(entries * sizeof(float));
    a->group_raw = (float *)take(slices * GROUPS * sizeof(float));
    a->group_top = s->never_sampled ? (float *)take(slices * GROUPS * sizeof(float)) : a->group_raw;
    a->slice_top = (float *)take(slices * sizeof(float));
    a->slice_raw = (float *)take(slices * sizeof(float));
    a->sum_top = (float *)take(slices * sizeof(float));
    a->sum_raw = (float *)take(slices * sizeof(float));
    a->slice_arg = (int32_t *)take(slices * sizeof(int32_t));
    a->slice_bad = (int32_t *)take(slices * sizeof(int32_t));
    a->row_top = (float *)take(rows * sizeof(float));
    a->pending = (int32_t *)take(rows * sizeof(int32_t));
    return used;
}

extern "C" size_t sampler_workspace_bytes(const sampler *s) {
    sample_args a;
    return place_workspace(s, NULL, &a);
}

static void plan_filters(const sampler *s, const sample_row *r, sampler_plan *p) {
    const bool top_k = r->top_k > 0 && r->top_k < s->n_vocab;
    const bool top_p = r->top_p > 0.0f && r->top_p<1.0f, min_p = r->min_p> 0.0f;
    if (top_k || top_p || min_p) p->filters = true;
    if (!top_k && (top_p || min_p)) p->prefix = true;
    if (top_k && r->top_k > TOP_K_LIST) p->prefix = true;
}

extern "C" status sampler_plan_make(const sampler *s, const step *st, void *buffer,
                                    sampler_plan *p) {
    if (st->n_samples < 0 || st->n_samples > s->n_samples_max) return E_INVAL;
    memset(p, 0, sizeof *p);
    int32_t *entry_start = (int32_t *)buffer;
    int n = 0; /* entries of the range so far */
    p->greedy_only = true;
    for (int i = 0; i < st->n_samples; i++) {
        const sample_row *r = &st->sample[i];
        if (r->n_bias < 0 || r->n_seen < 0 || r->n_bias > s->n_entries_max ||
            r->n_seen > s->n_entries_max - r->n_bias) {
            return E_INVAL;
        }
        const int own = r->n_bias + r->n_seen;
        if (own > s->n_entries_max - n) {
            if (p->n_ranges + 1 >= SAMPLER_RANGES_MAX) return E_INVAL;
            p->range_end[p->n_ranges++] = i;
            n = 0;
        }
        entry_start[i] = n;
        n += own;
        if (own > 0) p->entries = true;
        if (r->target >= 0 || r->logprob || r->n_top > 0) p->detail = true;
        if (r->temperature > 0.0f) p->greedy_only = false;
        if (r->target < 0 && r->temperature > 0.0f) plan_filters(s, r, p);
    }
    p->range_end[p->n_ranges++] = st->n_samples;
    if (p->entries || p->detail) p->greedy_only = false;
    p->n_rows = st->n_samples;
    p->bytes = align_up(((size_t)st->n_samples + 1) * sizeof(int32_t));
    return OK;
}

/* Larger clusters pay while they find free multiprocessors: H200, 64 rows, top-p: 1, 2, 4, 8 blocks
 * 117, 82, 110, 180 us. */
static int cluster_for(const sampler *s, int n_rows) {
    if (s->sm < 90) return 1;
    return n_rows <= 16 ? 8 : n_rows <= 32 ? 4 : n_rows <= 64 ? 2 : 1;
}

/* One range: rows of `a` alone. */
static status sample_range(const sampler *s, const sampler_plan *p, sample_args a, bool pdl,
                           cudaStream_t stream) {
    if (p->greedy_only) return sample_scan_launch(&a, true, pdl, stream);
    const int cluster = cluster_for(s, a.n_rows);
    status st = OK;
    if (p->entries) st = sample_prepare_launch(&a, pdl, stream);
    if (st == OK) st = sample_scan_launch(&a, false, pdl, stream);
    a.restore = p->entries && !p->detail && !p->filters;
    if (st == OK) st = sample_pick_launch(&a, pdl, stream);
    a.restore = p->entries && !p->detail;
    if (st == OK && p->filters) { /* after top-k it is rarely more than a look */
        st = sample_prefix_launch(&a, p->prefix ? cluster : 1, pdl, stream);
    }
    if (st == OK && p->detail) st = sample_detail_launch(&a, cluster, pdl, stream);
    return st;
}

extern "C" status cuda_sample(const sampler *s, const sampler_plan *p, const sampler_args *args,
                              cudaStream_t stream) {
    if (p->n_rows == 0) return OK;
    if (p->n_rows < 0 || p->n_rows > s->n_samples_max || (p->detail && !args->out)) return E_INVAL;
    sample_args a;
    memset(&a, 0, sizeof a);
    place_workspace(s, (char *)args->workspace, &a);
    a.stride = (size_t)s->logits_stride;
    a.bias = args->bias;
    a.seen = args->seen;
    a.never = s->never_sampled;
    a.n_vocab = s->n_vocab;
    a.n_slices = n_slices(s);
    const bool pdl = args->pdl && s->sm >= 90;
    const int n_ranges = p->greedy_only ? 1 : p->n_ranges;
    status st = OK;
    for (int i = 0, row0 = 0; i < n_ranges && st == OK; i++) {
        const int end = p->greedy_only ? p->n_rows : p->range_end[i];
        a.logits = args->logits + (size_t)row0 * a.stride;
        a.rows = args->rows + row0;
        a.entry_start = (const int32_t *)args->plan + row0;
        a.token = args->token + row0;
        a.out = p->detail ? args->out + row0 : NULL;
        a.n_rows = end - row0;
        st = sample_range(s, p, a, pdl, stream);
        row0 = end;
    }
    return st;
}
