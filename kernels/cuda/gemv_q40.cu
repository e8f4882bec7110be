/* The matrix-vector kernels (gemv.cuh) of weight format Q40. */
#include "kernels/cuda/gemv.cuh"

const gemv_kernels *gemv_q40(int units) {
    return units == 4   ? gemv_instance<WF_Q40, 4>()
           : units == 1 ? gemv_instance<WF_Q40, 1>()
                        : nullptr;
}
