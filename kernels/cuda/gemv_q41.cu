/* The matrix-vector kernels (gemv.cuh) of weight format Q41. */
#include "kernels/cuda/gemv.cuh"

const gemv_kernels *gemv_q41(int units) {
    return units == 4   ? gemv_instance<WF_Q41, 4>()
           : units == 1 ? gemv_instance<WF_Q41, 1>()
                        : nullptr;
}
