/* Times kernels/cuda attention as the engine uses it: planned once, one launch a layer in a
 * captured graph, each layer's KV in its own memory so that the L2 cache is cold. Prints
 * microseconds a layer and KV bytes over time as a share of the read bandwidth measured in the same
 * run. Usage: bench_cuda_attention [decode|rope|prefill]... (all when none is named) */
#include <string.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "kernels/cuda/attention_internal.h"
#include "kernels/cuda_check.h"

static double read_bytes_a_us; /* measured */
static bool as_graph;          /* plan with the fixed grid of a captured graph */
static cudaStream_t stream;
static char *arena;
static const size_t arena_bytes = (size_t)24 << 30;

__global__ void read_kernel(const uint4 *p, size_t n, unsigned *out) {
    uint4 x = make_uint4(0, 0, 0, 0);
    const size_t step = (size_t)gridDim.x * blockDim.x;
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (; i + 3 * step < n; i += 4 * step) {
        const uint4 a = __ldcs(p + i), b = __ldcs(p + i + step), c = __ldcs(p + i + 2 * step),
                    d = __ldcs(p + i + 3 * step);
        x.x ^= a.x ^ b.y ^ c.z ^ d.w;
        x.y ^= a.y ^ b.z ^ c.w ^ d.x;
    }
    if (x.x == 1 && x.y == 2) *out = 1; /* keeps the loads */
}

__global__ void fill_kernel(uint32_t *p, size_t n) { /* small finite 16-bit floats of both kinds */
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += step) {
        uint32_t h = (uint32_t)i * 2654435761u;
        h ^= h >> 15;
        h *= 2246822519u;
        h ^= h >> 13;
        p[i] = (h & 0x83ff83ffu) | 0x38003800u; /* f16: +-0.5..1 */
    }
}

struct timer {
    cudaEvent_t a, b;
    timer() {
        CUDA_OK(cudaEventCreate(&a));
        CUDA_OK(cudaEventCreate(&b));
    }
    /* Median microseconds of a graph launch. */
    double graph(cudaGraphExec_t g, int runs) {
        std::vector<float> t;
        CUDA_OK(cudaGraphLaunch(g, stream));
        for (int i = 0; i < runs; i++) {
            float ms = 0;
            CUDA_OK(cudaEventRecord(a, stream));
            CUDA_OK(cudaGraphLaunch(g, stream));
            CUDA_OK(cudaEventRecord(b, stream));
            CUDA_OK(cudaEventSynchronize(b));
            CUDA_OK(cudaEventElapsedTime(&ms, a, b));
            t.push_back(ms);
        }
        std::sort(t.begin(), t.end());
        return (double)t[t.size() / 2] * 1e3;
    }
};

template <class F> static double time_graph(int runs, F record) {
    cudaGraph_t g;
    cudaGraphExec_t e;
    CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    record();
    CUDA_OK(cudaStreamEndCapture(stream, &g));
    CUDA_OK(cudaGraphInstantiate(&e, g, 0));
    timer t;
    const double us = t.graph(e, runs);
    cudaGraphExecDestroy(e);
    cudaGraphDestroy(g);
    return us;
}

struct shape {
    const char *name;
    int n_heads, n_kv_heads, dim;
};

static const shape shapes[] = {
    {"8B", 32, 8, 128}, {"7B", 28, 4, 128}, {"0.5B", 14, 2, 64}, {"Phi-3", 32, 32, 96}};

/* rows, keys of each sequence; n_layers launches over different memory. */
struct workload {
    attention a;
    std::vector<int32_t> seq_start, kv_len, block_start, block;
    step s;
    int n_blocks, n_layers, n_tokens;
};

static void make_workload(workload &w, const shape &sh, dtype type, int block_tokens,
                          const std::vector<std::pair<int, int>> &seqs,
                          bool deterministic = false) {
    model_desc m;
    memset(&m, 0, sizeof m);
    m.n_heads = sh.n_heads;
    m.n_kv_heads = sh.n_kv_heads;
    m.head_dim = sh.dim;
    m.attn_scale = 1.0f / sqrtf((float)sh.dim);
    memset(&w.s, 0, sizeof w.s);
    int rows = 0, blocks = 0;
    for (const auto &q : seqs) {
        w.seq_start.push_back(rows);
        w.kv_len.push_back(q.second);
        w.block_start.push_back(blocks);
        w.s.n_decode += q.first == 1; /* decode rows come first */
        rows += q.first;
        blocks += (q.second + block_tokens - 1) / block_tokens;
    }
    w.seq_start.push_back(rows);
    w.block_start.push_back(blocks);
    rng r{42};
    for (int i = 0; i < blocks; i++) w.block.push_back(i);
    for (int i = blocks - 1; i > 0; i--) std::swap(w.block[i], w.block[r.below(i + 1)]);
    w.n_blocks = blocks;
    w.n_tokens = rows;
    w.s.n_tokens = rows;
    w.s.n_seqs = (int)seqs.size();
    w.s.n_blocks = blocks;
    w.s.seq_start = w.seq_start.data();
    w.s.kv_len = w.kv_len.data();
    w.s.block_start = w.block_start.data();
    w.s.block = w.block.data();
    error err;
    if (attention_init(&w.a, &m, type, block_tokens, rows, w.s.n_seqs, 0, deterministic, &err) !=
        OK) {
        printf("%s\n", err.text);
        exit(1);
    }
    const size_t layer = (size_t)blocks * w.a.kv.block_bytes;
    const size_t cold = ((size_t)600 << 20) / layer + 1; /* ten times the L2 cache */
    w.n_layers = (int)std::min<size_t>(arena_bytes / layer,
                                       std::max<size_t>(4, std::min<size_t>(200, cold)));
}

/* with: 1 attention, 2 RoPE + append, 3 both. Microseconds a layer. */
static double time_layers(workload &w, int with, bool pdl, double *plan_us, int *items) {
    device_array<int32_t> ds(w.seq_start), dk(w.kv_len), dbs(w.block_start), db(w.block),
        drs((size_t)w.n_tokens), drp((size_t)w.n_tokens);
    const size_t q_elems = (size_t)w.n_tokens * w.a.n_heads * w.a.kv.head_dim;
    const size_t qkv = (size_t)w.n_tokens * (w.a.n_heads + 2 * w.a.kv.n_kv_heads) * w.a.kv.head_dim;
    device_array<uint16_t> q(q_elems), out(q_elems), x(qkv);
    fill_kernel<<<256, 256, 0, stream>>>((uint32_t *)q.p, q_elems / 2);
    fill_kernel<<<256, 256, 0, stream>>>((uint32_t *)x.p, qkv / 2);
    device_array<float2> rope((size_t)w.n_tokens * w.a.kv.head_dim / 2);
    std::vector<float> freq(w.a.kv.head_dim / 2, 0.01f);
    device_array<float> dfreq(freq);
    const step_rows_args ra = {ds.p, dk.p,  w.s.n_seqs, w.n_tokens, dfreq.p, w.a.kv.head_dim,
                               1.0f, drs.p, drp.p,      rope.p};
    if (cuda_step_rows(&ra, stream) != OK) exit(1);
    const step_device sd = {ds.p, dk.p, dbs.p, db.p, drs.p, drp.p, rope.p};
    std::vector<char> buffer(attention_plan_bytes(&w.a));
    attention_plan plan;
    *plan_us = 1e9;
    for (int i = 0; i < 5; i++) {
        const auto t0 = std::chrono::steady_clock::now();
        if (attention_plan_make(&w.a, &w.s, as_graph ? w.s.n_decode : 0, buffer.data(), &plan) !=
            OK)
            exit(1);
        *plan_us = std::min(*plan_us, std::chrono::duration<double, std::micro>(
                                          std::chrono::steady_clock::now() - t0)
                                          .count());
    }
    *items = plan.n_items + plan.n_tiles;
    buffer.resize(plan.bytes);
    device_array<char> dplan(buffer), work(attention_workspace_bytes(&w.a));
    work.fill(0);
    attention_args aa;
    memset(&aa, 0, sizeof aa);
    aa.q = q.p;
    aa.out = out.p;
    aa.out_type = DTYPE_F16;
    aa.step = &sd;
    aa.n_tokens = w.n_tokens;
    aa.plan = dplan.p;
    aa.workspace = work.p;
    aa.pdl = pdl;
    rope_append_args rr;
    memset(&rr, 0, sizeof rr);
    rr.qkv = x.p;
    rr.qkv_type = DTYPE_F16;
    rr.n_rot = w.a.kv.head_dim;
    rr.q = q.p;
    rr.step = &sd;
    rr.n_tokens = w.n_tokens;
    rr.pdl = pdl;
    const size_t layer = (size_t)w.n_blocks * w.a.kv.block_bytes;
    return time_graph(9,
                      [&] {
                          for (int l = 0; l < w.n_layers; l++) {
                              aa.kv_layer = rr.kv_layer = arena + (size_t)l * layer;
                              if ((with & 2) && cuda_rope_append(&w.a, &rr, stream) != OK) exit(1);
                              if ((with & 1) && cuda_attention(&w.a, &plan, &aa, stream) != OK)
                                  exit(1);
                          }
                      }) /
           w.n_layers;
}

static void decode_row(const shape &sh, dtype type, int block_tokens, int batch, int keys,
                       bool deterministic = false) {
    workload w;
    make_workload(w, sh, type, block_tokens,
                  std::vector<std::pair<int, int>>((size_t)batch, {1, keys}), deterministic);
    double plan_us;
    int items;
    const double us = time_layers(w, 1, false, &plan_us, &items);
    const double bytes = (double)batch * keys * w.a.kv.n_kv_heads *
                         (2.0 * w.a.kv.head_dim * w.a.kv.elem_bytes + (type == DTYPE_I8 ? 8 : 0));
    printf("decode %-6s %-4s %sblock %d  batch %3d keys %5d  %8.2f us  %5.1f %%  items %4d  plan "
           "%5.1f us\n",
           sh.name, dtype_get(type)->name, deterministic ? "deterministic " : "", block_tokens,
           batch, keys, us, 100.0 * bytes / us / read_bytes_a_us, items, plan_us);
    fflush(stdout);
}

static void bench_decode(void) {
    const shape *b8 = &shapes[0];
    for (dtype t : {DTYPE_F16, DTYPE_BF16, DTYPE_I8}) {
        for (int keys : {512, 4096}) {
            for (int batch : {1, 8, 64, 256}) {
                if (t != DTYPE_BF16 || batch == 64) decode_row(*b8, t, 32, batch, keys);
            }
        }
    }
    for (int keys : {512, 4096, 16384}) decode_row(*b8, DTYPE_F16, 32, 1, keys, true);
    decode_row(*b8, DTYPE_F16, 32, 64, 4096, true);
    decode_row(*b8, DTYPE_F16, 32, 32, 1024);
    decode_row(*b8, DTYPE_F16, 32, 128, 1024);
    decode_row(*b8, DTYPE_F16, 16, 64, 4096);
    decode_row(*b8, DTYPE_F16, 64, 64, 4096);
    for (const shape *s = shapes + 1; s < shapes + 4; s++) {
        for (int keys : {512, 4096}) {
            for (int batch : {1, 8, 64, 256}) {
                if (batch == 256 && keys > 512 && s->n_kv_heads > 8) continue;
                decode_row(*s, DTYPE_F16, 32, batch, keys);
            }
        }
    }
    workload w; /* mixed lengths */
    std::vector<std::pair<int, int>> mix;
    rng r{99};
    double keys = 0;
    for (int i = 0; i < 64; i++) {
        mix.push_back({1, 64 + r.below(8128)});
        keys += mix.back().second;
    }
    make_workload(w, *b8, DTYPE_F16, 32, mix);
    double plan_us;
    int items;
    const double us = time_layers(w, 1, false, &plan_us, &items);
    printf("decode 8B mixed 64..8191 keys: %.1f us, %.1f %%, items %d, plan %.1f us\n", us,
           100.0 * keys * 8 * 512 / us / read_bytes_a_us, items, plan_us);
}

static void bench_rope(void) {
    for (int s : {0, 2}) {
        for (int batch : {1, 64, 256}) {
            double us[4] = {0, 0, 0, 0}, plan_us;
            int items;
            for (int k = 1; k <= 3; k++) {
                workload w;
                make_workload(w, shapes[s], DTYPE_F16, 32,
                              std::vector<std::pair<int, int>>((size_t)batch, {1, 512}));
                us[k] = time_layers(w, k, true, &plan_us, &items);
            }
            printf("rope   %-6s F16 batch %3d keys 512, dependent launch: attention %.2f, rope + "
                   "append %.2f, both %.2f us\n",
                   shapes[s].name, batch, us[1], us[2], us[3]);
        }
    }
}

static void prefill_row(const shape &sh, dtype type, bool deterministic, int rows, int before) {
    workload w;
    make_workload(w, sh, type, 32, {{rows, rows + before}}, deterministic);
    w.n_layers = std::min(w.n_layers, 8);
    double plan_us;
    int items;
    const double us = time_layers(w, 1, false, &plan_us, &items);
    const double t = rows, c = before;
    const double flop = 4.0 * sh.dim * sh.n_heads * (t * c + t * (t + 1) / 2);
    printf(
        "prefill %-6s %-4s %s rows %5d before %5d  %9.1f us  %6.1f TFLOP/s  tiles %4d plan %5.1f "
        "us\n",
        sh.name, dtype_get(type)->name, deterministic ? "deterministic" : "", rows, before, us,
        flop / us * 1e-6, items, plan_us);
    fflush(stdout);
}

static void bench_prefill(void) {
    const std::pair<int, int> sizes[] = {{128, 0},    {512, 0},    {2048, 0},   {8192, 0},
                                         {128, 4096}, {512, 4096}, {2048, 4096}};
    for (int s : {0, 1, 2, 3}) {
        for (const auto &tc : sizes) {
            prefill_row(shapes[s], DTYPE_F16, false, tc.first, tc.second);
        }
    }
    for (int rows : {512, 2048, 8192}) {
        prefill_row(shapes[0], DTYPE_F16, true, rows, 0);
        prefill_row(shapes[0], DTYPE_I8, false, rows, 0);
        prefill_row(shapes[0], DTYPE_BF16, false, rows, 0);
    }
}

int main(int argc, char **argv) {
    if (cuda_device_missing()) return 0;
    bool all = argc < 2, decode = all, rope = all, prefill = all;
    for (int i = 1; i < argc; i++) {
        decode |= !strcmp(argv[i], "decode");
        rope |= !strcmp(argv[i], "rope");
        prefill |= !strcmp(argv[i], "prefill");
    }
    CUDA_OK(cudaStreamCreate(&stream));
    CUDA_OK(cudaMalloc((void **)&arena, arena_bytes));
    fill_kernel<<<2048, 256, 0, stream>>>((uint32_t *)arena, arena_bytes / 4);
    device_array<unsigned> sink(1);
    cudaDeviceProp prop;
    CUDA_OK(cudaGetDeviceProperties(&prop, 0));
    const size_t n = (size_t)4 << 30;
    const double us = time_graph(5, [&] {
        read_kernel<<<prop.multiProcessorCount * 8, 512, 0, stream>>>((const uint4 *)arena, n / 16,
                                                                      sink.p);
    });
    read_bytes_a_us = (double)n / us;
    printf("%s: read bandwidth %.2f TB/s\n", prop.name, read_bytes_a_us * 1e-6);
    if (decode) bench_decode();
    if (decode) {
        as_graph = true;
        printf("with the fixed grid of a captured graph:\n");
        for (int keys : {512, 4096}) {
            for (int batch : {1, 8, 64}) decode_row(shapes[0], DTYPE_F16, 32, batch, keys);
        }
        as_graph = false;
    }
    if (rope) bench_rope();
    if (prefill) bench_prefill();
    return 0;
}
