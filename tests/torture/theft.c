/* A gateway that takes stale locks over while a reaper removes them, at the very lock that the
 * reaper is at, and checks that each lock that it then holds stays its own.
 *
 *     theft FOLDER SECONDS REMOVALS LOCKS ORDER RIVAL
 *
 * Each round plants LOCKS locks of a dead holder and waits until a reaper begins on them. It then
 * sleeps for a moment, again and again, and takes the first lock that is still there over (ORDER:
 * `sorted`, or `listed` as readdir gives them), as OpenClaw does: read, compare, unlink, create
 * exclusively, write, keep open. Where it may, it runs at real-time priority: waking up, it then
 * interrupts the reaper wherever that is, on one processor as on many. It holds the lock for a
 * moment, looks whether the name stays that very file, and releases it. With RIVAL 1, a second
 * process creates the same lock the moment that its name is free.
 *
 * Ends after SECONDS, or once REMOVALS were seen. Writes one line of JSON:
 *   planted, removed   locks of the dead that were planted, and that somebody else removed
 *   held               live locks that were watched
 *   away, away_us      live locks that were away and came back, and the longest absence
 *   stolen             live locks that did not come back: unlinked, or left elsewhere
 *   doubled            live locks whose name the rival got while they were away
 *   left               planted locks that nobody removed in time
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 4096, NAME = 64 };
static const double WATCHED = 250e-6; /* seconds that a live lock is watched */
static const double LOOK = 25e-6;     /* seconds between two looks at it */
static const double PATIENCE = 60.0;  /* seconds in which a lock that is away must come back */
static const double IDLE = 30.0;      /* seconds that a reaper may take to begin, or to go on */

static char dead[160], live[160];
static int folder;
static long planted, removed, held, away, stolen, doubled, left;
static double longest_away;
/* Seconds, at most, between two takings-over: longer after each, shorter after each removal, so
 * that both sides get about as many locks, however fast the reaper is. */
static double pause_at_most = 700e-6;

/* What this process and the rival tell each other. */
static struct shared {
    char names[MOST][NAME];
    _Atomic int held; /* index of the lock that is held now, else -1 */
    _Atomic int got;  /* the rival created it all the same */
} *shared;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void pause_for(double seconds) {
    struct timespec t = {0, (long)(seconds * 1e9)};
    nanosleep(&t, NULL);
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void be_prompt(void) {
    struct sched_param priority = {.sched_priority = 1};
    sched_setscheduler(0, SCHED_FIFO, &priority);
    prctl(PR_SET_TIMERSLACK, 1);
}

static int create(const char *name, const char *record) {
    int fd = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) {
        if (errno == EEXIST) return -1;
        die("create");
    }
    if (write(fd, record, strlen(record)) < 0) die("write");
    return fd;
}

static ino_t inode_at(const char *name) {
    struct stat found;
    return fstatat(folder, name, &found, AT_SYMLINK_NOFOLLOW) == 0 ? found.st_ino : 0;
}

static int is_dead(const char *name) {
    char data[sizeof dead];
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t got = read(fd, data, sizeof data);
    close(fd);
    return got == (ssize_t)strlen(dead) && memcmp(data, dead, (size_t)got) == 0;
}

/* Bring the names into the order in which readdir gives them, and a sweep goes through them. */
static void order_as_listed(int count) {
    int at = 0;
    DIR *listing = fdopendir(openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (listing == NULL) die("fdopendir");
    for (struct dirent *it; at < count && (it = readdir(listing)) != NULL;)
        if (strstr(it->d_name, ".jsonl.lock") != NULL)
            snprintf(shared->names[at++], NAME, "%.63s", it->d_name);
    closedir(listing);
}

static void be_the_rival(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;; pause_for(LOOK)) {
        int at = atomic_load(&shared->held);
        if (at < 0) continue;
        int fd = openat(folder, shared->names[at], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0) continue;
        atomic_store(&shared->got, 1);
        unlinkat(folder, shared->names[at], 0);
        close(fd);
        while (atomic_load(&shared->held) == at) pause_for(LOOK);
    }
}

/* Hold a lock for a moment, look whether it stays ours, and release it. */
static void hold(int at, int fd) {
    const char *name = shared->names[at];
    struct stat mine;
    if (fstat(fd, &mine) != 0) die("fstat");
    held++;
    atomic_store(&shared->got, 0);
    atomic_store(&shared->held, at);
    double end = now() + WATCHED;
    while (now() < end && inode_at(name) == mine.st_ino) pause_for(LOOK);
    if (inode_at(name) != mine.st_ino) {
        double since = now();
        int is_back = 0;
        while (!is_back && mine.st_nlink > 0 && now() < since + PATIENCE) {
            pause_for(LOOK);
            is_back = inode_at(name) == mine.st_ino;
            if (fstat(fd, &mine) != 0) die("fstat");
        }
        if (is_back) {
            double absent = now() - since;
            away++;
            if (absent > longest_away) longest_away = absent;
        } else {
            stolen++;
        }
    }
    doubled += atomic_load(&shared->got);
    atomic_store(&shared->held, -1);
    close(fd);
    if (inode_at(name) == mine.st_ino) unlinkat(folder, name, 0);
}

static void one_round(int count, int sorted) {
    static long number;
    number++;
    for (int at = 0; at < count; at++) {
        snprintf(shared->names[at], NAME, "%08ld-%04d.jsonl.lock", number, at);
        int fd = create(shared->names[at], dead);
        if (fd < 0) die("plant");
        close(fd);
    }
    planted += count;
    if (!sorted) order_as_listed(count);
    double patience = now() + IDLE;
    int begun = 0;
    for (int at = 0; at < count;) {
        const char *name = shared->names[at];
        if (inode_at(name) == 0) {
            removed++;
            begun = 1;
            if (pause_at_most > 50e-6) pause_at_most *= 0.9;
            patience = now() + IDLE;
            at++;
            continue;
        }
        pause_for(pause_at_most * (double)random() / (double)RAND_MAX);
        if (now() > patience) {
            for (; at < count; at++) left += unlinkat(folder, shared->names[at], 0) == 0;
            return;
        }
        if (!begun || inode_at(name) == 0) continue;
        if (!is_dead(name) || unlinkat(folder, name, 0) != 0) removed++;
        int fd = create(name, live);
        if (fd >= 0) hold(at, fd);
        if (pause_at_most < 20e-3) pause_at_most *= 1.1;
        at++;
    }
}

int main(int argc, char **argv) {
    if (argc != 7) {
        fprintf(stderr, "usage: theft FOLDER SECONDS REMOVALS LOCKS ORDER RIVAL\n");
        return 2;
    }
    folder = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) die(argv[1]);
    double end = now() + atof(argv[2]);
    long wanted = atol(argv[3]);
    int count = atoi(argv[4]) < MOST ? atoi(argv[4]) : MOST;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) die("mmap");
    atomic_store(&shared->held, -1);
    char date[40];
    time_t seconds = time(NULL);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S.000Z", gmtime(&seconds));
    const char *form = "{\n  \"pid\": %d,\n  \"createdAt\": \"%s\",\n  \"maxHoldMs\": 1020000\n}\n";
    snprintf(dead, sizeof dead, form, 1073741823, date);
    snprintf(live, sizeof live, form, (int)getpid(), date);
    srandom((unsigned)getpid());
    be_prompt();
    pid_t rival = atoi(argv[6]) ? fork() : -1;
    if (rival == 0) be_the_rival();
    while (now() < end && removed < wanted) one_round(count, strcmp(argv[5], "sorted") == 0);
    if (rival > 0) kill(rival, SIGKILL);
    printf("{\"planted\": %ld, \"removed\": %ld, \"held\": %ld, \"away\": %ld, \"away_us\": %.0f, "
           "\"stolen\": %ld, \"doubled\": %ld, \"left\": %ld}\n",
           planted, removed, held, away, longest_away * 1e6, stolen, doubled, left);
    return 0;
}
