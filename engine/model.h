/* The transformer, once, in model order, for every backend. Thread: engine. */
#ifndef INFERD_ENGINE_MODEL_H
#define INFERD_ENGINE_MODEL_H

#include "kernels/backend.h"

/* Queues one whole step: all layers, logits of the sample rows, sampling. Results:
 * backend_ops.wait_step. E_DEVICE is final. */
BASE_MUST_USE status model_forward(backend *b, int n_layers, const step *s);
#endif
