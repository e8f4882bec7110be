/* Spreads matrix products over the pool.
 *
 * Few rows stream the weights once, and what counts is that nothing interrupts the streams: every
 * thread gets one contiguous piece of each matrix, and quantises the rows for itself; that takes it
 * less time than fetching them from another core's cache. */
#include "kernels/cpu/backend_cpu.h"

/* A chunk's quantised rows (132 bytes a block) should leave most of a 1-2 MiB second-level cache to
 * the rest; the panels then stream through once for every chunk. */
enum { CHUNK_BYTES = 512 * 1024, TASKS_PER_THREAD = 6 };

int linear_rows_chunk(int n_rows, int n_blocks) {
    int rows = CHUNK_BYTES / (n_blocks * (int)(sizeof(act_block) / ACT_ROWS));
    rows = rows / 16 * 16;
    if (rows < 16) rows = 16;
    if (rows > 256) rows = 256;
    return rows < n_rows ? rows : n_rows;
}

/* ---- input rows ---- */

static const float *source_row(const linear_input *in, int row) {
    const int from = in->rows != NULL ? in->rows[row].row : row;
    return in->x + (size_t)from * in->ld;
}

/* Row `row` quantised into q, at the place of its number; normalised on the way, into normed. */
static void prepare_row(const cpu_backend *b, const linear_input *in, int row, float *normed,
                        act_block *q) {
    const int n_blocks = (int)in->ld / PACK_BLOCK;
    const float *x = source_row(in, row);
    if (in->norm != NULL) {
        b->kernels->rms_norm(normed, x, in->norm, b->m.n_embd, (int)in->ld, b->m.norm_eps);
        x = normed;
    }
    b->kernels->quantise(x, n_blocks, q + (size_t)(row / ACT_ROWS) * (size_t)n_blocks,
                         row % ACT_ROWS);
}

typedef struct prepare_job {
    const cpu_backend *b;
    const linear_input *in;
    int n_rows;
} prepare_job;

static void prepare_task(void *ctx, int i_task, int i_thread) {
    (void)i_thread;
    const prepare_job *j = ctx;
    const int left = j->n_rows - i_task * ROWS_TASK, n = left < ROWS_TASK ? left : ROWS_TASK;
    for (int r = i_task * ROWS_TASK; r < i_task * ROWS_TASK + n; r++)
        prepare_row(j->b, j->in, r, j->b->w.normed + (size_t)r * j->in->ld, j->b->w.in_q);
}

act linear_input_shared(const cpu_backend *b, const linear_input *in, int n_rows) {
    if (in->q == NULL) {
        prepare_job j = {.b = b, .in = in, .n_rows = n_rows};
        pool_run(b->pool, (n_rows + ROWS_TASK - 1) / ROWS_TASK, prepare_task, &j);
    }
    return (act){.f = in->norm != NULL ? b->w.normed : in->x,
                 .ld = in->ld,
                 .q = in->q != NULL ? in->q : b->w.in_q,
                 .n_blocks = (int)in->ld / PACK_BLOCK};
}

act linear_input_own(const cpu_backend *b, const linear_input *in, int n_rows, int i_thread) {
    float *normed = b->w.own_normed + (size_t)i_thread * FEW_ROWS * (size_t)b->w.embd_ld;
    act_block *q = b->w.own_q + (size_t)i_thread * (size_t)b->w.own_blocks;
    for (int r = 0; r < n_rows; r++) prepare_row(b, in, r, normed + (size_t)r * in->ld, q);
    return (act){.f = in->norm != NULL ? normed : in->x,
                 .ld = in->ld,
                 .q = q,
                 .n_blocks = (int)in->ld / PACK_BLOCK};
}

/* ---- products ---- */

/* Panels [p0, p1) of all matrices together, for n_rows rows from row0. */
static void run_panels(const linear_job *j, const act *in, int p0, int p1, int row0, int n_rows) {
    int first = 0; /* of the matrix, among all panels */
    for (int i = 0; i < j->n_matrices; first += j->matrix[i++].w->n_panels) {
        const int n_panels = j->matrix[i].w->n_panels;
        const int from = p0 > first ? p0 - first : 0, end = p1 - first;
        const int to = end < n_panels ? end : n_panels;
        if (from >= to) continue;
        const float *bias = j->matrix[i].bias;
        const linear_out o = {.y = j->matrix[i].y + (size_t)row0 * j->matrix[i].ld +
                                   from * PACK_ROWS,
                              .ld = j->matrix[i].ld,
                              .bias = bias != NULL ? bias + from * PACK_ROWS : NULL,
                              .add = j->add};
        j->b->kernels->linear(j->matrix[i].w, in, from, to, row0, n_rows, &o);
    }
}

static void many_task(void *ctx, int i_task, int i_thread) {
    (void)i_thread;
    const linear_job *j = ctx;
    const int row0 = i_task / j->n_panel_chunks * j->rows_chunk;
    const int n_rows = j->n_rows - row0 < j->rows_chunk ? j->n_rows - row0 : j->rows_chunk;
    const int p0 = i_task % j->n_panel_chunks * j->panels_chunk;
    run_panels(j, &j->in, p0, p0 + j->panels_chunk, row0, n_rows);
}

static void few_task(void *ctx, int i_task, int i_thread) {
    const linear_job *j = ctx;
    const act in = linear_input_own(j->b, &j->input, j->n_rows, i_thread);
    const int n_tasks = pool_n_threads(j->b->pool);
    run_panels(j, &in, linear_share(j->n_panels, i_task, n_tasks),
               linear_share(j->n_panels, i_task + 1, n_tasks), 0, j->n_rows);
}

void linear_run(linear_job *j) {
    const int n_threads = pool_n_threads(j->b->pool);
    j->n_panels = 0;
    for (int i = 0; i < j->n_matrices; i++) j->n_panels += j->matrix[i].w->n_panels;
    if (j->n_rows <= FEW_ROWS) {
        pool_run(j->b->pool, n_threads, few_task, j);
        return;
    }
    j->in = linear_input_shared(j->b, &j->input, j->n_rows);
    j->rows_chunk = linear_rows_chunk(j->n_rows, j->in.n_blocks);
    const int n_row_chunks = (j->n_rows + j->rows_chunk - 1) / j->rows_chunk;
    j->panels_chunk = j->n_panels / (TASKS_PER_THREAD * n_threads) + 1;
    j->n_panel_chunks = (j->n_panels + j->panels_chunk - 1) / j->panels_chunk;
    pool_run(j->b->pool, n_row_chunks * j->n_panel_chunks, many_task, j);
}
