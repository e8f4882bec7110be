/* The matrix-vector kernels (gemv.cuh) of weight format Q80. */
#include "kernels/cuda/gemv.cuh"

const gemv_kernels *gemv_q80(int units) {
    return units == 4   ? gemv_instance<WF_Q80, 4>()
           : units == 1 ? gemv_instance<WF_Q80, 1>()
                        : nullptr;
}
