/* The matrix-vector kernels (gemv.cuh) of weight format Q51. */
#include "kernels/cuda/gemv.cuh"

const gemv_kernels *gemv_q51(int units) {
    return units == 4   ? gemv_instance<WF_Q51, 4>()
           : units == 1 ? gemv_instance<WF_Q51, 1>()
                        : nullptr;
}
