// Routes the log of a current gRPC core (which has no gpr_set_log_function any more) to a C callback.
// severity: 0 info, 1 warning, 2 error, 3 fatal. Declared on the C side in server/grpc_log.c.
#include "absl/log/globals.h"
#include "absl/log/initialize.h"
#include "absl/log/log_sink.h"
#include "absl/log/log_sink_registry.h"

extern "C" {
typedef void grpc_core_log_fn(int severity, const char *file, int line, const char *text, size_t text_len);
__attribute__((visibility("default"))) void grpc_core_log_set(grpc_core_log_fn *fn, int min_severity);
}

namespace {
struct CallbackSink final : absl::LogSink {
    grpc_core_log_fn *fn = nullptr;
    void Send(const absl::LogEntry &entry) override {
        const auto text = entry.text_message();
        fn(static_cast<int>(entry.log_severity()), entry.source_basename().data(), entry.source_line(), text.data(),
           text.size());
    }
};
}  // namespace

void grpc_core_log_set(grpc_core_log_fn *fn, int min_severity) {
    static CallbackSink *sink = new CallbackSink;  // lives as long as the process
    const bool first = sink->fn == nullptr;
    sink->fn = fn;
    absl::SetMinLogLevel(static_cast<absl::LogSeverityAtLeast>(min_severity));
    absl::SetStderrThreshold(absl::LogSeverityAtLeast::kInfinity);
    if (first) {
        absl::InitializeLog();
        absl::AddLogSink(sink);
    }
}
