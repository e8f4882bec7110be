/* Chooses and launches the matrix-vector kernels (gemv.cuh): units a warp, warps, passes and ring
 * depth from the shape. About 80 KB in flight an SM is best (depth 2, 3, 4 of 38 KB each:
 * 17.0, 17.8, 19.0 us on gate_up). */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemv_table.h"

namespace {

enum {
    WARPS_MAX = 16,
    ROWS_MAX = 8,
    GROUP_TILES = 2, /* reduced together: a thread has at most one output */
    MULTI_TILES = 2, /* of a block, when the inputs take several passes */
    IN_FLIGHT_BYTES = 80 << 10,
    SMEM_BYTES = 227 << 10
};

typedef const gemv_kernels *table(int units);
table *const TABLES[WF_COUNT] = {gemv_q4k, gemv_q5k, gemv_q6k, gemv_q80, gemv_q40,
                                 gemv_q41, gemv_q50, gemv_q51, gemv_f16};

struct shape {
    const gemv_kernels *k;
    const void *fn;
    int n_warps, n_passes, n_slots, grid, group;
    size_t smem_bytes;
};

size_t smem_of(gemv_output output, int pitch, int n_warps, int n_slots, int n_rows, int tiles) {
    return (size_t)(n_warps * n_slots) * (size_t)pitch +
           (size_t)(gemv_sum_tiles(output) * n_warps * n_rows * 20) * 4 +
           (size_t)(n_warps * ((n_slots + 1) & ~1)) * 8 + (size_t)n_warps * 32 + (size_t)tiles * 64;
}

/* Tiles reduced together, so that a thread has one output at most: all of a block, or half of what
 * the sums' memory holds. */
int group_of(gemv_output output, int n_warps, int tiles, int n_rows) {
    const int room = gemv_sum_tiles(output), outputs = n_warps * 32 / (TILE_ROWS * n_rows);
    if (output == GEMV_GLU) return 2 * outputs < room / 2 ? 2 : room / 2; /* a pair an output */
    if (tiles <= room && tiles <= outputs) return tiles;
    return outputs < room / 2 ? GROUP_TILES : room / 2;
}

bool try_units(const cuda_matrix *m, gemv_output output, int n_rows, int n_sms, int units,
               shape *s) {
    s->k = TABLES[m->format](units);
    if (s->k == nullptr || m->n_units % units != 0) return false;
    const int slices = m->n_units / units;
    s->n_passes = (slices + WARPS_MAX - 1) / WARPS_MAX;
    s->n_warps = (slices + s->n_passes - 1) / s->n_passes;
    const int pair = output == GEMV_GLU ? 2 : 1, groups = m->n_tiles / pair;
    s->grid = groups < n_sms ? groups : n_sms;
    const int tiles = pair * ((groups + s->grid - 1) / s->grid);
    if (s->n_warps * 32 < TILE_ROWS * GROUP_TILES * n_rows) return false;
    if (s->n_passes > 1 && (output != GEMV_RESIDUAL || tiles > MULTI_TILES)) return false;
    s->group = group_of(output, s->n_warps, tiles, n_rows);
    s->fn = s->n_passes > 1 ? s->k->multi_pass : s->k->one_pass[output];
    const int least = m->format == WF_F16 ? 1 : 2;
    const int fit = IN_FLIGHT_BYTES / (s->n_warps * s->k->slot_bytes);
    s->n_slots = fit < least ? least : fit > 6 ? 6 : fit;
    s->smem_bytes = smem_of(output, s->k->slot_pitch, s->n_warps, s->n_slots, n_rows, tiles);
    return s->smem_bytes <= SMEM_BYTES;
}

bool shape_of(const cuda_matrix *m, gemv_output output, int n_rows, int n_sms, shape *s) {
    if (n_rows < 1 || n_rows > ROWS_MAX || m->n_in % 16 != 0) return false;
    if (output == GEMV_GLU && m->n_tiles % 2 != 0) return false;
    return try_units(m, output, n_rows, n_sms, 4, s) || try_units(m, output, n_rows, n_sms, 1, s);
}

struct pair {
    shape first, second;
    const void *fn;
    int n_first; /* blocks of the first matrix */
    size_t smem_bytes;
};

/* Blocks for the first matrix, so that the slowest block has the least to read. */
int split_blocks(const cuda_matrix *a, const cuda_matrix *b, int n_sms) {
    const double a_tile = (double)weight_tile_bytes(a->format, a->n_in);
    const double b_tile = (double)weight_tile_bytes(b->format, b->n_in);
    int best = 1;
    double least = 1e30;
    for (int n = 1; n < n_sms; n++) {
        const double ta = a_tile * ((a->n_tiles + n - 1) / n);
        const double tb = b_tile * ((b->n_tiles + n_sms - n - 1) / (n_sms - n));
        const double t = ta > tb ? ta : tb;
        if (t < least) {
            least = t;
            best = n;
        }
    }
    return best;
}

bool pair_of(const cuda_matrix *a, const cuda_matrix *b, gemv_output output, int n_rows, int n_sms,
             pair *p) {
    if ((output != GEMV_STORE && output != GEMV_ROPE) || a->n_in != b->n_in || n_sms < 2)
        return false;
    for (int units = 4; units >= 1; units -= 3) {
        const gemv_pair_kernels *k = gemv_pair(a->format, b->format, units);
        if (k == nullptr || !try_units(a, output, n_rows, n_sms, units, &p->first) ||
            !try_units(b, output, n_rows, n_sms, units, &p->second) || p->first.n_passes != 1 ||
            p->second.n_passes != 1) {
            continue;
        }
        p->fn = output == GEMV_ROPE ? k->rope : k->store;
        p->n_first = split_blocks(a, b, n_sms);
        const int ta = (a->n_tiles + p->n_first - 1) / p->n_first;
        const int tb = (b->n_tiles + n_sms - p->n_first - 1) / (n_sms - p->n_first);
        p->first.group = group_of(output, p->first.n_warps, ta, n_rows);
        p->second.group = group_of(output, p->second.n_warps, tb, n_rows);
        const size_t sa =
            smem_of(output, p->first.k->slot_pitch, p->first.n_warps, p->first.n_slots, n_rows, ta);
        const size_t sb = smem_of(output, p->second.k->slot_pitch, p->second.n_warps,
                                  p->second.n_slots, n_rows, tb);
        p->smem_bytes = sa > sb ? sa : sb;
        return p->smem_bytes <= SMEM_BYTES;
    }
    return false;
}

void set_shape(gemv_args *a, const shape *s) {
    a->n_warps = s->n_warps;
    a->n_slots = s->n_slots;
    a->n_passes = s->n_passes;
    a->group = s->group;
}

status launch(const void *fn, int grid, int n_warps, size_t smem_bytes, bool pdl, void **params,
              cudaStream_t stream) {
    cudaLaunchConfig_t c = {};
    c.gridDim = dim3((unsigned)grid);
    c.blockDim = dim3((unsigned)(n_warps * 32));
    c.dynamicSmemBytes = smem_bytes;
    c.stream = stream;
    cudaLaunchAttribute at[1];
    at[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    at[0].val.programmaticStreamSerializationAllowed = 1;
    c.attrs = at;
    c.numAttrs = pdl ? 1 : 0;
    return cuda_status(cudaLaunchKernelExC(&c, fn, params));
}

status raise_limit(const void *fn) {
    return cuda_status(
        cudaFuncSetAttribute(fn, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_BYTES));
}

} // namespace

extern "C" bool gemv_fits(const cuda_matrix *m, gemv_output output, int n_rows, int n_sms) {
    shape s;
    return shape_of(m, output, n_rows, n_sms, &s);
}

extern "C" status cuda_gemv(const gemv_args *args, gemv_output output, int n_sms,
                            cudaStream_t stream) {
    shape s;
    if (!shape_of(&args->m, output, args->n_rows, n_sms, &s)) return E_INVAL;
    gemv_args a = *args;
    set_shape(&a, &s);
    void *params[] = {&a};
    return launch(s.fn, s.grid, s.n_warps, s.smem_bytes, a.pdl, params, stream);
}

extern "C" bool gemv_pair_fits(const cuda_matrix *first, const cuda_matrix *second,
                               gemv_output output, int n_rows, int n_sms) {
    pair p;
    return pair_of(first, second, output, n_rows, n_sms, &p);
}

extern "C" status cuda_gemv_pair(const gemv_args *first, const gemv_args *second,
                                 gemv_output output, int n_sms, cudaStream_t stream) {
    pair p;
    if (!pair_of(&first->m, &second->m, output, first->n_rows, n_sms, &p)) return E_INVAL;
    gemv_args a = *first, b = *second;
    set_shape(&a, &p.first);
    set_shape(&b, &p.second);
    void *params[] = {&a, &b, &p.n_first};
    return launch(p.fn, n_sms, p.first.n_warps, p.smem_bytes, a.pdl, params, stream);
}

extern "C" status gemv_init(void) {
    status s = OK;
    for (int f = 0; f < WF_COUNT; f++) {
        for (int units = 1; units <= 4; units++) {
            const gemv_kernels *k = TABLES[f](units);
            for (int i = 0; k != nullptr && i < 5 && s == OK; i++) {
                s = raise_limit(i < 4 ? k->one_pass[i] : k->multi_pass);
            }
            for (int g = 0; g < WF_COUNT && s == OK; g++) {
                const gemv_pair_kernels *p = gemv_pair(f, g, units);
                if (p == nullptr) continue;
                s = raise_limit(p->store);
                if (s == OK) s = raise_limit(p->rope);
            }
        }
    }
    return s;
}
