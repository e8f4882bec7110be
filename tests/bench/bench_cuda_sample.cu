/* Times kernels/cuda sampling in a captured graph: microseconds a step for the usual modes. Logits
 * stay in the L2 cache up to about 64 rows, as after a real LM head.
 * Usage: bench_cuda_sample [part of a mode's name [rows]] */
#include <string.h>

#include "kernels/cuda/sample.h"
#include "kernels/cuda_check.h"

struct mode {
    const char *name;
    float temperature, top_p, min_p;
    int top_k, n_top;
    bool logprob, peaked;
};

static const mode modes[] = {
    {"greedy", 0, 0, 0, 0, 0, false, false},
    {"temperature", 0.8f, 0, 0, 0, 0, false, false},
    {"temperature, peaked", 0.8f, 0, 0, 0, 0, false, true},
    {"top-k 40 top-p .95 min-p .05", 0.8f, 0.95f, 0.05f, 40, 0, false, false},
    {"top-p .9, peaked", 1, 0.9f, 0, 0, 0, false, true},
    {"top-p .9", 1, 0.9f, 0, 0, 0, false, false},
    {"top-p .9 T 2", 2, 0.9f, 0, 0, 0, false, false},
    {"min-p .05 T 2", 2, 0, 0.05f, 0, 0, false, false},
    {"greedy + logprob + top 20", 0, 0, 0, 0, 20, true, false},
    {"top-k 40 .. + logprob + top 20", 0.8f, 0.95f, 0.05f, 40, 20, true, false}};

static std::vector<float> make_logits(const mode &m, int n_vocab, int n_rows) {
    std::vector<float> x((size_t)n_rows * n_vocab);
    rng r{17};
    const int distinct = n_rows < 8 ? n_rows : 8;
    for (int row = 0; row < n_rows; row++) {
        float *p = &x[(size_t)row * n_vocab];
        if (row >= distinct) {
            memcpy(p, &x[(size_t)(row % distinct) * n_vocab], (size_t)n_vocab * 4);
            continue;
        }
        for (int i = 0; i < n_vocab; i++) p[i] = r.normal() * (m.peaked ? 1.5f : 2.5f);
        for (int k = 0; k < 30 && m.peaked; k++) p[r.below(n_vocab)] = 16.0f - 0.35f * (float)k;
    }
    return x;
}

static std::vector<sample_row> make_rows(const mode &m, int n_rows) {
    std::vector<sample_row> rows((size_t)n_rows);
    for (int i = 0; i < n_rows; i++) {
        sample_row q;
        memset(&q, 0, sizeof q);
        q.row = i;
        q.target = -1;
        q.temperature = m.temperature;
        q.top_p = m.top_p;
        q.min_p = m.min_p;
        q.top_k = m.top_k;
        q.seed = (uint64_t)i + 1;
        q.n_top = m.n_top;
        q.logprob = m.logprob;
        rows[i] = q;
    }
    return rows;
}

/* Microseconds a step: the best of four launches of a graph of 20. */
static double time_graph(const sampler &s, const sampler_plan &p, const sampler_args &a,
                         cudaStream_t stream) {
    enum { STEPS = 20, LAUNCHES = 4 };
    cudaGraph_t g;
    cudaGraphExec_t e;
    cudaEvent_t t0, t1;
    CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < STEPS; i++) {
        if (cuda_sample(&s, &p, &a, stream) != OK) exit(1);
    }
    CUDA_OK(cudaStreamEndCapture(stream, &g));
    CUDA_OK(cudaGraphInstantiate(&e, g, 0));
    CUDA_OK(cudaEventCreate(&t0));
    CUDA_OK(cudaEventCreate(&t1));
    double best = 1e30;
    CUDA_OK(cudaGraphLaunch(e, stream));
    for (int i = 0; i < LAUNCHES; i++) {
        float ms = 0;
        CUDA_OK(cudaEventRecord(t0, stream));
        CUDA_OK(cudaGraphLaunch(e, stream));
        CUDA_OK(cudaEventRecord(t1, stream));
        CUDA_OK(cudaEventSynchronize(t1));
        CUDA_OK(cudaEventElapsedTime(&ms, t0, t1));
        best = fmin(best, (double)ms * 1e3 / STEPS);
    }
    cudaGraphExecDestroy(e);
    cudaGraphDestroy(g);
    return best;
}

static double time_mode(const mode &m, int n_vocab, int n_rows, cudaStream_t stream) {
    std::vector<sample_row> rows = make_rows(m, n_rows);
    sampler s;
    sampler_plan p;
    error err;
    step st;
    memset(&st, 0, sizeof st);
    st.n_samples = n_rows;
    st.sample = rows.data();
    if (sampler_init(&s, n_vocab, n_vocab, n_rows, 0, nullptr, 0, &err) != OK) exit(1);
    std::vector<char> plan(sampler_plan_bytes(&s));
    if (sampler_plan_make(&s, &st, plan.data(), &p) != OK) exit(1);
    device_array<float> logits(make_logits(m, n_vocab, n_rows));
    device_array<sample_row> drows(rows);
    device_array<char> dplan(plan), work(sampler_workspace_bytes(&s));
    work.fill(0);
    device_array<int32_t> token((size_t)n_rows);
    device_array<sampled> out((size_t)n_rows);
    const sampler_args a = {logits.p, drows.p, nullptr, nullptr, dplan.p,
                            work.p,   token.p, out.p,   true};
    return time_graph(s, p, a, stream);
}

int main(int argc, char **argv) {
    const int only_rows = argc > 2 ? (int)strtol(argv[2], nullptr, 10) : 0;
    if (cuda_device_missing()) return 0;
    cudaStream_t stream;
    CUDA_OK(cudaStreamCreate(&stream));
    cudaDeviceProp prop;
    CUDA_OK(cudaGetDeviceProperties(&prop, 0));
    const int n_vocab = 151936;
    printf("%s, vocabulary %d, float32 logits, us a step\n%-32s", prop.name, n_vocab, "rows");
    for (int b : {1, 8, 64, 256}) printf(" %8d", b);
    printf("\n");
    for (const mode &m : modes) {
        if (argc > 1 && !strstr(m.name, argv[1])) continue;
        printf("%-32s", m.name);
        for (int b : {1, 8, 64, 256}) {
            if (only_rows && b != only_rows) continue;
            printf(" %8.1f", time_mode(m, n_vocab, b, stream));
            fflush(stdout);
        }
        printf("\n");
    }
    return 0;
}
