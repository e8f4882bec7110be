/* The matrix-vector kernels (gemv.cuh) of weight format Q4K. */
#include "kernels/cuda/gemv.cuh"

const gemv_kernels *gemv_q4k(int units) {
    return units == 4 ? gemv_instance<WF_Q4K, 4>() : nullptr;
}
