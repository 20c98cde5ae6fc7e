// What Linux offers a process that wants to be able to do less: Landlock (which files), seccomp (which system calls), and
// that nothing it runs regains what it gave up. Every call is for good. No malloc, no threads, no output.
//
// All of it holds for the calling thread and those that it starts later: to be called while there is one thread only
// (edge_thread_count), for Landlock has no call for all threads before Linux 7.0.
#pragma once

#include <stddef.h>
#include <stdint.h>

/// What a rule allows beneath its path; nothing is ever allowed that no rule names.
enum {
    /// Files' bytes, and the names in directories.
    EDGE_SANDBOX_READ = 1,
    /// Also to make, write, rename and remove regular files and directories. No links, sockets, pipes and devices.
    EDGE_SANDBOX_WRITE = 2,
};

struct edge_sandbox_rule {
    /// A directory with all that is in it, or one file. A symbolic link at its end is not followed: the rule is for the link.
    const char *path;
    uint32_t access;
};

/// Landlock's ABI version of this kernel; 0 where there is none, or where it is switched off.
int edge_landlock_abi(void);

/// Allows what the rules allow, and no other file to be opened, made, renamed or removed, no program to be executed, no TCP
/// port to be used (ABI 4), no device's ioctl (5), and no process outside to be signalled (6). A path that does not exist is
/// left out. Paths in /proc are kept open: the kernel would forget what the rule was for.
///
/// Asks for edge_drop_privileges first.
///
/// - Returns: 0, or an errno; then nothing is restricted, and `*failed` is the rule that it was for, or `count`.
int edge_landlock_confine(const struct edge_sandbox_rule *rules, size_t count, size_t *failed);

/// Allows the system calls that reading, computing and writing in threads needs. What else is asked for is refused (EPERM),
/// is not there (ENOSYS, so that libraries take their other way), or ends the process with SIGSYS where only an intruder
/// asks: seccomp.c has the lists. Asks for edge_drop_privileges first.
///
/// - Returns: 0, or an errno: ENOSYS for a processor that has no list here.
int edge_seccomp_confine(void);

/// Gives up root's capabilities, if there are any, and sees to it that nothing that this process executes gets some.
///
/// - Returns: 0 or an errno.
int edge_drop_privileges(void);

/// Closes all descriptors from `first` on.
void edge_close_descriptors(int first);

/// Threads of this process; 0 where /proc does not tell.
int edge_thread_count(void);
