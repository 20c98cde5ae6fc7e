#include <linux/sched.h>
#include <malloc.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <sys/prctl.h>
#include <systemd/sd-daemon.h>

// struct ucred is hidden behind _GNU_SOURCE, which Swift's importer does not set: same layout, own name.
struct edge_ucred {
    int32_t pid;
    uint32_t uid;
    uint32_t gid;
};

// Swift's importer leaves <malloc.h> out.
static inline void edge_give_back_free_heap(void) { (void)malloc_trim(0); }

// prctl is variadic, which Swift cannot import.
static inline int edge_set_parent_death_signal(int signal) { return prctl(PR_SET_PDEATHSIG, signal); }

// SCHED_IDLE for the calling thread and those it starts, and the idle class for what it reads and writes: the processor and
// the disk when nobody else wants them. glibc hides SCHED_IDLE behind _GNU_SOURCE and has no name for the second, whose
// constants are those of linux/ioprio.h; a kernel without I/O priorities leaves it at that.
static inline int edge_be_idle(void) {
    struct { int32_t sched_priority; } parameters = {0};
    enum { who_process = 1, class_idle = 3, class_shift = 13 };
    (void)syscall(SYS_ioprio_set, who_process, 0, class_idle << class_shift);
    return (int)syscall(SYS_sched_setscheduler, 0, SCHED_IDLE, &parameters);
}
