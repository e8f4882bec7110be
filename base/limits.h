/* Every number that bounds something, in one place: the contract's limits
 * (proto/inferd/v1/inference.proto) and the process's own. Units last in the name. */
#ifndef INFERD_BASE_LIMITS_H
#define INFERD_BASE_LIMITS_H

/* Generate: fields */
#define LIMIT_REQUEST_ID_BYTES  128
#define LIMIT_CACHE_SALT_BYTES  64
#define LIMIT_PRIORITY          100 /* -100..100 */
#define LIMIT_CHOICES           8
#define LIMIT_LOGIT_BIAS        1024
#define LIMIT_LOGIT_BIAS_VALUE  100.0f
#define LIMIT_STOP_STRINGS      16
#define LIMIT_STOP_STRING_BYTES 256
#define LIMIT_STOP_TOKEN_IDS    64
#define LIMIT_TOP_LOGPROBS      20
#define LIMIT_TEMPERATURE_MAX   2.0f
#define LIMIT_TEMPERATURE_MIN   0.01f /* below it only 0 (greedy) is legal */
#define LIMIT_PENALTY           2.0f  /* repetition (0, 2]; frequency and presence -2..2 */
#define LIMIT_CHAT_MESSAGES     4096
#define LIMIT_ABORT_IDS         1024

/* Wire */
#define LIMIT_MESSAGE_BYTES_DEFAULT (2u << 20)
#define LIMIT_METADATA_BYTES        (64u << 10)
#define LIMIT_ARENA_FACTOR          16 /* protobuf memory: at most 16 x wire size + slack */
#define LIMIT_ARENA_SLACK_BYTES     (64u << 10)
#define LIMIT_OUTBOX_BYTES          (64u << 10)  /* undelivered output kept per call */
#define LIMIT_REPLY_BYTES           (32u << 20)  /* a unary reply; what final_only gathers */
#define LIMIT_REPLIES_BYTES         (128u << 20) /* unary replies that no client has taken yet */

/* Chat templates */
#define LIMIT_TEMPLATE_BYTES        (256u << 10)
#define LIMIT_TEMPLATE_FUEL         500000
#define LIMIT_TEMPLATE_DEPTH        64
#define LIMIT_TEMPLATE_OUTPUT_BYTES (4u << 20)

/* Engine */
#define LIMIT_SEQUENCES              1024  /* engine.max_sequences */
#define LIMIT_ACCOUNTS               4096  /* tenants since the start: they are never forgotten */
#define LIMIT_STEP_TOKENS            16384 /* engine.max_step_tokens */
#define LIMIT_THREADS                256   /* engine.threads */
#define LIMIT_KV_BLOCK_TOKENS        32
#define LIMIT_PREEMPTIONS_BEFORE_PIN 3
#define LIMIT_PREFILL_SLICE_MS       25  /* a prefill chunk adds about this much to a decode step */
#define LIMIT_PREFILL_ALONE_MS       250 /* a step that only prefills takes about this long */
#define LIMIT_PREFILL_CHUNK_MIN      16  /* tokens; prefill gets them however slow the device */
#define LIMIT_STEP_BLOCKS            (1 << 20) /* block-table entries in a step */
#define LIMIT_STEP_BIAS              (1 << 18) /* logit-bias entries in a step */
#define LIMIT_STEP_SEEN              (1 << 18) /* penalised tokens in a step */

/* Model files: model shape bounds, see engine/gguf.h for the container's own */
#define LIMIT_MAPPINGS 1024 /* files mapped at once: parts of a split model */
#define LIMIT_LAYERS   512
#define LIMIT_HEADS    1024
#define LIMIT_HEAD_DIM 512
#define LIMIT_VOCAB    (1 << 19) /* twice the largest vocabulary of the four families */
#define LIMIT_EMBED    (1 << 17)
#define LIMIT_CONTEXT  (1 << 24)

/* Config file */
#define LIMIT_CONFIG_BYTES (1u << 20)
#define LIMIT_CONFIG_DEPTH 32
#endif
