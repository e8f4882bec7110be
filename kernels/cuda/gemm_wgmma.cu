/* Chooses and launches the wgmma kernels (gemm_wgmma.cuh): the variant by format and rows, the grid
 * by how evenly the units divide. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_wgmma_table.h"

namespace {

enum { THREADS = 320, TILES_A_BLOCK = 8 };

typedef const wgmma_variant *table(int stage_units);
table *const TABLES[WF_COUNT] = {wgmma_q4k, wgmma_q5k, wgmma_q6k, wgmma_q80, wgmma_q40,
                                 wgmma_q41, wgmma_q50, wgmma_q51, nullptr};

struct plan {
    const wgmma_variant *v;
    int grid;
    bool splits; /* row blocks shared, summed in y */
    bool shares; /* row blocks shared by two neighbours, summed by the first */
};

const wgmma_variant *variants_of(const cuda_matrix *m) {
    if (TABLES[m->format] == nullptr) return nullptr;
    const wgmma_variant *v = m->n_units % 4 == 0 ? TABLES[m->format](4) : nullptr;
    return v == nullptr && m->n_units % 2 == 0 ? TABLES[m->format](2) : v;
}

int row_blocks(const cuda_matrix *m, const wgmma_variant *v) {
    const int tiles = TILES_A_BLOCK * v->m_blocks;
    return (m->n_tiles + tiles - 1) / tiles;
}

/* Whole row blocks (no sharing) when they fill the device about evenly; else equal runs of units,
 * on as few blocks as finish in the same number of units. Outputs through SwiGLU can share a row
 * block between two neighbours only, so their runs must be a row block long at least. */
void choose_grid(const cuda_matrix *m, linear_output output, int n_sms, plan *p) {
    const int blocks = row_blocks(m, p->v), stages = m->n_units / p->v->stage_units;
    const int waves = (blocks + n_sms - 1) / n_sms;
    const long long units = (long long)blocks * stages;
    const double ideal = (double)units / n_sms;
    const int share = (int)((units + n_sms - 1) / n_sms);
    const int grid = (int)((units + share - 1) / share);
    p->splits = p->shares = false;
    p->grid = (blocks + waves - 1) / waves;
    if (output == LINEAR_GLU) {
        /* handing sums over costs 2 us: 8B at 64 rows 40.8 -> 42.4 (1.18 of the ideal), 7B at
         * 32 rows 47.3 -> 38.3 (1.78) */
        if ((double)waves * stages <= 1.25 * ideal || units / grid < stages) return;
        p->shares = true;
        p->grid = grid;
        return;
    }
    if (output == LINEAR_STORE && (double)waves * stages <= 1.2 * ideal) return;
    p->splits = true;
    p->grid = grid;
}

bool make_plan(const cuda_matrix *m, linear_output output, int columns, int n_sms, plan *p) {
    const wgmma_variant *v = variants_of(m);
    if (v == nullptr) return false;
    p->v = nullptr;
    for (int i = 0; i < WGMMA_VARIANTS; i++) {
        if (v[i].columns != columns) continue;
        /* two m64 blocks a warpgroup when there are enough rows to fill the device with them */
        if (p->v == nullptr || m->n_tiles < 2 * TILES_A_BLOCK * 100) p->v = &v[i];
    }
    if (p->v == nullptr) return false;
    choose_grid(m, output, n_sms, p);
    return true;
}

const wgmma_pair_variant *pair_of(const cuda_matrix *a, const cuda_matrix *b, int n_rows) {
    const int columns = wgmma_columns(n_rows);
    if (a->n_in != b->n_in || a->n_units != b->n_units) return nullptr;
    const wgmma_pair_variant *v =
        a->n_units % 4 == 0 ? wgmma_pair(a->format, b->format, 4) : nullptr;
    if (v == nullptr && a->n_units % 2 == 0) v = wgmma_pair(a->format, b->format, 2);
    for (int i = 0; v != nullptr && i < WGMMA_PAIR_VARIANTS; i++) {
        if (v[i].columns == columns) return &v[i];
    }
    return nullptr;
}

status launch(const void *fn, int grid, int smem_bytes, bool pdl, void **params,
              cudaStream_t stream) {
    cudaLaunchConfig_t c = {};
    c.gridDim = dim3((unsigned)grid);
    c.blockDim = dim3(THREADS);
    c.dynamicSmemBytes = (size_t)smem_bytes;
    c.stream = stream;
    cudaLaunchAttribute at[1];
    at[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    at[0].val.programmaticStreamSerializationAllowed = 1;
    c.attrs = at;
    c.numAttrs = pdl ? 1 : 0;
    return cuda_status(cudaLaunchKernelExC(&c, fn, params));
}

status raise_limit(const void *fn, int smem_bytes) {
    return cuda_status(
        cudaFuncSetAttribute(fn, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes));
}

} // namespace

extern "C" int wgmma_columns(int n_rows) {
    return n_rows <= 16 ? 16 : n_rows <= 32 ? 32 : n_rows <= 64 ? 64 : n_rows <= 128 ? 128 : 0;
}

extern "C" bool wgmma_fits(const cuda_matrix *m) {
    return m->n_in % UNIT_INPUTS == 0 && m->n_out % 4 == 0 && variants_of(m) != nullptr;
}

extern "C" bool wgmma_splits(const cuda_matrix *m, linear_output output, int n_rows, int n_sms) {
    plan p;
    return make_plan(m, output, wgmma_columns(n_rows), n_sms, &p) && p.splits;
}

extern "C" size_t wgmma_partial_bytes(int n_sms) {
    return (size_t)n_sms * 128 * 128 * sizeof(float); /* the largest row block times columns */
}

extern "C" status cuda_linear_wgmma(const wgmma_args *a, int n_sms, cudaStream_t stream) {
    plan p;
    if (a->n_rows < 1 || a->columns != wgmma_columns(a->n_rows) || !wgmma_fits(&a->m) ||
        !make_plan(&a->m, a->output, a->columns, n_sms, &p)) {
        return E_INVAL;
    }
    wgmma_args args = *a;
    args.whole = !p.splits && !p.shares;
    if (p.shares && (a->partial == nullptr || a->flags == nullptr)) return E_INVAL;
    void *params[] = {&args};
    return launch(p.v->fn, p.grid, p.v->smem_bytes, a->pdl, params, stream);
}

extern "C" bool wgmma_pair_fits(const cuda_matrix *first, const cuda_matrix *second, int n_rows) {
    return wgmma_fits(first) && wgmma_fits(second) && pair_of(first, second, n_rows) != nullptr;
}

extern "C" status cuda_linear_wgmma_pair(const wgmma_args *first, const wgmma_args *second,
                                         int n_sms, cudaStream_t stream) {
    const wgmma_pair_variant *v = pair_of(&first->m, &second->m, first->n_rows);
    if (v == nullptr || first->output != LINEAR_STORE || second->output != LINEAR_STORE ||
        n_sms < 2) {
        return E_INVAL;
    }
    wgmma_args a = *first, b = *second;
    a.whole = b.whole = false;
    const double wa = (double)a.m.n_tiles * (double)weight_tile_bytes(a.m.format, a.m.n_in);
    const double wb = (double)b.m.n_tiles * (double)weight_tile_bytes(b.m.format, b.m.n_in);
    int n_first = (int)(wa / (wa + wb) * n_sms + 0.5);
    n_first = n_first < 1 ? 1 : n_first > n_sms - 1 ? n_sms - 1 : n_first;
    void *params[] = {&a, &b, &n_first};
    return launch(v->fn, n_sms, v->smem_bytes, first->pdl, params, stream);
}

extern "C" status wgmma_init(void) {
    status s = OK;
    for (int f = 0; f < WF_COUNT; f++) {
        for (int units = 2; units <= 4; units += 2) {
            const wgmma_variant *v = TABLES[f] != nullptr ? TABLES[f](units) : nullptr;
            for (int i = 0; v != nullptr && i < WGMMA_VARIANTS && s == OK; i++) {
                s = raise_limit(v[i].fn, v[i].smem_bytes);
            }
            for (int g = 0; g < WF_COUNT; g++) {
                const wgmma_pair_variant *p = wgmma_pair(f, g, units);
                for (int i = 0; p != nullptr && i < WGMMA_PAIR_VARIANTS && s == OK; i++) {
                    s = raise_limit(p[i].fn, p[i].smem_bytes);
                }
            }
        }
    }
    return s;
}
