/* Chooses and launches the matrix-vector kernels (gemv.cuh): units a warp, warps, passes and ring
 * depth from the shape. About 80 KB in flight an SM is best (study: depth 2, 3, 4 of 38 KB each =
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
    int n_warps, n_passes, n_slots, grid;
    size_t smem_bytes;
};

size_t smem_of(int pitch, int n_warps, int n_slots, int n_rows, int tiles) {
    return (size_t)(n_warps * n_slots) * (size_t)pitch + (size_t)(4 * n_warps * n_rows * 20) * 4 +
           (size_t)(n_warps * n_slots) * 8 + (size_t)n_warps * 32 + (size_t)tiles * 64;
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
    s->fn = s->n_passes > 1 ? s->k->multi_pass : s->k->one_pass[output];
    const int least = m->format == WF_F16 ? 1 : 2;
    const int fit = IN_FLIGHT_BYTES / (s->n_warps * s->k->slot_bytes);
    s->n_slots = fit < least ? least : fit > 6 ? 6 : fit;
    s->smem_bytes = smem_of(s->k->slot_pitch, s->n_warps, s->n_slots, n_rows, tiles);
    return s->smem_bytes <= SMEM_BYTES;
}

bool shape_of(const cuda_matrix *m, gemv_output output, int n_rows, int n_sms, shape *s) {
    if (n_rows < 1 || n_rows > ROWS_MAX || m->n_in % 16 != 0) return false;
    if (output == GEMV_GLU && m->n_tiles % 2 != 0) return false;
    return try_units(m, output, n_rows, n_sms, 4, s) || try_units(m, output, n_rows, n_sms, 1, s);
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
    a.n_warps = s.n_warps;
    a.n_slots = s.n_slots;
    a.n_passes = s.n_passes;
    cudaLaunchConfig_t c = {};
    c.gridDim = dim3((unsigned)s.grid);
    c.blockDim = dim3((unsigned)(s.n_warps * 32));
    c.dynamicSmemBytes = s.smem_bytes;
    c.stream = stream;
    cudaLaunchAttribute at[1];
    at[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    at[0].val.programmaticStreamSerializationAllowed = 1;
    c.attrs = at;
    c.numAttrs = a.pdl ? 1 : 0;
    void *params[] = {&a};
    return cuda_status(cudaLaunchKernelExC(&c, s.fn, params));
}

extern "C" status gemv_init(void) {
    for (int f = 0; f < WF_COUNT; f++) {
        for (int units = 1; units <= 4; units++) {
            const gemv_kernels *k = TABLES[f](units);
            if (k == nullptr) continue;
            for (int i = 0; i < 5; i++) {
                const void *fn = i < 4 ? k->one_pass[i] : k->multi_pass;
                if (cudaFuncSetAttribute(fn, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         SMEM_BYTES) != cudaSuccess) {
                    return cuda_status(cudaGetLastError());
                }
            }
        }
    }
    return OK;
}
