/* Counts the instructions that processes execute outside the kernel, by stepping through them one by one.
 *
 *     steps PID...
 *
 * Says "ready" when every thread of the processes is stepped, and steps until it is sent SIGTERM; then it says the
 * number of instructions of each process, in order, and lets go. It needs neither counters of the processor, which
 * virtual machines often lack, nor an emulator, which would have to know every system call.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

enum { THREADS = 1024 };

static struct {
    pid_t thread;
    int process;
} threads[THREADS];
static int known;
static unsigned long long steps[THREADS];
static volatile sig_atomic_t is_over;

static void end(int signal) {
    (void)signal;
    is_over = 1;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* Of which process a thread is; one that is new is of that which made it, and there is but one that does. */
static int process_of(pid_t thread) {
    for (int i = 0; i < known; i++)
        if (threads[i].thread == thread)
            return threads[i].process;
    char path[64];
    for (int i = 0; i < known; i++) {
        snprintf(path, sizeof path, "/proc/%d/task/%d", threads[i].thread, thread);
        DIR *task = opendir(path);
        if (!task)
            continue;
        closedir(task);
        if (known < THREADS) {
            threads[known].thread = thread;
            threads[known++].process = threads[i].process;
        }
        return threads[i].process;
    }
    return 0;
}

static void seize(pid_t pid, int process, const cpu_set_t *cpus) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        fail(path);
    for (struct dirent *entry; (entry = readdir(tasks));) {
        pid_t thread = atoi(entry->d_name);
        if (thread == 0 || known == THREADS)
            continue;
        threads[known].thread = thread;
        threads[known++].process = process;
        /* On one processor with whoever steps it, or each step wakes another. */
        sched_setaffinity(thread, sizeof *cpus, cpus);
        if (ptrace(PTRACE_SEIZE, thread, NULL, (void *)PTRACE_O_TRACECLONE))
            fail("PTRACE_SEIZE");
        if (ptrace(PTRACE_INTERRUPT, thread, NULL, NULL))
            fail("PTRACE_INTERRUPT");
    }
    closedir(tasks);
}

int main(int argc, char **argv) {
    struct sigaction on_end = {.sa_handler = end};
    sigaction(SIGTERM, &on_end, NULL);
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(sched_getcpu(), &cpus);
    sched_setaffinity(0, sizeof cpus, &cpus);
    for (int i = 1; i < argc; i++)
        seize(atoi(argv[i]), i - 1, &cpus);

    int interrupted = known;
    while (!is_over) {
        int status;
        pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0) {
            if (errno == EINTR)
                continue;
            break;
        }
        if (!WIFSTOPPED(status))
            continue;
        int signal = WSTOPSIG(status);
        int event = status >> 16;
        if (event || signal == SIGTRAP) {
            if (!event)
                steps[process_of(thread)]++;
            signal = 0;
        }
        ptrace(PTRACE_SINGLESTEP, thread, NULL, (void *)(long)signal);
        if (interrupted && event == PTRACE_EVENT_STOP && --interrupted == 0) {
            puts("ready");
            fflush(stdout);
        }
    }
    for (int i = 0; i < argc - 1; i++)
        printf("%llu\n", steps[i]);
    return 0;
}
