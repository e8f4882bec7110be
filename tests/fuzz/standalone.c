/* Runs a fuzz target over files and folders, for compilers without libFuzzer and for regressions.
 */
#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>

#include "fuzz.h"

static int n_run;

static int run_file(const char *path) {
    FILE *f = fopen(path, "rb");
    long size = -1;
    if (f == NULL) return 1;
    if (fseek(f, 0, SEEK_END) == 0) size = ftell(f);
    if (size < 0 || fseek(f, 0, SEEK_SET) != 0) return 1;
    uint8_t *data = malloc((size_t)size + 1);
    const int bad = data == NULL || fread(data, 1, (size_t)size, f) != (size_t)size;
    (void)fclose(f);
    if (!bad) {
        (void)LLVMFuzzerTestOneInput(data, (size_t)size);
        n_run++;
    }
    free(data);
    return bad;
}

static int run_path(const char *path) {
    struct stat st;
    int bad = 0;
    if (stat(path, &st) != 0) return 0; /* a target without regressions has no folder */
    if (!S_ISDIR(st.st_mode)) return run_file(path);
    DIR *d = opendir(path);
    if (d == NULL) return 1;
    for (const struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        char name[1024];
        if (e->d_name[0] == '.') continue;
        (void)snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        bad |= run_path(name);
    }
    (void)closedir(d);
    return bad;
}

int main(int argc, char **argv) {
    int bad = 0;
    for (int i = 1; i < argc; i++) bad |= run_path(argv[i]);
    printf("%d inputs\n", n_run);
    return bad != 0 || n_run == 0;
}
