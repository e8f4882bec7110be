/* Checks the CUDA linear layers against the CPU's dequantisers and double sums, every weight type,
 * odd shapes, 1 to 128 rows: repack and expand, gemm_mma, the matrix-vector kernels (each output
 * form and the pair kernels), wgmma, cuBLASLt when it is there. A line a case; exit 1 when any is
 * wrong.
 *
 *   cuda_linear_check [-q]     -q: few and small cases, for compute-sanitizer
 *
 * Tolerance: relative error of the whole output (norm of the difference over the norm) below 2e-3:
 * weights rounded to half (3e-4) and outputs that are stored as halves; a wrong bit is far above.
 */
#include <string.h>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "tests/kernels/cuda_check.h"

extern "C" {
#include "kernels/cpu/dequant.h"
}

static int n_cases, n_wrong;
static cudaStream_t stream;
static int n_sms;

static const dtype TYPES[] = {DTYPE_F32,  DTYPE_F16,    DTYPE_BF16,   DTYPE_Q4_0,
                              DTYPE_Q4_1, DTYPE_Q5_0,   DTYPE_Q5_1,   DTYPE_Q8_0,
                              DTYPE_Q2_K, DTYPE_Q3_K,   DTYPE_Q4_K,   DTYPE_Q5_K,
                              DTYPE_Q6_K, DTYPE_IQ4_NL, DTYPE_IQ4_XS, DTYPE_MXFP4};

static void put_half(uint8_t *p, float v) {
    const uint16_t h = f32_to_f16(v);
    memcpy(p, &h, 2);
}

/* A random tensor: random bits, scales of about 1/64 with a spread of four. */
static std::vector<uint8_t> random_blocks(rng *r, dtype t, int n_out, int n_in) {
    const dtype_info *info = dtype_get((int)t);
    std::vector<uint8_t> v((size_t)n_out * dtype_row_bytes(t, n_in));
    for (uint8_t &b : v) b = (uint8_t)r->next();
    const size_t size = (size_t)info->block_bytes;
    for (size_t i = 0; i + size <= v.size(); i += size) {
        uint8_t *b = &v[i];
        /* types with sub-block scales multiply by up to 127 more */
        const float d = (0.25f + r->uniform()) / (size > 100 ? 4096.0f : 256.0f);
        const float w = r->normal() / 16.0f;
        switch (t) {
        case DTYPE_F32:
            memcpy(b, &w, 4);
            break;
        case DTYPE_F16:
            put_half(b, w);
            break;
        case DTYPE_BF16: {
            const uint16_t h = f32_to_bf16(w);
            memcpy(b, &h, 2);
            break;
        }
        case DTYPE_Q2_K:
            put_half(b + 80, d), put_half(b + 82, d);
            break;
        case DTYPE_Q3_K:
            put_half(b + 108, d);
            break;
        case DTYPE_Q4_K:
        case DTYPE_Q5_K:
            put_half(b, d), put_half(b + 2, 6 * d);
            break;
        case DTYPE_Q6_K:
            put_half(b + 208, d);
            break;
        case DTYPE_Q4_1:
        case DTYPE_Q5_1:
            put_half(b, d), put_half(b + 2, -8 * d);
            break;
        case DTYPE_MXFP4:
            b[0] = (uint8_t)(120 + r->below(5));
            break;
        default:
            put_half(b, d);
        }
    }
    return v;
}

struct tensor {
    dtype type;
    int n_out, n_in;
    std::vector<uint8_t> blocks;
    std::vector<float> w; /* [n_out, n_in] */
};

static tensor random_tensor(rng *r, dtype t, int n_out, int n_in) {
    tensor x = {t, n_out, n_in, random_blocks(r, t, n_out, n_in), {}};
    x.w.resize((size_t)n_out * (size_t)n_in);
    for (int i = 0; i < n_out; i++) {
        dequant_row(t, &x.blocks[(size_t)i * dtype_row_bytes(t, n_in)], n_in,
                    &x.w[(size_t)i * (size_t)n_in]);
    }
    return x;
}

/* A matrix on the device made of tensors of one type: in turn when interleaved, else one after the
 * other (each a whole number of tiles but the last). */
struct device_matrix {
    cuda_matrix m;
    device_array<uint8_t> chunks;
    device_array<float> scales;
    device_matrix(const std::vector<const tensor *> &v, bool interleaved)
        : m(shape_of(v)), chunks((size_t)m.n_tiles * weight_tile_bytes(m.format, m.n_in)),
          scales((size_t)m.n_tiles * TILE_ROWS) {
        m.chunks = chunks.p;
        m.row_scale = scales.p;
        chunks.fill(0xff);
        CUDA_OK(cudaDeviceSynchronize()); /* fill is on another stream */
        int tile = 0;
        for (size_t i = 0; i < v.size(); i++) {
            device_array<uint8_t> raw(v[i]->blocks);
            device_array<int32_t> exponent((size_t)v[i]->n_out + TILE_ROWS);
            repack_args a = {};
            a.type = v[i]->type;
            a.blocks = raw.p;
            a.n_rows = v[i]->n_out;
            a.n_in = v[i]->n_in;
            a.tile0 = interleaved ? (int)i : tile;
            a.tile_stride = interleaved ? (int)v.size() : 1;
            a.exponent = exponent.p;
            a.scale = 1.0f;
            if (cuda_repack(&m, &a, stream) != OK) printf("repack refused\n"), exit(2);
            CUDA_OK(cudaStreamSynchronize(stream));
            tile += (v[i]->n_out + TILE_ROWS - 1) / TILE_ROWS;
        }
    }
    static cuda_matrix shape_of(const std::vector<const tensor *> &v) {
        cuda_matrix m = {};
        m.format = weight_format_of(v[0]->type);
        m.n_in = v[0]->n_in;
        m.n_units = weight_units(m.format, m.n_in);
        for (const tensor *t : v) {
            m.n_out += t->n_out;
            m.n_tiles += (t->n_out + TILE_ROWS - 1) / TILE_ROWS;
        }
        return m;
    }
};

/* W x for rows of halves, in double. */
static std::vector<float> product(const tensor &t, const std::vector<uint16_t> &x, int n_rows) {
    std::vector<float> y((size_t)n_rows * (size_t)t.n_out), xf(x.size());
    for (size_t i = 0; i < x.size(); i++) xf[i] = f16_to_f32(x[i]);
    for (int r = 0; r < n_rows; r++) {
        for (int o = 0; o < t.n_out; o++) {
            double s = 0;
            const float *w = &t.w[(size_t)o * (size_t)t.n_in], *v = &xf[(size_t)r * (size_t)t.n_in];
            for (int k = 0; k < t.n_in; k++) s += (double)w[k] * (double)v[k];
            y[(size_t)r * (size_t)t.n_out + (size_t)o] = (float)s;
        }
    }
    return y;
}

static std::vector<uint16_t> random_rows(rng *r, int n, float scale) {
    std::vector<uint16_t> x((size_t)n);
    for (uint16_t &v : x) v = f32_to_f16(r->normal() * scale);
    return x;
}

static void report(const char *what, const char *name, int n_out, int n_in, int n_rows,
                   const std::vector<float> &got, const std::vector<float> &want) {
    CUDA_OK(cudaStreamSynchronize(stream));
    double d = 0, w = 0;
    for (size_t i = 0; i < want.size(); i++) {
        d += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        w += (double)want[i] * (double)want[i];
    }
    const double e = sqrt(d / (w > 0 ? w : 1));
    const bool ok = e < 2e-3; /* NaN fails */
    n_cases++;
    n_wrong += !ok;
    printf("%-10s %-8s [%5d, %5d] rows %3d error %.1e %s\n", what, name, n_out, n_in, n_rows, e,
           ok ? "ok" : "WRONG");
    fflush(stdout);
}

static std::vector<float> halves_to_floats(const std::vector<uint16_t> &h, float scale) {
    std::vector<float> f(h.size());
    for (size_t i = 0; i < h.size(); i++) f[i] = f16_to_f32(h[i]) * scale;
    return f;
}

static float silu(float v) {
    return v / (1.0f + expf(-v));
}

/* gemm_mma: stored with bias, added, and through SwiGLU; and the expanded halves. */
static void check_mma(rng *r, dtype type, int n_out, int n_in, int n_rows) {
    const char *name = dtype_get((int)type)->name;
    const tensor t = random_tensor(r, type, n_out, n_in);
    device_matrix dm({&t}, false);
    const std::vector<uint16_t> x = random_rows(r, n_rows * n_in, 1.0f / 16);
    const std::vector<float> y = product(t, x, n_rows);
    device_array<uint16_t> dx(x);
    std::vector<float> start((size_t)n_rows * (size_t)n_out), bias((size_t)n_out), want = y;
    for (float &v : start) v = r->normal();
    for (float &v : bias) v = r->normal();
    for (size_t i = 0; i < want.size(); i++) want[i] += start[i] + bias[i % (size_t)n_out];
    device_array<float> dy(start), db(bias);
    linear_args a = {};
    a.x = dx.p;
    a.ldx = n_in;
    a.n_rows = n_rows;
    a.output = LINEAR_ADD;
    a.y = dy.p;
    a.ldy = n_out;
    a.bias = db.p;
    if (cuda_linear_mma(&dm.m, &a, stream) != OK) printf("mma refused\n"), exit(2);
    CUDA_OK(cudaStreamSynchronize(stream));
    report("mma", name, n_out, n_in, n_rows, dy.get(), want);

    device_array<uint16_t> plain((size_t)dm.m.n_tiles * TILE_ROWS * (size_t)n_in);
    if (cuda_expand(&dm.m, plain.p, stream) != OK) printf("expand refused\n"), exit(2);
    CUDA_OK(cudaStreamSynchronize(stream));
    std::vector<float> e = halves_to_floats(plain.get(), 1.0f);
    e.resize(t.w.size());
    report("expand", name, n_out, n_in, 0, e, t.w);
}

/* The matrix-vector kernels: residual, norm + store, norm + SwiGLU. */
static void check_gemv(rng *r, dtype type, int n_out, int n_in, int n_rows) {
    const char *name = dtype_get((int)type)->name;
    const tensor t = random_tensor(r, type, n_out, n_in), u = random_tensor(r, type, n_out, n_in);
    device_matrix dm({&t}, false), glu({&t, &u}, true);
    const std::vector<uint16_t> x = random_rows(r, n_rows * n_in, 0.25f);
    std::vector<float> start((size_t)n_rows * (size_t)n_out), want;
    for (float &v : start) v = r->normal();
    device_array<uint16_t> dx(x), dh((size_t)n_rows * (size_t)n_out);
    gemv_args a = {};
    a.x = dx.p;
    a.eps = 1e-5f;
    a.n_rows = n_rows;
    a.ldy = n_out;
    a.half_out = dh.p;
    a.ld_half = n_out;
    if (gemv_fits(&dm.m, GEMV_RESIDUAL, n_rows, n_sms)) {
        device_array<float> dy(start);
        want = product(t, x, n_rows);
        for (size_t i = 0; i < want.size(); i++) want[i] += start[i];
        a.m = dm.m;
        a.y = dy.p;
        if (cuda_gemv(&a, GEMV_RESIDUAL, n_sms, stream) != OK) printf("gemv refused\n"), exit(2);
        CUDA_OK(cudaStreamSynchronize(stream));
        report("residual", name, n_out, n_in, n_rows, dy.get(), want);
        report("its half", name, n_out, n_in, n_rows, halves_to_floats(dh.get(), 8.0f), want);
    }
    /* the norm: x is the residual times 2^-3 */
    std::vector<uint16_t> gamma((size_t)n_in), xn(x.size());
    for (uint16_t &g : gamma) g = f32_to_f16(0.5f + r->uniform());
    for (int i = 0; i < n_rows; i++) {
        double ss = 0;
        for (int k = 0; k < n_in; k++) {
            const double v = 8.0 * (double)f16_to_f32(x[(size_t)(i * n_in + k)]);
            ss += v * v;
        }
        const double inv = 8.0 / sqrt(ss / n_in + 1e-5);
        for (int k = 0; k < n_in; k++) {
            const size_t at = (size_t)(i * n_in + k);
            xn[at] =
                f32_to_f16((float)(inv * (double)f16_to_f32(x[at])) * f16_to_f32(gamma[(size_t)k]));
        }
    }
    device_array<uint16_t> dg(gamma);
    a.norm = dg.p;
    if (gemv_fits(&dm.m, GEMV_STORE, n_rows, n_sms)) {
        device_array<float> dy(start);
        a.m = dm.m;
        a.y = dy.p;
        if (cuda_gemv(&a, GEMV_STORE, n_sms, stream) != OK) printf("gemv refused\n"), exit(2);
        CUDA_OK(cudaStreamSynchronize(stream));
        report("norm", name, n_out, n_in, n_rows, dy.get(), product(t, xn, n_rows));
    }
    if (n_out % TILE_ROWS == 0 && gemv_fits(&glu.m, GEMV_GLU, n_rows, n_sms)) {
        a.m = glu.m;
        dh.fill(0xff);
        CUDA_OK(cudaDeviceSynchronize());
        if (cuda_gemv(&a, GEMV_GLU, n_sms, stream) != OK) printf("gemv refused\n"), exit(2);
        CUDA_OK(cudaStreamSynchronize(stream));
        want = product(t, xn, n_rows);
        const std::vector<float> up = product(u, xn, n_rows);
        for (size_t i = 0; i < want.size(); i++) want[i] = silu(want[i]) * up[i];
        report("swiglu", name, n_out, n_in, n_rows, halves_to_floats(dh.get(), 8.0f), want);
    }
}

/* Place of input k of column n in activation order. */
static size_t ordered(int columns, int n, int k) {
    const int p = ((k >> 2) & 3) * 2 + ((k >> 1) & 1), j = (k >> 4) & 3;
    return ((size_t)(k >> 6) * (size_t)columns + (size_t)n) * 64 + (size_t)((p ^ (n & 7)) * 8) +
           (size_t)(2 * j + (k & 1));
}

/* SwiGLU of t and u, whose tiles lie in turns in glu. */
static void check_wgmma_glu(wgmma_args a, const cuda_matrix &glu, const char *name,
                            const std::vector<uint16_t> &x, const tensor &t, const tensor &u) {
    const int n_rows = a.n_rows, n_out = t.n_out, columns = a.columns;
    device_array<uint16_t> dh((size_t)columns * (size_t)n_out);
    device_array<float> partial(wgmma_partial_bytes(n_sms) / sizeof(float));
    device_array<unsigned> flags((size_t)n_sms + 1);
    flags.fill(0);
    dh.fill(0);
    CUDA_OK(cudaDeviceSynchronize());
    a.m = glu;
    a.output = LINEAR_GLU;
    a.half_out = dh.p;
    a.partial = partial.p;
    a.flags = flags.p;
    if (cuda_linear_wgmma(&a, n_sms, stream) != OK) printf("wgmma refused\n"), exit(2);
    CUDA_OK(cudaStreamSynchronize(stream));
    const std::vector<float> y = product(t, x, n_rows), up = product(u, x, n_rows);
    const std::vector<float> h = halves_to_floats(dh.get(), 8.0f);
    std::vector<float> got(y.size()), want(y.size());
    for (int i = 0; i < n_rows; i++) {
        for (int k = 0; k < n_out; k++) {
            const size_t at = (size_t)(i * n_out + k);
            want[at] = silu(y[at]) * up[at];
            got[at] = h[ordered(columns, i, k)];
        }
    }
    report("wgmma glu", name, n_out, t.n_in, n_rows, got, want);
}

static void check_wgmma(rng *r, dtype type, int n_out, int n_in, int n_rows) {
    const char *name = dtype_get((int)type)->name;
    const tensor t = random_tensor(r, type, n_out, n_in), u = random_tensor(r, type, n_out, n_in);
    device_matrix dm({&t}, false), glu({&t, &u}, true);
    if (!wgmma_fits(&dm.m)) return;
    const int columns = wgmma_columns(n_rows);
    const std::vector<uint16_t> x = random_rows(r, n_rows * n_in, 1.0f);
    std::vector<uint16_t> xo((size_t)columns * (size_t)n_in, 0x7e00); /* NaN in columns not used */
    for (int i = 0; i < n_rows; i++) {
        for (int k = 0; k < n_in; k++) xo[ordered(columns, i, k)] = x[(size_t)(i * n_in + k)];
    }
    device_array<uint16_t> dx(xo), plain(x);
    device_array<uint16_t> again((size_t)columns * (size_t)n_in);
    reorder_args ro = {plain.p, again.p, n_rows, n_in, columns, false};
    again.fill(0);
    CUDA_OK(cudaDeviceSynchronize());
    if (cuda_reorder(&ro, stream) != OK) printf("reorder refused\n"), exit(2);
    CUDA_OK(cudaStreamSynchronize(stream));
    const std::vector<uint16_t> back = again.get();
    for (size_t i = 0; i < back.size(); i++) {
        if (xo[i] != 0x7e00 && back[i] != xo[i]) {
            printf("reorder: place %zu is wrong\n", i);
            n_wrong++;
            break;
        }
    }
    const std::vector<float> y = product(t, x, n_rows);
    std::vector<float> start(y.size()), want = y;
    for (float &v : start) v = r->normal();
    for (size_t i = 0; i < y.size(); i++) want[i] += start[i];
    device_array<float> dy(start);
    wgmma_args a = {};
    a.m = dm.m;
    a.x = dx.p;
    a.columns = columns;
    a.n_rows = n_rows;
    a.output = LINEAR_ADD;
    a.y = dy.p;
    a.ldy = n_out;
    if (cuda_linear_wgmma(&a, n_sms, stream) != OK) printf("wgmma refused\n"), exit(2);
    CUDA_OK(cudaStreamSynchronize(stream));
    report("wgmma add", name, n_out, n_in, n_rows, dy.get(), want);
    a.output = LINEAR_STORE;
    dy.fill(wgmma_splits(&dm.m, LINEAR_STORE, n_rows, n_sms) ? 0 : 0xff);
    CUDA_OK(cudaDeviceSynchronize());
    if (cuda_linear_wgmma(&a, n_sms, stream) != OK) printf("wgmma refused\n"), exit(2);
    CUDA_OK(cudaStreamSynchronize(stream));
    report("wgmma", name, n_out, n_in, n_rows, dy.get(), y);
    if (n_out % 64 == 0) check_wgmma_glu(a, glu.m, name, x, t, u);
}

int main(int argc, char **argv) {
    const bool quick = argc > 1 && strcmp(argv[1], "-q") == 0;
    if (cuda_device_missing()) return 0;
    rng r = {7};
    int major = 0;
    CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_OK(cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, 0));
    CUDA_OK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    const bool hopper = major == 9;
    if (hopper && (gemv_init() != OK || wgmma_init() != OK)) return 2;
    for (dtype t : TYPES) {
        const int block = dtype_get((int)t)->block_elems, step = block == 256 ? 256 : 64;
        check_mma(&r, t, 40, step, 1);
        check_mma(&r, t, 96, 3 * step, quick ? 3 : 37);
        if (block <= 32) check_mma(&r, t, 33, 96, 9); /* not a whole unit */
        if (!hopper) continue;
        check_gemv(&r, t, 64, 4 * 256, 1);
        check_gemv(&r, t, 48, 2048, 3);
        if (block <= 32) check_gemv(&r, t, 80, 896, 8);
        check_wgmma(&r, t, 128, 256, 16);
        if (block <= 32) check_wgmma(&r, t, 192, 128, 9);
        if (quick) continue;
        check_gemv(&r, t, 4 * 16 * 132 + 16, 2048, 8);
        check_gemv(&r, t, 256, 18944, 2);
        for (int rows : {9, 17, 32, 33, 64, 65, 128}) check_wgmma(&r, t, 384, 1024, rows);
        if (block <= 32) check_wgmma(&r, t, 256, 896, 48);
        check_wgmma(&r, t, 4608, 512, 20);
        if (t == DTYPE_Q4_K || t == DTYPE_Q6_K || t == DTYPE_Q8_0) {
            for (int rows : {16, 30, 64, 100}) check_wgmma(&r, t, 12800, 768, rows); /* shared */
        }
    }
    printf("linear layers: %d cases, %d wrong\n", n_cases, n_wrong);
    return n_wrong != 0;
}
