/* inferctl info, status, health, abort: short questions. */
#include <stdlib.h>
#include <string.h>

#include "client/json.h"
#include "client/output.h"
#include "client/request.h"
#include "client/session.h"
#include "grpc/health/v1/health.pb-c.h"

static void print_field(const char *name, const char *value) {
    printf("%-22s ", name);
    output_write_line(stdout, value, strlen(value));
    putchar('\n');
}

/* "name: value" a line; texts of more than one line are left to --json. */
static void print_fields(const ProtobufCMessage *m) {
    json_t *all = json_of_message(m, true), *value;
    const char *name;
    json_object_foreach(all, name, value) {
        char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
        if (!text) continue;
        const char *shown = text;
        if (json_is_string(value)) shown = json_string_value(value);
        if (strchr(shown, '\n'))
            printf("%-22s (%zu bytes, see --json)\n", name, strlen(shown));
        else
            print_field(name, shown);
        free(text);
    }
    json_decref(all);
}

/* Asks one thing and prints all of the answer. */
static int ask_and_print(cli *c, const char *method, const ProtobufCMessage *request,
                         const ProtobufCMessageDescriptor *type) {
    session s = {0};
    int code = session_open(&s, c);
    ProtobufCMessage *m = NULL;
    if (code < 0) code = session_unary(&s, method, request, type, &m);
    if (m) {
        if (c->json)
            json_print_line(json_of_message(m, true));
        else
            print_fields(m);
        protobuf_c_message_free_unpacked(m, NULL);
    }
    session_close(&s);
    return code;
}

static int info_run(cli *c, int argc, char **argv) {
    const char *model = NULL;
    const flag flags[] = {
        {"--model", FLAG_TEXT, &model, "NAME", "the served name, if it must be it"}};
    const int code = cli_parse(c, flags, 1, argc, argv);
    if (code >= 0) return code;
    if (c->n_args > 0) return cli_usage_error(c, "info takes no argument");
    Inferd__V1__ModelInfoRequest r = INFERD__V1__MODEL_INFO_REQUEST__INIT;
    r.model = request_text(model);
    return ask_and_print(c, METHOD_MODEL_INFO, &r.base,
                         &inferd__v1__model_info_response__descriptor);
}

static int status_run(cli *c, int argc, char **argv) {
    const int code = cli_parse(c, NULL, 0, argc, argv);
    if (code >= 0) return code;
    if (c->n_args > 0) return cli_usage_error(c, "status takes no argument");
    Inferd__V1__EngineStatusRequest r = INFERD__V1__ENGINE_STATUS_REQUEST__INIT;
    return ask_and_print(c, METHOD_STATUS, &r.base,
                         &inferd__v1__engine_status_response__descriptor);
}

static int abort_run(cli *c, int argc, char **argv) {
    const int code = cli_parse(c, NULL, 0, argc, argv);
    if (code >= 0) return code;
    if (c->n_args == 0) return cli_usage_error(c, "which request? give its id");
    Inferd__V1__AbortRequest r = INFERD__V1__ABORT_REQUEST__INIT;
    ProtobufCBinaryData *ids = calloc((size_t)c->n_args, sizeof *ids);
    if (!ids) abort();
    for (int i = 0; i < c->n_args; i++) ids[i] = request_text(c->args[i]);
    r.request_ids = ids;
    r.n_request_ids = (size_t)c->n_args;
    const int out =
        ask_and_print(c, METHOD_ABORT, &r.base, &inferd__v1__abort_response__descriptor);
    free(ids);
    return out;
}

/* ------------------------------------------------------------------ health */

typedef struct health {
    const cli *c;
    const char *service;
    bool watch, all_serving;
} health;

static bool is_serving(const Grpc__Health__V1__HealthCheckResponse *h) {
    return h->status == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
}

static void print_health(const health *h, const char *service, size_t service_bytes,
                         const Grpc__Health__V1__HealthCheckResponse *r) {
    static const char *const names[] = {"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"};
    const unsigned v = (unsigned)r->status;
    const char *name = v < 4 ? names[v] : "UNKNOWN";
    if (h->c->json) {
        json_t *j = json_object();
        (void)json_object_set_new(j, "service", json_of_text(service, service_bytes));
        (void)json_object_set_new(j, "status", json_string(name));
        json_print_line(j);
    } else {
        output_write_line(stdout, service, service_bytes);
        printf("%*s %s\n", service_bytes < 24 ? 24 - (int)service_bytes : 0, "", name);
        (void)fflush(stdout);
    }
}

static void on_health(void *ctx, const ProtobufCMessage *m) {
    health *h = ctx;
    const Grpc__Health__V1__HealthCheckResponse *r = (const void *)m;
    h->all_serving = is_serving(r);
    print_health(h, h->service, strlen(h->service), r);
}

static void on_health_list(void *ctx, const ProtobufCMessage *m) {
    health *h = ctx;
    const Grpc__Health__V1__HealthListResponse *r = (const void *)m;
    h->all_serving = r->n_statuses > 0;
    for (size_t i = 0; i < r->n_statuses; i++) {
        if (!r->statuses[i]->value) continue;
        print_health(h, r->statuses[i]->key, strlen(r->statuses[i]->key), r->statuses[i]->value);
        h->all_serving = h->all_serving && is_serving(r->statuses[i]->value);
    }
}

static int health_run(cli *c, int argc, char **argv) {
    health h = {.c = c, .service = ""};
    bool list = false;
    const flag flags[] = {
        {"--watch", FLAG_BOOL, &h.watch, NULL, "print each change until Ctrl-C"},
        {"--list", FLAG_BOOL, &list, NULL, "all services"},
    };
    int code = cli_parse(c, flags, 2, argc, argv);
    if (code >= 0) return code;
    if (c->n_args > 1) return cli_usage_error(c, "one service is expected");
    if (list && (h.watch || c->n_args > 0))
        return cli_usage_error(c, "--list excludes --watch and a service");
    if (c->n_args == 1) h.service = c->args[0];
    session s = {0};
    code = session_open(&s, c);
    if (code < 0 && list) {
        Grpc__Health__V1__HealthListRequest r = GRPC__HEALTH__V1__HEALTH_LIST_REQUEST__INIT;
        code =
            session_call(&s, METHOD_HEALTH_LIST, &r.base,
                         &grpc__health__v1__health_list_response__descriptor, on_health_list, &h);
    } else if (code < 0) {
        Grpc__Health__V1__HealthCheckRequest r = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
        r.service = request_text(h.service);
        code = session_call(&s, h.watch ? METHOD_HEALTH_WATCH : METHOD_HEALTH_CHECK, &r.base,
                            &grpc__health__v1__health_check_response__descriptor, on_health, &h);
    }
    session_close(&s);
    return code == CLI_OK && !h.all_serving ? CLI_FAILED : code;
}

const command command_info = {
    .name = "info",
    .args = "",
    .summary = "What is served: model, shape, limits, device.",
    .examples = "  inferctl info\n  inferctl info --json | jq .context_length\n",
    .run = info_run,
};
const command command_status = {
    .name = "status",
    .args = "",
    .summary = "What the engine is doing now: requests, KV cache, memory, counters.",
    .examples = "  inferctl status\n"
                "  watch -n1 inferctl status\n"
                "  inferctl status --json | jq '.kv_blocks_free / .kv_blocks_total'\n",
    .run = status_run,
};
const command command_health = {
    .name = "health",
    .args = "[flags] [SERVICE]",
    .summary = "Asks grpc.health.v1: exit code 0 when all that was asked for is SERVING, else 1.",
    .details =
        "Services: startup, liveness, readiness, inferd.v1.Inference, or none for the whole.",
    .examples = "  inferctl health readiness\n"
                "  inferctl health --list\n"
                "  inferctl health --watch liveness\n",
    .run = health_run,
};
const command command_abort = {
    .name = "abort",
    .args = "ID...",
    .summary = "Ends running requests by their ids; prints those that were live.",
    .examples = "  inferctl generate --request-id long-1 --max-tokens 4000 \"Once\" &\n"
                "  inferctl abort long-1\n",
    .run = abort_run,
};
