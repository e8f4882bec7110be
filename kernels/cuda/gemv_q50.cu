/* The matrix-vector kernels (gemv.cuh) of weight format Q50. */
#include "kernels/cuda/gemv.cuh"

const gemv_kernels *gemv_q50(int units) {
    return units == 4   ? gemv_instance<WF_Q50, 4>()
           : units == 1 ? gemv_instance<WF_Q50, 1>()
                        : nullptr;
}
