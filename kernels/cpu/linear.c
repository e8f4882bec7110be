/* Spreads matrix products over the pool. */
#include "kernels/cpu/backend_cpu.h"

/* A chunk's quantised rows (96 bytes a block) should leave most of a 1-2 MiB second-level cache to
 * the rest; the panels then stream through once for every chunk. */
enum { CHUNK_BYTES = 512 * 1024, TASKS_PER_THREAD = 6 };

int linear_rows_chunk(int n_rows, int n_blocks) {
    int rows = CHUNK_BYTES / (n_blocks * (int)(sizeof(act_block) / ACT_ROWS));
    rows = rows / 16 * 16;
    if (rows < 16) rows = 16;
    if (rows > 256) rows = 256;
    return rows < n_rows ? rows : n_rows;
}

static void linear_task(void *ctx, int i_task, int i_thread) {
    (void)i_thread;
    const linear_job *j = ctx;
    const int row0 = i_task / j->n_panel_chunks * j->rows_chunk;
    const int n_rows = j->n_rows - row0 < j->rows_chunk ? j->n_rows - row0 : j->rows_chunk;
    const int p0 = i_task % j->n_panel_chunks * j->panels_chunk;
    int first = 0; /* of the matrix, among all panels */
    for (int i = 0; i < j->n_matrices; first += j->matrix[i++].w->n_panels) {
        const int n_panels = j->matrix[i].w->n_panels;
        const int from = p0 > first ? p0 - first : 0, end = p0 + j->panels_chunk - first;
        const int to = end < n_panels ? end : n_panels;
        if (from >= to) continue;
        const float *bias = j->matrix[i].bias;
        const linear_out o = {.y = j->matrix[i].y + (size_t)row0 * j->matrix[i].ld +
                                   from * PACK_ROWS,
                              .ld = j->matrix[i].ld,
                              .bias = bias != NULL ? bias + from * PACK_ROWS : NULL,
                              .add = j->add};
        j->b->kernels->linear(j->matrix[i].w, &j->in, from, to, row0, n_rows, &o);
    }
}

void linear_run(linear_job *j) {
    int n_panels = 0;
    for (int i = 0; i < j->n_matrices; i++) n_panels += j->matrix[i].w->n_panels;
    j->rows_chunk = linear_rows_chunk(j->n_rows, j->in.n_blocks);
    const int n_row_chunks = (j->n_rows + j->rows_chunk - 1) / j->rows_chunk;
    const int n_tasks = TASKS_PER_THREAD * pool_n_threads(j->b->pool);
    j->panels_chunk = n_panels / n_tasks + 1;
    j->n_panel_chunks = (n_panels + j->panels_chunk - 1) / j->panels_chunk;
    pool_run(j->b->pool, n_row_chunks * j->n_panel_chunks, linear_task, j);
}
