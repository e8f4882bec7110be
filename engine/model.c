#include "engine/model.h"

#define TRY(call)                                                                                  \
    do {                                                                                           \
        const status s_ = (call);                                                                  \
        if (s_ != OK) return s_;                                                                   \
    } while (0)

status model_forward(backend *b, int n_layers, const step *s) {
    const struct backend_ops *op = b->ops;
    TRY(op->begin_step(b, s));
    if (op->replay != NULL && op->replay(b)) return op->end_step(b);

    TRY(op->embed(b));
    for (int layer = 0; layer < n_layers; layer++) {
        TRY(op->qkv(b, layer));         /* norm, projections, bias, RoPE, append to the KV cache */
        TRY(op->attention(b, layer));   /* over the paged cache */
        TRY(op->attn_output(b, layer)); /* projection, residual */
        TRY(op->gate_up(b, layer));     /* norm, SwiGLU */
        TRY(op->down(b, layer));        /* projection, residual */
    }
    TRY(op->head(b)); /* final norm, logits of the sample rows */
    TRY(op->sample(b));
    return op->end_step(b);
}
