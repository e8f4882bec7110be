#include "kernels/backend.h"

#include <stdlib.h>
#include <string.h>

static status open_inner(const char *name, const backend_options *o, backend **out, error *err) {
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

status backend_open(const char *name, const backend_options *o, backend **out, error *err) {
#ifdef INFERD_FAULTS
    const char *spec = getenv("INFERD_FAULT");
    if (spec != NULL && spec[0] != '\0') {
        backend *inner = NULL;
        const status s = open_inner(name, o, &inner, err);
        return s != OK ? s : backend_fault_wrap(inner, spec, out, err);
    }
#endif
    return open_inner(name, o, out, err);
}
