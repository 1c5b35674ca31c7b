/* Takes and releases locks as a gateway does, so many times.
 *
 *     churn STATE_DIR CYCLES PER_SECOND
 *
 * Each cycle takes the lock of a new session of one of 30 agents: create exclusively, write, keep
 * open, look that it is still there, close, unlink. Now and then an agent's folders go and come,
 * and every thousandth lock is left behind with a dead holder's record, for a reaper to free.
 * Writes one line of JSON: `cycles`, `left` (behind), `lost` (live locks that were unlinked).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void make_folders(const char *root, int agent) {
    char path[512];
    const char *form[] = {"%s/agents", "%s/agents/a%d", "%s/agents/a%d/sessions"};
    for (int at = 0; at < 3; at++) {
        snprintf(path, sizeof path, form[at], root, agent);
        if (mkdir(path, 0755) != 0 && errno != EEXIST) die(path);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: churn STATE_DIR CYCLES PER_SECOND\n");
        return 2;
    }
    const char *root = argv[1];
    long cycles = atol(argv[2]), left = 0, lost = 0;
    double rate = atof(argv[3]), start = now();
    char path[512], record[160], date[40];
    srandom(86014);
    for (int agent = 0; agent < 30; agent++) make_folders(root, agent);
    for (long cycle = 0; cycle < cycles; cycle++) {
        int agent = (int)(random() % 30), is_left = cycle % 1000 == 999;
        if (cycle % 5000 == 0) { /* go, where nothing is in it, and come again */
            snprintf(path, sizeof path, "%s/agents/a%d/sessions", root, agent);
            rmdir(path);
            make_folders(root, agent);
        }
        time_t seconds = time(NULL);
        strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S.000Z", gmtime(&seconds));
        snprintf(record, sizeof record,
                 "{\n  \"pid\": %d,\n  \"createdAt\": \"%s\",\n  \"maxHoldMs\": 1020000\n}\n",
                 is_left ? 1073741823 : (int)getpid(), date);
        snprintf(path, sizeof path, "%s/agents/a%d/sessions/s%ld.jsonl.lock", root, agent, cycle);
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0) die(path);
        if (write(fd, record, strlen(record)) < 0) die("write");
        struct stat mine;
        if (fstat(fd, &mine) != 0) die("fstat");
        lost += mine.st_nlink == 0;
        close(fd);
        if (is_left)
            left++;
        else if (unlink(path) != 0)
            lost++;
        double ahead = start + (double)cycle / rate - now();
        if (ahead > 0.001) usleep((useconds_t)(ahead * 1e6));
    }
    printf("{\"cycles\": %ld, \"left\": %ld, \"lost\": %ld}\n", cycles, left, lost);
    return 0;
}
