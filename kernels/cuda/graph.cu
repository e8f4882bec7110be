/* Decode steps as captured graphs: one for each bucket of rows, made at start. A step fits when
 * every sequence has one row and sample i is row i; it runs in the smallest bucket that holds it,
 * its missing rows being sequences of one token in the pool's spare block. The graph reads
 * everything that changes from the step's device buffers; sampling is launched behind it, as its
 * kernels depend on the step. */
#include <string.h>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"

namespace {

const int BUCKETS[] = {1,  2,  3,  4,  5,  6,  7,   8,   12,  16,  20,  24,  28,  32,  40,  48,
                       56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 144, 160, 176, 192, 224, 256};
enum { N_BUCKETS = sizeof BUCKETS / sizeof BUCKETS[0] };

status queue_step(cuda_backend *b) {
    step_rows_args r = {};
    r.seq_start = b->dev.seq_start;
    r.kv_len = b->dev.kv_len;
    r.n_seqs = r.n_tokens = b->n_rows;
    r.freq = b->rope_freq;
    r.n_rot = b->shape.n_rot;
    r.mscale = b->shape.rope_mscale;
    r.row_seq = b->dev.row_seq;
    r.row_pos = b->dev.row_pos;
    r.rope = b->dev.rope;
    status s = cuda_step_rows(&r, b->stream);
    if (s == OK) s = cuda_op_embed(b);
    for (int i = 0; i < b->shape.n_layers && s == OK; i++) {
        s = cuda_op_qkv(b, i);
        if (s == OK) s = cuda_op_attention(b, i);
        if (s == OK) s = cuda_op_attn_output(b, i);
        if (s == OK) s = cuda_op_gate_up(b, i);
        if (s == OK) s = cuda_op_down(b, i);
    }
    return s == OK ? cuda_op_head(b) : s;
}

/* A made-up step of `bucket` one-token sequences, for the plan that the capture bakes in. */
status plan_bucket(cuda_backend *b, int bucket, attention_plan *p) {
    int32_t start[GRAPH_ROWS_MAX + 1], len[GRAPH_ROWS_MAX], block_start[GRAPH_ROWS_MAX + 1];
    int32_t block[GRAPH_ROWS_MAX], token[GRAPH_ROWS_MAX];
    step s;
    memset(&s, 0, sizeof s);
    for (int i = 0; i < bucket; i++) {
        start[i] = block_start[i] = i;
        len[i] = 1;
        block[i] = 0;
        token[i] = 0;
    }
    start[bucket] = block_start[bucket] = bucket;
    s.n_tokens = s.n_seqs = s.n_decode = s.n_blocks = bucket;
    s.token = token;
    s.seq_start = start;
    s.kv_len = len;
    s.block_start = block_start;
    s.block = block;
    return attention_plan_make(&b->attn, &s, bucket, b->slot[0].host.attention_plan, p);
}

status capture(cuda_backend *b, int bucket, error *err) {
    cuda_graph *g = &b->graph[b->n_graphs];
    b->n_rows = b->n_head_rows = bucket;
    b->head_is_rows = true;
    b->pdl = b->sm >= 90;
    status s = plan_bucket(b, bucket, &b->plan);
    if (s != OK) return error_set(err, s, "cuda: attention plan of %d rows", bucket);
    cudaGraph_t graph = nullptr;
    if (cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
        return error_set(err, cuda_keep(b, E_DEVICE), "cuda: graph capture");
    }
    s = queue_step(b);
    const cudaError_t e = cudaStreamEndCapture(b->stream, &graph);
    if (s != OK || e != cudaSuccess || graph == nullptr) {
        return error_set(err, s != OK ? s : cuda_keep(b, E_DEVICE), "cuda: graph of %d rows: %s",
                         bucket, cudaGetErrorString(e));
    }
    const cudaError_t made = cudaGraphInstantiate(&g->exec, graph, 0);
    (void)cudaGraphDestroy(graph);
    if (made != cudaSuccess) {
        (void)cudaGetLastError();
        return error_set(err, E_NOMEM, "cuda: graph of %d rows: %s", bucket,
                         cudaGetErrorString(made));
    }
    (void)cudaGraphUpload(g->exec, b->stream);
    g->bucket = bucket;
    g->plan = b->plan;
    b->n_graphs++;
    return OK;
}

} // namespace

status cuda_graphs_capture(cuda_backend *b, error *err) {
    /* the plain kernel of layouts without tensor cores takes all rows by their own loops: a graph
     * serves it as well */
    const int most = b->limits.n_seqs_max < b->limits.n_tokens_max ? b->limits.n_seqs_max
                                                                   : b->limits.n_tokens_max;
    for (int i = 0; i < N_BUCKETS; i++) {
        const status s = capture(b, BUCKETS[i], err);
        if (s != OK) return s;
        if (BUCKETS[i] >= most) break;
    }
    b->pdl = b->sm >= 90;
    if (cudaStreamSynchronize(b->stream) != cudaSuccess) return cuda_keep(b, E_DEVICE);
    return OK;
}

int cuda_graph_bucket(const cuda_backend *b, const step *s) {
    if (s->n_decode != s->n_seqs || s->n_tokens != s->n_seqs || s->n_samples != s->n_tokens)
        return 0;
    for (int i = 0; i < s->n_samples; i++) {
        if (s->sample[i].row != i) return 0;
    }
    for (int i = 0; i < b->n_graphs; i++) {
        if (b->graph[i].bucket >= s->n_tokens) return b->graph[i].bucket;
    }
    return 0;
}

void cuda_graphs_destroy(cuda_backend *b) {
    for (int i = 0; i < b->n_graphs; i++) (void)cudaGraphExecDestroy(b->graph[i].exec);
    b->n_graphs = 0;
}
