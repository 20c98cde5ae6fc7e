#include <malloc.h>
#include <stdint.h>
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
