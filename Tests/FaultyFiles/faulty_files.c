// A layer below every file operation of a process, loaded with LD_PRELOAD by Tests/DaemonTests/FaultyFiles.swift, which
// compiles it. It counts the operations on paths below one directory, over all processes that share a file; at the one that
// the file's first page names, it fails it, cuts a write short, or kills; and it writes what was done behind that page, from
// which PowerLossDisk.swift builds what a disk may hold after a cut.
//
// There is no lock and no table: a path comes from /proc/self/fd, and numbers and places from atomics in shared memory. So a
// process may be killed anywhere, and a child after fork may call anything. The file is mapped before `main`: a worker that
// has confined itself has no descriptor but its own and may signal nobody else, and what this does then, it may do as well.
//
//   EDGE_FAULTY_SHARED   the file, as long as CONTROL_BYTES and LOG_BYTES
//   EDGE_FAULTY_ROOT     the directory, without links in its path
//   EDGE_FAULTY_ROLE     0 daemon, 1 worker
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

// Shared with FaultyFiles.swift, which knows the offsets.
enum action { ACT_NONE, ACT_FAIL, ACT_SHORT_WRITE, ACT_KILL, ACT_HOLD_AND_KILL };
enum scope { COUNT_ALL, COUNT_CHANGES, COUNT_WORKERS_CHANGES };
enum victim { KILL_OWN_PROCESS, KILL_BOTH };
enum recording { RECORD_NAMES, RECORD_BYTES, RECORD_NOTHING };

struct control {
    uint64_t logged;      // 0: bytes of the log that are taken
    uint64_t count;       // 8: operations counted since the control file was armed
    uint64_t at;          // 16: the count at which to act
    uint32_t action;      // 24
    int32_t error;        // 28: for ACT_FAIL
    uint32_t scope;       // 32
    uint32_t victim;      // 36
    uint32_t recording;   // 40
    uint32_t doomed;      // 44: the daemon dies at its next operation, as its worker did
    uint32_t struck;      // 48: the action was taken
    uint32_t held;        // 52: a process waits for `released`
    uint32_t released;    // 56
    int32_t role;         // 60: of the process that was struck
    char point[320];      // 64: the operation that was struck, and its path below the root
    char only[128];       // 384: counted are operations whose such text begins with this
};
_Static_assert(sizeof(struct control) == 512, "FaultyFiles.swift knows the end");
// A hole as long as nothing is recorded.
enum { CONTROL_BYTES = 4096, LOG_BYTES = 256 << 20 };

// Of a record: the header, the path, the second path, the bytes, and what is missing to a multiple of 8.
enum operation {
    OP_OPEN, OP_CREATE, OP_WRITE, OP_SYNC, OP_TRUNCATE, OP_RENAME, OP_EXCHANGE, OP_UNLINK, OP_RMDIR, OP_MKDIR, OP_LINK, OP_CHMOD,
    OP_CLOSE, OP_LIST, OP_ALLOCATE,
};
static const char *const operation_names[] = {
    "open", "create", "write", "sync", "truncate", "rename", "exchange", "unlink", "rmdir", "mkdir", "link", "chmod", "close",
    "list", "allocate",
};
struct record {
    uint64_t bytes;  // of it all, and written last: 0 while it is not complete
    int64_t offset;  // of a write; the length of a truncation
    uint32_t operation;
    uint32_t role;
    uint32_t path_bytes, second_bytes, data_bytes;
    uint32_t reserved;
};

static struct control *control;
static char *records;
static const char *root;
static size_t root_bytes;
enum role { DAEMON, WORKER };
static enum role role;

__attribute__((constructor)) static void attach(void) {
    const char *shared_path = getenv("EDGE_FAULTY_SHARED"), *role_text = getenv("EDGE_FAULTY_ROLE");
    root = getenv("EDGE_FAULTY_ROOT");
    if (!shared_path || !root || !role_text) return;
    root_bytes = strlen(root);
    role = atoi(role_text) == DAEMON ? DAEMON : WORKER;
    int file = (int)syscall(SYS_openat, AT_FDCWD, shared_path, O_RDWR | O_CLOEXEC, 0);
    if (file < 0) abort();
    char *map = mmap(NULL, CONTROL_BYTES + (size_t)LOG_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (map == MAP_FAILED) abort();
    records = map + CONTROL_BYTES;
    control = (struct control *)map;
}

// The path below the root, or NULL for one that is elsewhere.
static const char *below(const char *path) {
    if (!control || strncmp(path, root, root_bytes) != 0) return NULL;
    if (path[root_bytes] == 0) return ".";
    return path[root_bytes] == '/' ? path + root_bytes + 1 : NULL;
}

static const char *path_of(int file, char *buffer) {
    if (!control) return NULL;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t count = readlink(link, buffer, PATH_MAX - 1);
    if (count < 0) return NULL;
    buffer[count] = 0;
    // A file without a name has nothing that could be lost.
    if (count > 10 && strcmp(buffer + count - 10, " (deleted)") == 0) return NULL;
    return below(buffer);
}

static const char *path_at(int directory, const char *path, char *buffer) {
    if (!control) return NULL;
    if (path[0] == '/') return below(path);
    if (directory == AT_FDCWD) return NULL;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t count = readlink(link, buffer, PATH_MAX - 1);
    if (count < 0 || count + strlen(path) + 2 > PATH_MAX) return NULL;
    buffer[count] = '/';
    strcpy(buffer + count + 1, path);
    return below(buffer);
}

// A worker dies with its daemon in any case (PR_SET_PDEATHSIG). It may not kill it: the daemon does that itself, before it has
// changed anything on the disk.
static void die(void) {
    if (control->victim == KILL_BOTH && role == WORKER) __atomic_store_n(&control->doomed, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
}

enum verdict { GO_ON, FAIL, CUT_SHORT };

// Counts one operation before it is done. Does not return when it is the one to be killed at.
static enum verdict judge(enum operation operation, const char *path) {
    if (role == DAEMON && __atomic_load_n(&control->doomed, __ATOMIC_SEQ_CST)) syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    size_t bytes = strlen(path);
    // SQLite's shared memory is made anew by every start: nothing of it lasts.
    int lasts = bytes < 4 || strcmp(path + bytes - 4, "-shm") != 0;
    int changes = lasts && operation != OP_OPEN && operation != OP_CLOSE && operation != OP_LIST;
    if (control->scope != COUNT_ALL && !changes) return GO_ON;
    if (control->scope == COUNT_WORKERS_CHANGES && role != WORKER) return GO_ON;
    char text[sizeof control->point];
    if (control->only[0]) {
        snprintf(text, sizeof text, "%s %s", operation_names[operation], path);
        if (strncmp(text, control->only, strlen(control->only)) != 0) return GO_ON;
    }
    uint64_t count = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
    if (control->action == ACT_NONE || count != control->at) return GO_ON;
    control->role = role;
    snprintf(control->point, sizeof control->point, "%s %s", operation_names[operation], path);
    __atomic_store_n(&control->struck, 1, __ATOMIC_SEQ_CST);
    switch (control->action) {
    case ACT_FAIL: return FAIL;
    case ACT_SHORT_WRITE: return operation == OP_WRITE ? CUT_SHORT : GO_ON;
    case ACT_HOLD_AND_KILL:
        __atomic_store_n(&control->held, 1, __ATOMIC_SEQ_CST);
        while (!__atomic_load_n(&control->released, __ATOMIC_SEQ_CST)) {
            struct timespec pause = {0, 1000000};
            syscall(SYS_nanosleep, &pause, NULL);
        }
        die();
        break;
    case ACT_KILL: die(); break;
    }
    return GO_ON;
}

// Writes down what was done. Its place is taken after it was done: what one process does because of what another has done comes
// later.
static void record(enum operation operation, const char *path, const char *second, int64_t offset, const void *data, size_t bytes) {
    if (control->recording == RECORD_NOTHING) return;
    if (control->recording == RECORD_NAMES) bytes = 0;
    struct record header = {
        .offset = offset, .operation = operation, .role = role, .path_bytes = (uint32_t)strlen(path),
        .second_bytes = second ? (uint32_t)strlen(second) : 0, .data_bytes = (uint32_t)bytes,
    };
    size_t whole = (sizeof header + header.path_bytes + header.second_bytes + bytes + 7) & ~(size_t)7;
    uint64_t start = __atomic_fetch_add(&control->logged, whole, __ATOMIC_SEQ_CST);
    // A log without its end would be believed.
    if (start + whole > LOG_BYTES) abort();
    char *place = records + start, *next = place + sizeof header;
    memcpy(place, &header, sizeof header);
    memcpy(next, path, header.path_bytes);
    next += header.path_bytes;
    if (second) memcpy(next, second, header.second_bytes);
    next += header.second_bytes;
    if (bytes) memcpy(next, data, bytes);
    __atomic_store_n(&((struct record *)place)->bytes, whole, __ATOMIC_SEQ_CST);
}

// The usual course of an operation that returns an int: judged, done, written down when it came to something.
#define PERFORM(operation, path, second, offset, call)                                     \
    do {                                                                                   \
        if (judge(operation, path) == FAIL) { errno = control->error; return -1; }         \
        int result_ = (int)(call);                                                         \
        if (result_ == 0) {                                                                \
            int kept_ = errno;                                                             \
            record(operation, path, second, offset, NULL, 0);                              \
            errno = kept_;                                                                 \
        }                                                                                  \
        return result_;                                                                    \
    } while (0)

// MARK: opening and closing

static int open_at(int directory, const char *path, int flags, mode_t mode) {
    char buffer[PATH_MAX];
    const char *name = path_at(directory, path, buffer);
    if (!name) return (int)syscall(SYS_openat, directory, path, flags, mode);
    int kept = errno;
    int is_new = (flags & O_CREAT) && syscall(SYS_faccessat, directory, path, F_OK) != 0;
    errno = kept;
    enum operation operation = is_new ? OP_CREATE : OP_OPEN;
    if (judge(operation, name) == FAIL) {
        errno = control->error;
        return -1;
    }
    int file = (int)syscall(SYS_openat, directory, path, flags, mode);
    if (file >= 0 && is_new) record(OP_CREATE, name, NULL, 0, NULL, 0);
    if (file >= 0 && !is_new && (flags & O_TRUNC)) record(OP_TRUNCATE, name, NULL, 0, NULL, 0);
    return file;
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) { MODE_OF(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return open_at(AT_FDCWD, path, flags, mode); }
int openat(int directory, const char *path, int flags, ...) { MODE_OF(flags) return open_at(directory, path, flags, mode); }
int openat64(int directory, const char *path, int flags, ...) { MODE_OF(flags) return open_at(directory, path, flags, mode); }
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int mkstemp(char *template) {
    int (*next)(char *) = (int (*)(char *))dlsym(RTLD_NEXT, "mkstemp");
    const char *name = control ? below(template) : NULL;
    if (!name) return next(template);
    if (judge(OP_CREATE, name) == FAIL) {
        errno = control->error;
        return -1;
    }
    int file = next(template);
    if (file >= 0) record(OP_CREATE, name, NULL, 0, NULL, 0);
    return file;
}

// Linux has closed the file also when it returns an error. A file that was only read has nothing to tell at its end.
int close(int file) {
    char buffer[PATH_MAX];
    int kept = errno;
    const char *name = control && (fcntl(file, F_GETFL) & O_ACCMODE) != O_RDONLY ? path_of(file, buffer) : NULL;
    errno = kept;
    if (!name) return (int)syscall(SYS_close, file);
    enum verdict verdict = judge(OP_CLOSE, name);
    int result = (int)syscall(SYS_close, file);
    if (verdict != FAIL) return result;
    errno = control->error;
    return -1;
}

DIR *opendir(const char *path) {
    DIR *(*next)(const char *) = (DIR * (*)(const char *)) dlsym(RTLD_NEXT, "opendir");
    const char *name = control ? below(path) : NULL;
    if (name && judge(OP_LIST, name) == FAIL) {
        errno = control->error;
        return NULL;
    }
    return next(path);
}

// MARK: bytes

static ssize_t write_at(int file, const void *bytes, size_t count, const off_t *offset) {
    char buffer[PATH_MAX];
    int kept = errno;
    const char *name = path_of(file, buffer);
    errno = kept;
    if (name) {
        switch (judge(OP_WRITE, name)) {
        case FAIL: errno = control->error; return -1;
        case CUT_SHORT: count = count > 1 ? count / 2 : count; break;
        case GO_ON: break;
        }
    }
    ssize_t written = offset ? syscall(SYS_pwrite64, file, bytes, count, *offset) : syscall(SYS_write, file, bytes, count);
    if (name && written > 0) {
        off_t place = offset ? *offset : lseek(file, 0, SEEK_CUR) - written;
        record(OP_WRITE, name, NULL, place, bytes, (size_t)written);
    }
    return written;
}

ssize_t write(int file, const void *bytes, size_t count) { return write_at(file, bytes, count, NULL); }
ssize_t pwrite(int file, const void *bytes, size_t count, off_t offset) { return write_at(file, bytes, count, &offset); }
ssize_t pwrite64(int file, const void *bytes, size_t count, off_t offset) { return write_at(file, bytes, count, &offset); }

// A writer of several pieces must stand a short write, so the first piece alone is an answer.
ssize_t writev(int file, const struct iovec *parts, int count) {
    char buffer[PATH_MAX];
    int kept = errno;
    const char *name = path_of(file, buffer);
    errno = kept;
    if (!name) return syscall(SYS_writev, file, parts, count);
    for (int part = 0; part < count; part++)
        if (parts[part].iov_len > 0) return write_at(file, parts[part].iov_base, parts[part].iov_len, NULL);
    return 0;
}

#define OF_FILE(file) \
    char buffer[PATH_MAX]; \
    const char *name = path_of(file, buffer);

int fsync(int file) {
    OF_FILE(file)
    if (!name) return (int)syscall(SYS_fsync, file);
    // The disk of the tests' machine is not what is tested: the record is the sync.
    PERFORM(OP_SYNC, name, NULL, 0, 0);
}
int fdatasync(int file) { return fsync(file); }

int ftruncate(int file, off_t length) {
    OF_FILE(file)
    if (!name) return (int)syscall(SYS_ftruncate, file, length);
    PERFORM(OP_TRUNCATE, name, NULL, length, syscall(SYS_ftruncate, file, length));
}
int ftruncate64(int file, off_t length) { return ftruncate(file, length); }

int fallocate(int file, int mode, off_t offset, off_t length) {
    OF_FILE(file)
    if (!name) return (int)syscall(SYS_fallocate, file, mode, offset, length);
    PERFORM(OP_ALLOCATE, name, NULL, 0, syscall(SYS_fallocate, file, mode, offset, length));
}

int fchmod(int file, mode_t mode) {
    OF_FILE(file)
    if (!name) return (int)syscall(SYS_fchmod, file, mode);
    PERFORM(OP_CHMOD, name, NULL, 0, syscall(SYS_fchmod, file, mode));
}

// MARK: names

static int rename_at(int from_directory, const char *from, int to_directory, const char *to, unsigned flags) {
    char buffer[PATH_MAX], second_buffer[PATH_MAX];
    const char *name = path_at(from_directory, from, buffer), *second = path_at(to_directory, to, second_buffer);
    if (!name || !second) return (int)syscall(SYS_renameat2, from_directory, from, to_directory, to, flags);
    enum operation operation = flags & RENAME_EXCHANGE ? OP_EXCHANGE : OP_RENAME;
    PERFORM(operation, name, second, 0, syscall(SYS_renameat2, from_directory, from, to_directory, to, flags));
}
int rename(const char *from, const char *to) { return rename_at(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_directory, const char *from, int to_directory, const char *to) {
    return rename_at(from_directory, from, to_directory, to, 0);
}
int renameat2(int from_directory, const char *from, int to_directory, const char *to, unsigned flags) {
    return rename_at(from_directory, from, to_directory, to, flags);
}

int unlinkat(int directory, const char *path, int flags) {
    char buffer[PATH_MAX];
    const char *name = path_at(directory, path, buffer);
    if (!name) return (int)syscall(SYS_unlinkat, directory, path, flags);
    PERFORM(flags & AT_REMOVEDIR ? OP_RMDIR : OP_UNLINK, name, NULL, 0, syscall(SYS_unlinkat, directory, path, flags));
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    struct stat status;
    if (lstat(path, &status) != 0) return -1;
    return unlinkat(AT_FDCWD, path, S_ISDIR(status.st_mode) ? AT_REMOVEDIR : 0);
}

int mkdirat(int directory, const char *path, mode_t mode) {
    char buffer[PATH_MAX];
    const char *name = path_at(directory, path, buffer);
    if (!name) return (int)syscall(SYS_mkdirat, directory, path, mode);
    PERFORM(OP_MKDIR, name, NULL, 0, syscall(SYS_mkdirat, directory, path, mode));
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int linkat(int from_directory, const char *from, int to_directory, const char *to, int flags) {
    char buffer[PATH_MAX], second_buffer[PATH_MAX];
    const char *name = path_at(from_directory, from, buffer), *second = path_at(to_directory, to, second_buffer);
    if (!name || !second) return (int)syscall(SYS_linkat, from_directory, from, to_directory, to, flags);
    PERFORM(OP_LINK, name, second, 0, syscall(SYS_linkat, from_directory, from, to_directory, to, flags));
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int chmod(const char *path, mode_t mode) {
    char buffer[PATH_MAX];
    const char *name = path_at(AT_FDCWD, path, buffer);
    if (!name) return (int)syscall(SYS_fchmodat, AT_FDCWD, path, mode);
    PERFORM(OP_CHMOD, name, NULL, 0, syscall(SYS_fchmodat, AT_FDCWD, path, mode));
}
