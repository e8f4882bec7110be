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

status queue_layers(cuda_backend *b) {
    status s = cuda_op_rows(b, b->n_rows, b->n_rows);
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

/* The node that was captured last on the stream. */
bool last_node(cuda_backend *b, cudaGraphNode_t *node, cudaKernelNodeParams *params) {
    cudaStreamCaptureStatus state;
    const cudaGraphNode_t *nodes = nullptr;
    size_t n = 0;
    if (cudaStreamGetCaptureInfo(b->stream, &state, nullptr, nullptr, &nodes, nullptr, &n) !=
            cudaSuccess ||
        n != 1) {
        return false;
    }
    *node = nodes[0];
    return cudaGraphKernelNodeGetParams(*node, params) == cudaSuccess;
}

status sample_greedy(cuda_backend *b) {
    sampler_plan p = {};
    p.greedy_only = true;
    p.n_rows = b->n_rows;
    sampler_args a = {};
    a.logits = b->logits;
    a.rows = b->dev.sample;
    a.plan = b->dev.sampler_plan;
    a.workspace = b->sampler_work;
    a.token = b->previous;
    a.pdl = b->pdl;
    return cuda_sample(&b->sampler_state, &p, &a, b->stream);
}

status queue_step(cuda_backend *b, captured_step *g, bool greedy) {
    fetch_args none = {};
    status s = cuda_step_fetch(&none, b->stream);
    if (s == OK && !last_node(b, &g->fetch, &g->fetch_params)) s = E_DEVICE;
    if (s == OK) s = queue_layers(b);
    if (s != OK || !greedy) return s;
    s = sample_greedy(b);
    if (s == OK) s = cuda_step_publish(b->previous, b->slot[0].ids, b->n_rows, b->pdl, b->stream);
    if (s == OK && !last_node(b, &g->publish, &g->publish_params)) s = E_DEVICE;
    return s;
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

status capture_step(cuda_backend *b, captured_step *g, bool greedy, error *err) {
    const int n = b->n_rows;
    if (cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
        return error_set(err, cuda_keep(b, E_DEVICE), "cuda: graph capture");
    }
    const status s = queue_step(b, g, greedy);
    const cudaError_t e = cudaStreamEndCapture(b->stream, &g->graph);
    if (s != OK || e != cudaSuccess || g->graph == nullptr) {
        return error_set(err, s != OK ? s : cuda_keep(b, E_DEVICE), "cuda: graph of %d rows: %s", n,
                         cudaGetErrorString(e));
    }
    const cudaError_t made = cudaGraphInstantiate(&g->exec, g->graph, 0);
    if (made != cudaSuccess) {
        (void)cudaGetLastError();
        return error_set(err, E_NOMEM, "cuda: graph of %d rows: %s", n, cudaGetErrorString(made));
    }
    (void)cudaGraphUpload(g->exec, b->stream);
    return OK;
}

status capture(cuda_backend *b, int bucket, error *err) {
    cuda_graph *g = &b->graph[b->n_graphs++];
    b->n_rows = b->n_head_rows = bucket;
    b->head_is_rows = true;
    b->pdl = b->sm >= 90;
    status s = plan_bucket(b, bucket, &b->plan);
    if (s != OK) return error_set(err, s, "cuda: attention plan of %d rows", bucket);
    g->bucket = bucket;
    g->plan = b->plan;
    s = capture_step(b, &g->greedy, true, err);
    return s == OK ? capture_step(b, &g->logits, false, err) : s;
}

void destroy_step(captured_step *g) {
    if (g->exec != nullptr) (void)cudaGraphExecDestroy(g->exec);
    if (g->graph != nullptr) (void)cudaGraphDestroy(g->graph);
}

/* Another argument list for a captured kernel. */
cudaError_t set_args(captured_step *g, cudaGraphNode_t node, cudaKernelNodeParams params,
                     void **args) {
    params.kernelParams = args;
    params.extra = nullptr;
    return cudaGraphExecKernelNodeSetParams(g->exec, node, &params);
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

status cuda_graph_launch(cuda_backend *b) {
    cuda_graph *g = nullptr;
    for (int i = 0; i < b->n_graphs && g == nullptr; i++) {
        if (b->graph[i].bucket == b->n_rows) g = &b->graph[i];
    }
    if (g == nullptr) return E_STATE;
    const bool greedy = b->sample_plan.greedy_only;
    captured_step *c = greedy ? &g->greedy : &g->logits;
    void *fetch[] = {&b->fetch};
    cudaError_t e = set_args(c, c->fetch, c->fetch_params, fetch);
    if (e == cudaSuccess && greedy) {
        const int32_t *ids = b->previous;
        int32_t *host = b->now->ids;
        int n = b->step->n_samples;
        void *publish[] = {&ids, &host, &n};
        e = set_args(c, c->publish, c->publish_params, publish);
    }
    if (e == cudaSuccess) e = cudaGraphLaunch(c->exec, b->stream);
    b->fetch_pending = false;
    b->published = greedy;
    return cuda_status(e);
}

void cuda_graphs_destroy(cuda_backend *b) {
    for (int i = 0; i < b->n_graphs; i++) {
        destroy_step(&b->graph[i].greedy);
        destroy_step(&b->graph[i].logits);
    }
    b->n_graphs = 0;
}
