/* The matrix-vector kernels (gemv.cuh) of weight format Q6K. */
#include "kernels/cuda/gemv.cuh"

const gemv_kernels *gemv_q6k(int units) {
    return units == 4 ? gemv_instance<WF_Q6K, 4>() : nullptr;
}
