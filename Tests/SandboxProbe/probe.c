// A worker that was taken over, for SandboxTests: preloaded into the real `edgetuned work`, it does what EDGE_PROBE says the
// first time that the worker maps a file, which is its first touch of a byte of a user's, and then lets it go on.
//
//   EDGE_PROBE   attempts, one a line: a verb and, for some, a path. Each is answered on stderr with a line
//                "probe VERB PATH: done" or the name of its error.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static long opened(int file) {
    char byte;
    if (file < 0) return -1;
    long result = read(file, &byte, 1);
    int error = errno;
    close(file);
    errno = error;
    return result;
}

static long written(int file) {
    if (file < 0) return -1;
    long result = write(file, "x", 1);
    int error = errno;
    close(file);
    errno = error;
    return result;
}

static long listed(const char *path) {
    DIR *directory = opendir(path);
    if (!directory) return -1;
    closedir(directory);
    return 0;
}

static void *in_a_thread(void *flag) {
    *(int *)flag = 1;
    return NULL;
}

static long threaded(void) {
    pthread_t thread;
    int flag = 0;
    int error = pthread_create(&thread, NULL, in_a_thread, &flag);
    if (error == 0) error = pthread_join(thread, NULL);
    errno = error;
    return error == 0 && flag == 1 ? 0 : -1;
}

static long forked(void) {
    pid_t child = fork();
    if (child == 0) _exit(0);
    return child;
}

static long attempt(const char *verb, const char *path) {
#define IS(name) (strcmp(verb, name) == 0)
    if (IS("read")) return opened(open(path, O_RDONLY | O_CLOEXEC));
    if (IS("write")) return written(open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    if (IS("list")) return listed(path);
    if (IS("remove")) return unlink(path);
    if (IS("move-to")) return rename(getenv("EDGE_PROBE_OWN"), path);
    if (IS("symlink")) return symlink("/etc", path);
    if (IS("link")) return link(getenv("EDGE_PROBE_OWN"), path);
    if (IS("fifo")) return mkfifo(path, 0600);
    if (IS("chmod")) return chmod(path, 0777);
    if (IS("truncate")) return truncate(path, 0);
    if (IS("descriptor")) return fcntl(atoi(path), F_GETFD);
    if (IS("unix-socket")) return socket(AF_UNIX, SOCK_STREAM, 0);
    if (IS("inet-socket")) return socket(AF_INET, SOCK_STREAM, 0);
    if (IS("fork")) return forked();
    if (IS("clone3")) return syscall(SYS_clone3, NULL, 0);
    if (IS("signal-parent")) return kill(getppid(), 0);
    if (IS("outlive-parent")) return prctl(PR_SET_PDEATHSIG, 0);
    if (IS("limit-parent")) return prlimit(getppid(), RLIMIT_NOFILE, &(struct rlimit){64, 64}, NULL);
    if (IS("executable-memory"))
        return mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
    if (IS("core")) return setrlimit(RLIMIT_CORE, &(struct rlimit){1 << 20, 1 << 20});
    if (IS("unknown-call")) return syscall(1000);
    if (IS("thread")) return threaded();
    // These end the process.
    if (IS("exec")) return execl("/bin/true", "true", NULL);
    if (IS("ptrace")) return ptrace(PTRACE_ATTACH, getppid(), NULL, NULL);
    if (IS("peek")) {
        char bytes[8];
        struct iovec own = {bytes, 8}, other = {(void *)&attempt, 8};
        return process_vm_readv(getppid(), &own, 1, &other, 1, 0);
    }
    if (IS("io_uring")) return syscall(SYS_io_uring_setup, 1, NULL);
    if (IS("bpf")) return syscall(SYS_bpf, BPF_MAP_CREATE, NULL, 0);
    if (IS("mount")) return mount("none", "/mnt", "tmpfs", 0, NULL);
    if (IS("namespace")) return unshare(CLONE_NEWUSER);
    if (IS("keys")) return syscall(SYS_keyctl, 0, 0, 0, 0, 0);
    errno = EINVAL;
    return -1;
}

static void probe(void) {
    const char *given = getenv("EDGE_PROBE");
    char *lines = strdup(given ? given : ""), *rest = lines;
    for (char *line; (line = strsep(&rest, "\n"));) {
        char *path = strchr(line, ' ');
        if (path) *path++ = 0;
        errno = 0;
        long result = attempt(line, path);
        dprintf(2, "probe %s%s%s: %s\n", line, path ? " " : "", path ? path : "", result >= 0 ? "done" : strerrorname_np(errno));
    }
    free(lines);
}

static void *mapped(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    static int is_done;
    if (file >= 0 && !is_done) {
        is_done = 1;
        probe();
    }
    static void *(*next)(void *, size_t, int, int, int, off_t);
    if (!next) next = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    return next(address, length, protection, flags, file, offset);
}

void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    return mapped(address, length, protection, flags, file, offset);
}
void *mmap64(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    return mapped(address, length, protection, flags, file, offset);
}
