/* The step descriptor: everything one forward pass needs to know of the batch, and what comes back.
 * The engine fills it once a step; the backend uploads it once; all layers read it.
 * Arrays have the capacities given to backend_ops.reserve(); they never grow. Read by C and nvcc.
 *
 *   token row:   0 1 2 | 3 | 4 5 6 7 8 9 | ...      one row per token to compute
 *   sequence:    decode rows first (one row each), then prefill chunks (any number of rows)
 *   seq_start[]: 0 1 2   3   4             10
 *
 * Sequence s computes rows [seq_start[s], seq_start[s+1]). Its KV cache after the step holds
 * kv_len[s] tokens, in blocks block[block_start[s] .. block_start[s+1]): position p lies in the (p
 * / kv_block_tokens)-th of them, at offset p % kv_block_tokens. The position of row r of sequence s
 * is kv_len[s] - (seq_start[s+1] - r). */
#ifndef INFERD_KERNELS_STEP_H
#define INFERD_KERNELS_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One (token, count) pair that changes a row's logits before sampling. */
typedef struct token_bias {
    int32_t token;
    float bias; /* added to the logit; -INFINITY forbids the token */
} token_bias;

typedef struct token_seen {
    int32_t token;
    int32_t n_output; /* times in the output so far: frequency and presence penalties */
} token_seen;         /* every entry, prompt or output, gets the repetition penalty once */

/* What to do with the logits of one token row. Order of operations: bias -> repetition -> frequency
 * -> presence -> (temperature 0: argmax, lowest id among equals) -> temperature -> min-p -> top-k
 * (keeps ties with the k-th) -> top-p (smallest prefix reaching p; descending probability, ties by
 * id) -> draw. Each filter acts on the renormalised survivors of the one before. Log-probabilities
 * are log-softmax of the raw logits, before bias. */
typedef struct sample_row {
    int32_t row;       /* token row whose logits are used */
    int32_t target;    /* >= 0: do not sample; report log-probability and rank of this token (prompt
                          log-probabilities) */
    float temperature; /* 0: greedy */
    float top_p;       /* 0 or >= 1: off */
    float min_p;       /* 0: off */
    int32_t top_k;     /* <= 0 or >= vocabulary: off */
    float repetition_penalty; /* 0 or 1: off */
    float frequency_penalty, presence_penalty;
    uint64_t seed;          /* of the request and choice */
    uint64_t position;      /* draw counter: the draw depends on (seed, position) only; see
                               sample_uniform() */
    int32_t n_bias, i_bias; /* bias[i_bias .. i_bias + n_bias) */
    int32_t n_seen, i_seen; /* seen[i_seen .. i_seen + n_seen): tokens are distinct */
    int32_t n_top;          /* report this many most likely tokens, 0..LIMIT_TOP_LOGPROBS */
    bool logprob;           /* report the chosen token's log-probability and rank */
} sample_row;

typedef struct block_copy {
    int32_t from, to; /* KV block ids: copied in all layers before the step's first write */
} block_copy;

/* A token id < 0 names a token that is not known to the host yet: ~id is the sample index in the
 * step before this one whose drawn token is meant. Only for backends with pipeline_depth > 1. */
#define STEP_TOKEN_FROM_PREVIOUS(i_sample) (~(int32_t)(i_sample))

typedef struct step {
    int n_tokens, n_seqs, n_decode; /* n_decode: leading sequences that have exactly one row */
    int n_samples, n_bias, n_seen, n_blocks, n_copies;
    int32_t *token;       /* [n_tokens] */
    int32_t *seq_start;   /* [n_seqs + 1] */
    int32_t *kv_len;      /* [n_seqs], after this step */
    int32_t *block_start; /* [n_seqs + 1] */
    int32_t *block;       /* [n_blocks] */
    sample_row *sample;   /* [n_samples], strictly ascending row */
    token_bias *bias;     /* [n_bias] */
    token_seen *seen;     /* [n_seen] */
    block_copy *copies;   /* [n_copies] */
} step;

/* One result per sample row. */
typedef struct sampled {
    int32_t token; /* drawn token, or the target; -1 when the row is not finite */
    float logprob; /* natural log, of raw logits; valid when asked for */
    int32_t rank;  /* 1 = most likely; number of tokens with a strictly greater logit, plus 1 */
    bool finite;   /* false: a logit of the row was NaN or +infinite; nothing else is valid */
    int32_t n_top;
    int32_t top_token[LIMIT_TOP_LOGPROBS];
    float top_logprob[LIMIT_TOP_LOGPROBS]; /* descending, ties by id */
} sampled;

/* Uniform in [0, 1) with 24 bits for (seed, position): first word of Philox4x32-10, counter
 * (position lo, position hi, 0, 0), key (seed lo, seed hi). The same function on every backend.
 * Source: Salmon et al., SC 2011. */
static inline
#ifdef __CUDACC__
    __host__ __device__
#endif
    float
    sample_uniform(uint64_t seed, uint64_t position) {
    uint32_t c0 = (uint32_t)position, c1 = (uint32_t)(position >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < 10; i++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (float)(c0 >> 8) * (1.0f / 16777216.0f);
}

#ifdef __cplusplus
}
#endif
#endif
