#include "kernels/backend.h"

#include <string.h>

status backend_open(const char *name, const backend_options *o, backend **out, error *err) {
    if (strcmp(name, "cpu") == 0) return cpu_backend_open(o, out, err);
#ifdef INFERD_CUDA
    if (strcmp(name, "cuda") == 0) return cuda_backend_open(o, out, err);
    if (strcmp(name, "auto") == 0) {
        const status s = cuda_backend_open(o, out, err);
        return s == E_NOTFOUND ? cpu_backend_open(o, out, err) : s;
    }
#else
    if (strcmp(name, "cuda") == 0)
        return error_set(err, E_UNSUPPORTED,
                         "backend cuda is not built in (configure with -DINFERD_CUDA=ON)");
    if (strcmp(name, "auto") == 0) return cpu_backend_open(o, out, err);
#endif
    return error_set(err, E_INVAL, "backend %s: there are cpu, cuda and auto", name);
}
