// Which system calls: seccomp(2), a program in classic BPF that the kernel runs before every call. A call is looked up in the
// lists below from top to bottom; what is in none of them does not exist (ENOSYS).
#define _GNU_SOURCE
#include "edge_sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define EDGE_AUDIT_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define EDGE_AUDIT_ARCH AUDIT_ARCH_AARCH64
#endif

#ifdef EDGE_AUDIT_ARCH

// Reading, computing, writing; threads, their locks and their clocks. Which files is Landlock's matter.
static const uint16_t allowed[] = {
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev, SYS_preadv2, SYS_pwritev2,
    SYS_lseek, SYS_openat, SYS_close, SYS_close_range, SYS_dup, SYS_dup3, SYS_fstat, SYS_newfstatat, SYS_statx, SYS_statfs,
    SYS_fstatfs, SYS_faccessat, SYS_faccessat2, SYS_readlinkat, SYS_getdents64, SYS_getcwd, SYS_flock,
    SYS_fsync, SYS_fdatasync, SYS_fallocate, SYS_ftruncate, SYS_fadvise64,
    SYS_mkdirat, SYS_unlinkat, SYS_renameat, SYS_renameat2,

    SYS_munmap, SYS_mremap, SYS_madvise, SYS_brk,

    SYS_futex, SYS_set_robust_list, SYS_get_robust_list, SYS_rseq, SYS_membarrier, SYS_set_tid_address, SYS_gettid, SYS_exit,
    SYS_exit_group, SYS_restart_syscall, SYS_sched_yield, SYS_sched_getaffinity, SYS_sched_getparam, SYS_sched_getscheduler,
    SYS_sched_get_priority_min, SYS_sched_get_priority_max, SYS_getcpu,
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigpending, SYS_rt_sigsuspend, SYS_rt_sigtimedwait,
    SYS_sigaltstack,

    SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday, SYS_timerfd_create,
    SYS_timerfd_settime, SYS_timerfd_gettime, SYS_eventfd2, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_ppoll,
    SYS_pselect6,

    SYS_getpid, SYS_getppid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getgroups, SYS_getpgid, SYS_getsid,
    SYS_getpriority, SYS_getrlimit, SYS_getrusage, SYS_times, SYS_uname, SYS_sysinfo, SYS_getrandom,
#ifdef __x86_64__
    SYS_open, SYS_stat, SYS_lstat, SYS_access, SYS_readlink, SYS_getdents, SYS_mkdir, SYS_rmdir, SYS_unlink, SYS_rename,
    SYS_dup2, SYS_poll, SYS_select, SYS_epoll_create, SYS_epoll_wait, SYS_eventfd, SYS_getpgrp, SYS_time,
    // The registers of AMX are asked for with it.
    SYS_arch_prctl,
#endif
};

// What a library may ask for in good faith, and does without. Landlock knows no right for modes, owners, links and times.
static const uint16_t refused[] = {
    SYS_socket, SYS_socketpair, SYS_connect, SYS_bind, SYS_listen, SYS_accept, SYS_accept4, SYS_sendto, SYS_sendmsg,
    SYS_sendmmsg, SYS_recvfrom, SYS_recvmsg, SYS_recvmmsg, SYS_shutdown, SYS_setsockopt, SYS_getsockopt, SYS_getsockname,
    SYS_getpeername, SYS_fchmod, SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_linkat, SYS_symlinkat, SYS_mknodat, SYS_truncate,
    SYS_utimensat, SYS_setxattr, SYS_lsetxattr, SYS_fsetxattr, SYS_removexattr, SYS_lremovexattr, SYS_fremovexattr, SYS_tkill,
    SYS_pidfd_open, SYS_pidfd_send_signal, SYS_setpriority, SYS_ioprio_set, SYS_sched_setaffinity, SYS_sched_setscheduler,
    SYS_sched_setparam, SYS_sched_setattr, SYS_setrlimit, SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid,
    SYS_setresgid, SYS_setfsuid, SYS_setfsgid, SYS_setgroups, SYS_setsid, SYS_setpgid, SYS_capset, SYS_memfd_create,
    SYS_inotify_init1, SYS_fanotify_init, SYS_shmget, SYS_semget, SYS_msgget, SYS_mq_open, SYS_syslog, SYS_sethostname,
    SYS_clock_settime, SYS_settimeofday, SYS_clock_adjtime,
#ifdef __x86_64__
    SYS_fork, SYS_vfork, SYS_chmod, SYS_chown, SYS_lchown, SYS_link, SYS_symlink, SYS_mknod, SYS_creat, SYS_utime, SYS_utimes,
    SYS_futimesat, SYS_inotify_init,
#endif
};

// Nothing in this program and in no library of it asks for these: whoever does has taken it over.
static const uint16_t deadly[] = {
    SYS_execve, SYS_execveat, SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_process_madvise, SYS_kcmp,
    SYS_pidfd_getfd, SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register, SYS_bpf, SYS_perf_event_open,
    SYS_userfaultfd, SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_move_mount, SYS_open_tree, SYS_fsopen,
    SYS_fsconfig, SYS_fsmount, SYS_fspick, SYS_mount_setattr, SYS_unshare, SYS_setns, SYS_open_by_handle_at,
    SYS_name_to_handle_at, SYS_keyctl, SYS_add_key, SYS_request_key, SYS_init_module, SYS_finit_module, SYS_delete_module,
    SYS_kexec_load, SYS_reboot, SYS_swapon, SYS_swapoff, SYS_acct, SYS_quotactl, SYS_personality, SYS_vmsplice,
#ifdef __x86_64__
    SYS_kexec_file_load, SYS_modify_ldt, SYS_iopl, SYS_ioperm,
#endif
};

enum { CAPACITY = 1024 };
static struct sock_filter program[CAPACITY];
static unsigned short length;

static void emit(uint16_t code, uint32_t value, uint8_t if_true, uint8_t if_false) {
    if (length < CAPACITY) program[length++] = (struct sock_filter){code, if_true, if_false, value};
}
static void load(size_t offset) { emit(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0); }
static void answer(uint32_t action) { emit(BPF_RET | BPF_K, action, 0, 0); }
/// The lower half: the kernel takes all of these arguments for 32 bits, or looks at these bits only.
static void load_argument(unsigned index) { load(offsetof(struct seccomp_data, args) + 8 * index); }

static const uint32_t refuse = SECCOMP_RET_ERRNO | EPERM, absent = SECCOMP_RET_ERRNO | ENOSYS;

static void for_each(const uint16_t *calls, size_t count, uint32_t action) {
    for (size_t i = 0; i < count; i++) {
        emit(BPF_JMP | BPF_JEQ | BPF_K, calls[i], 0, 1);
        answer(action);
    }
}
#define FOR_EACH(calls, action) for_each(calls, sizeof calls / sizeof *calls, action)

/// The call is allowed with these values of an argument, and answered with `otherwise` with others.
static void only_with(uint16_t call, unsigned index, const uint32_t *values, uint8_t count, uint32_t otherwise) {
    emit(BPF_JMP | BPF_JEQ | BPF_K, call, 0, (uint8_t)(count + 3));
    load_argument(index);
    for (uint8_t i = 0; i < count; i++) emit(BPF_JMP | BPF_JEQ | BPF_K, values[i], (uint8_t)(count - i), 0);
    answer(otherwise);
    answer(SECCOMP_RET_ALLOW);
}
#define ONLY_WITH(call, index, otherwise, ...) do { \
        const uint32_t values[] = {__VA_ARGS__}; \
        only_with(call, index, values, sizeof values / sizeof *values, otherwise); \
    } while (0)

/// The call is allowed when of the bits `mask` of an argument exactly `value` is set, or (`unless`) refused just then.
enum sense { when, unless };
static void with_bits(uint16_t call, unsigned index, uint32_t mask, enum sense sense, uint32_t value) {
    emit(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 5);
    load_argument(index);
    emit(BPF_ALU | BPF_AND | BPF_K, mask, 0, 0);
    emit(BPF_JMP | BPF_JEQ | BPF_K, value, sense == when ? 1 : 0, sense == when ? 0 : 1);
    answer(refuse);
    answer(SECCOMP_RET_ALLOW);
}

static void write_program(uint32_t own_pid) {
    load(offsetof(struct seccomp_data, arch));
    emit(BPF_JMP | BPF_JEQ | BPF_K, EDGE_AUDIT_ARCH, 1, 0);
    answer(SECCOMP_RET_KILL_PROCESS);
    load(offsetof(struct seccomp_data, nr));
#ifdef __x86_64__
    // x32: other numbers for the same calls.
    emit(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1);
    answer(SECCOMP_RET_KILL_PROCESS);
#endif
    // Those first that the kernel can remember the answer for (5.11), and that are many.
    FOR_EACH(allowed, SECCOMP_RET_ALLOW);
    // A thread and no process, and in no other namespace.
    enum { namespaces = 0x7e020000 };
    with_bits(SYS_clone, 0, CLONE_VM | CLONE_THREAD | CLONE_SIGHAND | namespaces, when, CLONE_VM | CLONE_THREAD | CLONE_SIGHAND);
    // No memory that is written and run.
    with_bits(SYS_mmap, 2, PROT_WRITE | PROT_EXEC, unless, PROT_WRITE | PROT_EXEC);
    with_bits(SYS_mprotect, 2, PROT_EXEC, unless, PROT_EXEC);
    // Nobody else is signalled, nor are his limits changed.
    ONLY_WITH(SYS_kill, 0, refuse, own_pid);
    ONLY_WITH(SYS_tgkill, 0, refuse, own_pid);
    ONLY_WITH(SYS_rt_sigqueueinfo, 0, refuse, own_pid);
    ONLY_WITH(SYS_rt_tgsigqueueinfo, 0, refuse, own_pid);
    ONLY_WITH(SYS_prlimit64, 0, refuse, 0, own_pid);
    // No F_SETOWN: it lets the kernel signal others.
    ONLY_WITH(
        SYS_fcntl, 1, refuse, F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK,
        F_OFD_SETLK, F_OFD_SETLKW, F_DUPFD_CLOEXEC);
    // Not the signal at the parent's death, above all. 0x53564d41: PR_SET_VMA, by which libraries name their memory.
    ONLY_WITH(SYS_prctl, 0, refuse, PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, 0x53564d41);
    // Is it a terminal? It is not: that is what ENOTTY says.
    ONLY_WITH(SYS_ioctl, 1, SECCOMP_RET_ERRNO | ENOTTY, TCGETS, FIONREAD);
    FOR_EACH(refused, refuse);
    FOR_EACH(deadly, SECCOMP_RET_KILL_PROCESS);
    answer(absent);
}

int edge_seccomp_confine(void) {
    length = 0;
    write_program((uint32_t)getpid());
    if (length >= CAPACITY) return E2BIG;
    struct sock_fprog prog = {.len = length, .filter = program};
    // SPEC_ALLOW (4.17): older kernels else turn off speculative stores for a filtered process, and products would be slower;
    // in here there is nobody else's memory to be guessed at.
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW, &prog) == 0)
        return 0;
    // Where a container's filter knows only the older call.
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog, 0, 0) == 0 ? 0 : errno;
}

#else

int edge_seccomp_confine(void) { return ENOSYS; }

#endif
