// Which files: landlock(7). Numbers and structures are written out, for the headers of the machine that builds may be older
// than the kernel that runs: include/uapi/linux/landlock.h of Linux 6.15.
#define _GNU_SOURCE
#include "edge_sandbox.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

// The same on every architecture (since Linux 5.13).
enum { CREATE_RULESET = 444, ADD_RULE = 445, RESTRICT_SELF = 446 };
enum { RULESET_VERSION = 1, PATH_BENEATH = 1 };

#define BIT(n) (UINT64_C(1) << (n))
enum { EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO,
       MAKE_BLOCK, MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV };

static const uint64_t reading = BIT(READ_FILE) | BIT(READ_DIR);
// REFER: a rename from one directory to another.
static const uint64_t writing = BIT(WRITE_FILE) | BIT(TRUNCATE) | BIT(REMOVE_DIR) | BIT(REMOVE_FILE) | BIT(MAKE_DIR)
    | BIT(MAKE_REG) | BIT(REFER);
// What a rule for something that is no directory can say.
static const uint64_t of_a_file = BIT(EXECUTE) | BIT(WRITE_FILE) | BIT(READ_FILE) | BIT(TRUNCATE) | BIT(IOCTL_DEV);

struct ruleset {
    uint64_t handled_files;
    uint64_t handled_net;  // bind 1, connect 2; ABI 4
    uint64_t scoped;       // abstract Unix sockets 1, signals 2; ABI 6
};

struct path_rule {
    uint64_t allowed;
    int32_t parent;
} __attribute__((packed));

static const long proc_magic = 0x9fa0;

int edge_landlock_abi(void) {
    long abi = syscall(CREATE_RULESET, NULL, 0, RULESET_VERSION);
    return abi > 0 ? (int)abi : 0;
}

static uint64_t known_rights(int abi) {
    int count = abi >= 5 ? IOCTL_DEV + 1 : abi >= 3 ? TRUNCATE + 1 : abi >= 2 ? REFER + 1 : MAKE_SYM + 1;
    return BIT(count) - 1;
}

static int add(int ruleset, uint64_t known, const struct edge_sandbox_rule *rule) {
    int file;
    do file = open(rule->path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    while (file < 0 && errno == EINTR);
    if (file < 0) return errno == ENOENT || errno == ENOTDIR ? 0 : errno;
    struct stat status;
    struct statfs system;
    int error = fstat(file, &status) != 0 || fstatfs(file, &system) != 0 ? errno : 0;
    struct path_rule made = {.allowed = 0, .parent = file};
    if (rule->access & EDGE_SANDBOX_READ) made.allowed |= reading;
    if (rule->access & EDGE_SANDBOX_WRITE) made.allowed |= reading | writing;
    made.allowed &= known;
    if (!error && !S_ISDIR(status.st_mode)) made.allowed &= of_a_file;
    if (!error && syscall(ADD_RULE, ruleset, PATH_BENEATH, &made, 0) != 0) error = errno;
    // Rules are for inodes. Those of other file systems stay the same while a rule holds them; /proc makes a new one each
    // time that its name was forgotten, and an open descriptor is what keeps the name.
    if (error || system.f_type != proc_magic) close(file);
    return error;
}

int edge_landlock_confine(const struct edge_sandbox_rule *rules, size_t count, size_t *failed) {
    *failed = count;
    int abi = edge_landlock_abi();
    if (abi == 0) return ENOSYS;
    struct ruleset attributes = {
        .handled_files = known_rights(abi), .handled_net = abi >= 4 ? 3 : 0, .scoped = abi >= 6 ? 3 : 0};
    // Older kernels take a longer structure as long as the rest is zero.
    int ruleset = (int)syscall(CREATE_RULESET, &attributes, sizeof attributes, 0);
    if (ruleset < 0) return errno;
    int error = 0;
    for (size_t i = 0; i < count && !error; i++) {
        error = add(ruleset, attributes.handled_files, &rules[i]);
        if (error) *failed = i;
    }
    if (!error && syscall(RESTRICT_SELF, ruleset, 0) != 0) error = errno;
    close(ruleset);
    return error;
}

static int has_capabilities(void) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct own[_LINUX_CAPABILITY_U32S_3] = {0};
    if (syscall(SYS_capget, &header, own) != 0) return 1;
    for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
        if (own[i].effective | own[i].permitted | own[i].inheritable) return 1;
    }
    return 0;
}

int edge_drop_privileges(void) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};
    // The service's unit refuses capset itself, to a process that has nothing to drop.
    if (has_capabilities() && syscall(SYS_capset, &header, none) != 0) return errno;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 ? 0 : errno;
}

void edge_close_descriptors(int first) {
    // close_range, Linux 5.9.
    if (syscall(436, (unsigned)first, ~0U, 0) == 0) return;
    long limit = sysconf(_SC_OPEN_MAX);
    for (int file = first; file < limit; file++) close(file);
}

int edge_thread_count(void) {
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks) return 0;
    int count = 0;
    for (struct dirent *entry; (entry = readdir(tasks));) count += entry->d_name[0] != '.';
    closedir(tasks);
    return count;
}
