/* From template arguments to a decode_kernel. Included by attention_decode_d*.cu. */
#ifndef INFERD_KERNELS_CUDA_ATTENTION_DECODE_TABLE_CUH
#define INFERD_KERNELS_CUDA_ATTENTION_DECODE_TABLE_CUH

#include "kernels/cuda/attention_decode.cuh"

template <int D, int KIND, int W, int TK, int ST, int SUBK> static decode_kernel entry() {
    using T = decode::shape<D, KIND, W, TK, ST, SUBK>;
    return {(const void *)decode::attention_decode_kernel<T>, W, TK, ST, T::STAGE};
}
template <int D, int KIND, int W, int TK, int ST> static decode_kernel entry_subk(int subk) {
    return subk == 16 ? entry<D, KIND, W, TK, ST, 16>() : entry<D, KIND, W, TK, ST, 32>();
}
#endif
