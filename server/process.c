#include "server/process.h"

#include <dirent.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { STAT_START_FIELD = 22 }; /* of /proc/self/stat, counted from 1: ticks since the boot */

static void read_memory(process_usage *u) {
    unsigned long long pages, resident;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return;
    if (fscanf(f, "%llu %llu", &pages, &resident) == 2) {
        const uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
        u->virtual_bytes = pages * page_bytes;
        u->resident_bytes = resident * page_bytes;
    }
    fclose(f);
}

/* Seconds since 1970 at which the machine was started; 0: unknown. */
static double boot_s(void) {
    char line[256];
    unsigned long long s = 0;
    FILE *f = fopen("/proc/stat", "re");
    if (!f) return 0;
    while (s == 0 && fgets(line, sizeof line, f)) /* the line of all interrupts comes in pieces */
        if (sscanf(line, "btime %llu", &s) != 1) s = 0;
    fclose(f);
    return (double)s;
}

static void read_start(process_usage *u) {
    char text[1024];
    FILE *f = fopen("/proc/self/stat", "re");
    if (!f) return;
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    const char *p = strrchr(text, ')'); /* the name before it, field 2, may hold anything */
    for (int field = 2; p && field < STAT_START_FIELD; field++) p = strchr(p + 1, ' ');
    unsigned long long ticks;
    if (p && sscanf(p, "%llu", &ticks) == 1)
        u->start_s = boot_s() + (double)ticks / (double)sysconf(_SC_CLK_TCK);
}

static void read_descriptors(process_usage *u) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) u->fds_max = limit.rlim_cur;
    DIR *d = opendir("/proc/self/fd");
    if (!d) return;
    uint64_t n = 0;
    for (const struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    u->fds_open = n > 0 ? n - 1 : 0; /* without the one that reads */
}

void process_read_usage(process_usage *out) {
    struct rusage r;
    *out = (process_usage){.cpu_s = 0};
    if (getrusage(RUSAGE_SELF, &r) == 0)
        out->cpu_s = (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
                     (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) * 1e-6;
    read_memory(out);
    read_start(out);
    read_descriptors(out);
}

static void put(FILE *out, const char *name, const char *type, const char *help, double v) {
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n%s %.15g\n", name, help, name, type, name, v);
}

void process_write_metrics(FILE *out) {
    process_usage u;
    process_read_usage(&u);
    put(out, "process_cpu_seconds_total", "counter", "User and system time.", u.cpu_s);
    put(out, "process_start_time_seconds", "gauge", "Start, in seconds since 1970.", u.start_s);
    put(out, "process_resident_memory_bytes", "gauge", "Memory in RAM.", (double)u.resident_bytes);
    put(out, "process_virtual_memory_bytes", "gauge", "Address space.", (double)u.virtual_bytes);
    put(out, "process_open_fds", "gauge", "Open file descriptors.", (double)u.fds_open);
    put(out, "process_max_fds", "gauge", "Limit of file descriptors.", (double)u.fds_max);
}
