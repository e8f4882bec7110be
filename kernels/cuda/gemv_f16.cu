/* The matrix-vector kernels (gemv.cuh) of weight format F16. */
#include "kernels/cuda/gemv.cuh"

const gemv_kernels *gemv_f16(int units) {
    return units == 4   ? gemv_instance<WF_F16, 4>()
           : units == 1 ? gemv_instance<WF_F16, 1>()
                        : nullptr;
}
