/* The process as its operating system sees it: the process_* metrics that Prometheus' own client
 * libraries export, so that dashboards and alerts for any program work with this one.
 * Source: prometheus.io/docs/instrumenting/writing_clientlibs (process metrics); proc(5). */
#ifndef INFERD_SERVER_PROCESS_H
#define INFERD_SERVER_PROCESS_H

#include <stdint.h>
#include <stdio.h>

typedef struct process_usage {
    double cpu_s, start_s;                  /* start_s: since 1970 */
    uint64_t resident_bytes, virtual_bytes; /* what /proc does not tell is 0 */
    uint64_t fds_open, fds_max;
} process_usage;

/* Thread: any; reads /proc/self, some tens of microseconds. */
void process_read_usage(process_usage *out);
/* Prometheus text format 0.0.4. */
void process_write_metrics(FILE *out);
#endif
