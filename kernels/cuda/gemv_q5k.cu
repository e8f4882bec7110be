/* The matrix-vector kernels (gemv.cuh) of weight format Q5K. */
#include "kernels/cuda/gemv.cuh"

const gemv_kernels *gemv_q5k(int units) {
    return units == 4 ? gemv_instance<WF_Q5K, 4>() : nullptr;
}
